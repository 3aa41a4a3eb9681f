//! Files of a VM: one, many at once, directories, metadata.
//!
//! `cargo run -p agentos --example files`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use agentos::{AgentOs, AgentOsOptions, ErrorKind};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vm = AgentOs::create(AgentOsOptions::default()).await?;

    // Parents are made; one round trip for all of them, and one failure never stops the rest.
    let written =
        vm.write_files([("/home/user/src/main.ts", "main()"), ("/home/user/src/lib/a.ts", "a()")]).await?;
    assert!(written.iter().all(|result| result.success));

    for entry in vm.readdir_recursive("/home/user").exclude("node_modules").await? {
        println!("{:?} {} ({} bytes)", entry.file_type, entry.path, entry.size);
    }

    let stat = vm.stat("/home/user/src/main.ts").await?;
    println!("mode {:o}, {} bytes, owner {}", stat.mode, stat.size, stat.uid);

    vm.move_path("/home/user/src/lib", "/home/user/lib").await?;
    vm.delete("/home/user/src").recursive().await?;
    assert_eq!(vm.readdir("/home/user").await?, ["lib"]);

    // Errors are told apart by kind; the message is for people.
    let deleted = vm.read_file("/home/user/src/main.ts").await;
    assert!(matches!(deleted, Err(error) if error.kind() == ErrorKind::NotFound));

    vm.dispose().await?;
    Ok(())
}
