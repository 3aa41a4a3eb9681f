//! An agent at work in a VM. With the demo model it needs neither a key nor a network once it is installed.
//!
//! `cargo run -p agentos --example sessions`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use agentos::{AgentOs, AgentOsOptions, ModelChoice, PermissionPolicy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vm = AgentOs::create(AgentOsOptions::default().model(ModelChoice::Demo)).await?;

    let session = vm
        .create_session("pi")
        .permission_policy(PermissionPolicy::AllowAll)
        .on_install_progress(|step| println!("installing {} ({} bytes)", step.package, step.received_bytes))
        .await?;
    println!("{} talks to {}: {}", session.id(), session.model(), session.model_reason());

    let reply = session.prompt("Write a hello world in TypeScript to hello.ts").await?;
    println!("{} ({})", reply.text, reply.stop_reason);
    println!("{}", String::from_utf8_lossy(&vm.read_file("/home/user/hello.ts").await?));

    // Everything that happened, from the first event on.
    let mut events = session.events();
    if let Some(first) = events.next().await {
        let first = first?;
        println!("event {}: {}", first.sequence_number, first.method());
    }

    session.close().await?;

    // The transcript outlives the session, the VM and the sidecar.
    let stored = vm.sidecar().stored_sessions().limit(1).await?;
    for kept in stored.sessions {
        println!("{}: {} events", kept.title.as_deref().unwrap_or("-"), kept.events);
        let said = vm.read_history(&kept.session_id).method("session/update").await?;
        println!("{} of them are the agent's", said.len());
    }
    vm.dispose().await?;
    Ok(())
}
