//! A directory of the host inside a VM, and memory.
//!
//! `cargo run -p agentos --example mounts`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use agentos::{AgentOs, AgentOsOptions, ErrorKind, Mount};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let project = tempfile::tempdir()?;
    std::fs::write(project.path().join("README.md"), "# A project\n")?;

    let options = AgentOsOptions::default()
        .mount("/work", Mount::host_dir(project.path()).read_write())
        .mount("/scratch", Mount::memory().max_bytes(16 << 20));
    let vm = AgentOs::create(options).await?;

    let out = vm.exec("wc -c README.md > size; cp size /scratch").cwd("/work").await?;
    assert!(out.success(), "{}", out.stderr_lossy());
    println!("written on the host: {}", std::fs::read_to_string(project.path().join("size"))?);

    // Live, and read-only unless asked otherwise.
    vm.mount_fs("/docs", Mount::host_dir(project.path())).await?;
    let refused = vm.write_file("/docs/README.md", "other").await;
    assert!(matches!(refused, Err(error) if error.kind() == ErrorKind::ReadOnly));
    vm.unmount_fs("/docs").await?;

    vm.dispose().await?;
    Ok(())
}
