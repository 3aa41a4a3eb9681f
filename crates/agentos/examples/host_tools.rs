//! A function of this program that every program in a VM can call: agents as a tool, scripts as a command.
//!
//! `cargo run -p agentos --example host_tools`

#![allow(clippy::print_stdout, reason = "examples show what they do")]

use std::time::Duration;

use agentos::{AgentOs, AgentOsOptions, HostTool, ModelChoice, PermissionPolicy, ToolKit, ToolPermissions};
use serde_json::{Value, json};

/// What stands for something that only this program can reach.
async fn look_up(input: Value) -> Result<Value, String> {
    match input["number"].as_u64() {
        Some(7) => Ok(json!({ "customer": "Ada", "paid": true })),
        _ => Err(format!("there is no invoice {}", input["number"])),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = json!({
        "type": "object", "properties": { "number": { "type": "integer", "minimum": 1 } }, "required": ["number"],
    });
    let invoice = HostTool::new("Looks up an invoice", schema, look_up)
        .example("The invoice 7", json!({ "number": 7 }))
        .timeout(Duration::from_secs(5));
    let options = AgentOsOptions::default()
        .model(ModelChoice::Demo)
        .tool_kit(ToolKit::new("billing", "Invoices and who paid them").tool("invoice", invoice))
        .tool_permissions(ToolPermissions::deny_all().allow("billing_*"));
    let vm = AgentOs::create(options).await?;

    // What does not fit the schema never gets to the function.
    for input in ["{\"number\": 7}", "{\"number\": 8}", "{\"number\": \"seven\"}"] {
        let out = vm.exec(format!("agentos-tools call billing_invoice '{input}'")).await?;
        println!("{} {}", String::from_utf8(out.stdout)?.trim(), String::from_utf8(out.stderr)?.trim());
    }

    // The offline model calls the tool that it is told to.
    let session = vm.create_session("pi").permission_policy(PermissionPolicy::AllowAll).await?;
    let reply = session.prompt("demo:tool billing_invoice {\"number\": 7}").await?;
    println!("{}", reply.text);
    assert!(reply.text.contains("Ada"));

    session.close().await?;
    vm.dispose().await?;
    Ok(())
}
