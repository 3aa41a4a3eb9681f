//! A VM, a command in it, a file, and its end.
//!
//! `cargo run -p agentos --example quickstart`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use std::time::Duration;

use agentos::{AgentOs, AgentOsOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // On the default pool's sidecar, which is started where it does not run.
    let vm = AgentOs::create(AgentOsOptions::default().env("GREETING", "hello")).await?;

    let out = vm.exec("echo $GREETING from $(hostname)").timeout(Duration::from_secs(5)).await?;
    print!("{}", out.stdout_lossy());
    assert!(out.success());

    vm.write_file("/home/user/a.txt", "text").await?;
    let bytes = vm.read_file("/home/user/a.txt").await?;
    println!("a.txt holds {} bytes", bytes.len());
    assert_eq!(bytes, b"text");

    vm.dispose().await?;
    Ok(())
}
