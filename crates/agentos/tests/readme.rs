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

/// As above, for the README's second program.
#[allow(dead_code, reason = "the README's words, and they need not lead anywhere")]
async fn agents(vm: agentos::AgentOs) -> Result<(), Box<dyn std::error::Error>> {
    use agentos::{PermissionReply, PermissionRule};
    // ----
    let rule = PermissionRule::allow().tool_kind("edit").path("/work/**");
    let session = vm.create_session("claude").permission_rule(rule).await?;
    let mut requests = session.permission_requests();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            println!("{}", request.description().unwrap_or_default());
            let _ = request.reply(PermissionReply::Once).await;
        }
    });
    // ----
    Ok(())
}

/// As above, for the README's third program.
#[allow(dead_code, unused_variables, reason = "the README's words, and they need not lead anywhere")]
fn host_tools() -> agentos::AgentOsOptions {
    use agentos::{AgentOsOptions, HostTool, ToolKit, ToolPermissions};
    use serde_json::{Value, json};
    async fn weather_of(city: &Value) -> Result<String, String> {
        Err(format!("no weather in {city}"))
    }
    // ----
    let schema =
        json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
    let forecast = HostTool::new("The weather of tomorrow in a city", schema, |input: Value| async move {
        weather_of(&input["city"]).await
    });
    let options = AgentOsOptions::default()
        .tool_kit(ToolKit::new("weather", "What the sky does").tool("forecast", forecast))
        .tool_permissions(ToolPermissions::allow_all().deny("weather_admin*"));
    // ----
    options
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

#[test]
fn the_programs_in_the_readme_are_those_that_compile() {
    let readme = std::fs::read_to_string("../../README.md").unwrap();
    let shown: Vec<&str> =
        readme.split("```rust\n").skip(1).map(|rest| rest.split_once("\n```").unwrap().0).collect();
    let own = std::fs::read_to_string("tests/readme.rs").unwrap();
    let compiled: Vec<&str> = own.split("    // ----\n").skip(1).step_by(2).collect();
    assert!(!shown.is_empty(), "the README has programs");
    assert_eq!(shown.len(), compiled.len(), "each of the README's programs has a place in {}", file!());
    for (shown, compiled) in shown.iter().zip(compiled) {
        assert_eq!(lines(shown), lines(compiled.trim_end()), "copy the README's program into {}", file!());
    }
}
