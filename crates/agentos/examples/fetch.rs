//! HTTP to a server inside a VM, which nothing else can reach.
//!
//! `cargo run -p agentos --example fetch`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use std::time::Duration;

use agentos::{AgentOs, AgentOsOptions, Body};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vm = AgentOs::create(AgentOsOptions::default()).await?;

    vm.write_file("/home/user/www/health", "well\n").await?;
    vm.spawn("python3", ["-m", "http.server", "3000", "--directory", "/home/user/www"]).await?;

    // The server needs a moment until it listens.
    let started = std::time::Instant::now();
    let response = loop {
        match vm.fetch(3000, http::Request::get("/health").body(Body::empty())?).await {
            Ok(response) => break response,
            Err(error)
                if error.errno() == Some("ECONNREFUSED") && started.elapsed() < Duration::from_secs(20) =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    println!("{}", response.status());
    assert_eq!(response.into_body().into_text().await?, "well\n");

    vm.dispose().await?;
    Ok(())
}
