//! A program that keeps running: its input, its output, its end.
//!
//! `cargo run -p agentos --example processes`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use agentos::{AgentOs, AgentOsOptions, Exit, Stdin};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vm = AgentOs::create(AgentOsOptions::default()).await?;

    let upper = vm.spawn("tr", ["a-z", "A-Z"]).stdin(Stdin::Piped).await?;
    upper.write_stdin("made of bytes\n").await?;
    upper.close_stdin().await?;
    let mut output = upper.stdout();
    while let Some(chunk) = output.next().await {
        print!("{}", String::from_utf8_lossy(&chunk?));
    }
    assert_eq!(upper.wait().await?, Exit::Exited { code: 0 });

    let sleeper = vm.spawn("sleep", ["1000"]).await?;
    for process in vm.all_processes().await? {
        println!("{} {} {:?}", process.pid, process.command, process.status);
    }
    sleeper.stop().await?;
    println!("{}", sleeper.wait().await?);

    vm.dispose().await?;
    Ok(())
}
