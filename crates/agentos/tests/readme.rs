//! The README's program compiles.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]
#![allow(clippy::print_stdout, reason = "the README's program says what it got")]

/// Never called: what it does, other tests do. Between the two lines of dashes stands what the README has, to the word.
#[allow(dead_code, unused_variables, reason = "the README's words, and they need not lead anywhere")]
async fn program() -> Result<(), Box<dyn std::error::Error>> {
    // ----
    use agentos::{AgentOs, AgentOsOptions, Mount};
    use std::time::Duration;

    let options = AgentOsOptions::default()
        .mount("/work", Mount::host_dir("./src").read_write())
        .env("RUST_LOG", "debug");
    let vm = AgentOs::create(options).await?;

    let out = vm.exec("echo hi").timeout(Duration::from_secs(5)).await?;
    assert_eq!(out.stdout, b"hi\n");

    vm.write_file("/home/user/a.txt", "text").await?;
    let server = vm.spawn("node", ["server.js"]).await?;

    let session = vm.create_session("pi").await?;
    let reply = session.prompt("Write a hello world in TypeScript to hello.ts").await?;
    println!("{}", reply.text);

    session.close().await?;
    vm.dispose().await?;
    // ----
    Ok(())
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

#[test]
fn the_program_in_the_readme_is_the_one_that_compiles() {
    let readme = std::fs::read_to_string("../../README.md").unwrap();
    let (_, rest) = readme.split_once("```rust\n").expect("the README has a program");
    let (shown, rest) = rest.split_once("\n```").unwrap();
    assert!(!rest.contains("```rust"), "the README has a second program; it needs its own place here");
    let own = std::fs::read_to_string("tests/readme.rs").unwrap();
    let compiled = own.split("    // ----\n").nth(1).unwrap();
    assert_eq!(lines(shown), lines(compiled.trim_end()), "copy the README's program into {}", file!());
}
