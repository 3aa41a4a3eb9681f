//! A shell on a real terminal, driven by a program. `vm.connect_terminal()` gives it to a person instead.
//!
//! `cargo run -p agentos --example shell`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use agentos::{AgentOs, AgentOsOptions, Exit};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vm = AgentOs::create(AgentOsOptions::default()).await?;

    let shell = vm.open_shell().size(80, 24).await?;
    shell.resize(100, 30).await?;
    shell.write("stty size; exit 3\n").await?;

    let mut screen = String::new();
    let mut data = shell.data();
    while let Some(chunk) = data.next().await {
        screen.push_str(&String::from_utf8_lossy(&chunk?));
    }
    println!("{screen}");
    assert!(screen.contains("30 100"));
    assert_eq!(shell.wait().await?, Exit::Exited { code: 3 });

    vm.dispose().await?;
    Ok(())
}
