//! Host tools: functions of this program, called from inside a VM.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentos::{AgentOs, AgentOsOptions, ErrorKind, ExecResult, HostTool, ToolKit, ToolPermissions};
use serde_json::{Value, json};
use support::world::World;
use support::{eventually, within};

fn schema() -> Value {
    json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] })
}

/// `weather_forecast`, which counts its calls.
fn weather(calls: &Arc<AtomicUsize>) -> ToolKit {
    let calls = Arc::clone(calls);
    let forecast = HostTool::new("The weather of tomorrow", schema(), move |input: Value| {
        calls.fetch_add(1, Ordering::SeqCst);
        async move {
            match input["city"].as_str() {
                Some("Atlantis") => Err("nobody knows"),
                Some("Babel") => panic!("confusion"),
                city => Ok(format!("sunny in {}", city.unwrap_or_default())),
            }
        }
    });
    ToolKit::new("weather", "What the sky does").tool("forecast", forecast)
}

async fn vm(world: &World, options: AgentOsOptions) -> AgentOs {
    world.vm_with(options).await
}

async fn sh(vm: &AgentOs, command: &str) -> ExecResult {
    within(command, vm.exec(command)).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_program_in_the_vm_calls_a_function_of_this_one() {
    let world = World::new().await;
    let calls = Arc::default();
    let vm = vm(&world, world.options().tool_kit(weather(&calls))).await;

    let listed = sh(&vm, "agentos-tools list").await;
    assert_eq!(text(&listed.stdout), "weather_forecast  The weather of tomorrow\n");
    let described = sh(&vm, "agentos-tools describe weather_forecast").await;
    assert!(text(&described.stdout).contains("\"city\""), "{described:?}");
    let called = sh(&vm, r#"agentos-tools call weather_forecast '{"city":"Oslo"}'"#).await;
    assert_eq!((text(&called.stdout).as_str(), called.exit_code()), ("sunny in Oslo\n", 0));
    let piped = sh(&vm, r#"echo '{"city":"Bergen"}' | agentos-tools call weather_forecast -"#).await;
    assert_eq!(text(&piped.stdout), "sunny in Bergen\n");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn whoever_calls_reads_what_went_wrong() {
    let world = World::new().await;
    let calls = Arc::default();
    let vm = vm(&world, world.options().tool_kit(weather(&calls))).await;
    for (call, code, said) in [
        (r#"call weather_forecast '{"city":"Atlantis"}'"#, 1, "nobody knows"),
        (r#"call weather_forecast '{"city":"Babel"}'"#, 1, "panicked"),
        (r#"call weather_forecast '{"city":7}'"#, 1, "does not fit the tool's schema"),
        ("call weather_forecast", 1, "does not fit the tool's schema"),
        ("call weather_forecast '{'", 2, "no JSON object"),
        ("call weather_history '{}'", 1, "no host tool weather_history"),
        ("describe weather_history", 2, "no tool weather_history"),
        ("call", 2, "<NAME>"),
    ] {
        let failed = sh(&vm, &format!("agentos-tools {call}")).await;
        assert_eq!(failed.exit_code(), code, "{call}: {failed:?}");
        assert!(text(&failed.stderr).contains(said), "{call}: {}", text(&failed.stderr));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2, "what doesn't fit never gets here");
}

#[tokio::test]
async fn a_denied_tool_is_neither_listed_nor_called() {
    let world = World::new().await;
    let calls = Arc::default();
    let permissions = ToolPermissions::allow_all().deny("weather_*");
    let options = world.options().tool_kit(weather(&calls)).tool_permissions(permissions);
    let vm = vm(&world, options).await;
    assert_eq!(text(&sh(&vm, "agentos-tools list").await.stdout), "");
    let denied = sh(&vm, r#"agentos-tools call weather_forecast '{"city":"Oslo"}'"#).await;
    assert!(text(&denied.stderr).contains("deny"), "{denied:?}");
    assert_eq!((denied.exit_code(), calls.load(Ordering::SeqCst)), (1, 0));
}

/// Tells when it is dropped.
struct Gone(Arc<AtomicUsize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_dropped() {
    let world = World::new().await;
    let (begun, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&begun), Arc::clone(&dropped));
    let for_ever = move |_: Value| {
        let (begun, gone) = (Arc::clone(&counters.0), Gone(Arc::clone(&counters.1)));
        async move {
            let _gone = gone;
            begun.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<Value, String>>().await
        }
    };
    let object = json!({ "type": "object" });
    let short =
        HostTool::new("Never ends", object.clone(), for_ever.clone()).timeout(Duration::from_millis(300));
    let long = HostTool::new("So", object, for_ever).timeout(Duration::from_secs(3600));
    let kit = ToolKit::new("wait", "Time").tool("short", short).tool("long", long);
    let vm = vm(&world, world.options().tool_kit(kit)).await;

    let late = sh(&vm, "agentos-tools call wait_short").await;
    assert!(text(&late.stderr).contains("did not answer within 300 ms"), "{late:?}");
    let seen = |count: &Arc<AtomicUsize>, at_least| {
        let count = Arc::clone(count);
        move || {
            let count = Arc::clone(&count);
            async move { count.load(Ordering::SeqCst) >= at_least }
        }
    };
    eventually("the handler is dropped", seen(&dropped, 1)).await;

    let caller = vm.spawn("agentos-tools", ["call", "wait_long"]).await.unwrap();
    eventually("the handler is called", seen(&begun, 2)).await;
    caller.kill().await.unwrap();
    eventually("the handler of a caller that has gone is dropped", seen(&dropped, 2)).await;
}

#[tokio::test]
async fn mcp_over_stdio_is_the_same_server() {
    let world = World::new().await;
    let vm = vm(&world, world.options().tool_kit(weather(&Arc::default()))).await;
    let ask = |id: u64, method: &str, params: Value| {
        json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string() + "\n"
    };
    let client = json!({ "name": "t", "version": "1" });
    let begin = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
    let call = json!({ "name": "weather_forecast", "arguments": { "city": "Oslo" } });
    let said = ask(1, "initialize", begin)
        + "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n"
        + &ask(2, "tools/list", json!({}))
        + &ask(3, "tools/call", call);
    let answered = within("the answers", vm.exec("agentos-tools mcp").stdin(said)).await.unwrap();
    let mut answers: Vec<Value> =
        text(&answered.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    answers.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!(answers.len(), 3, "{answered:?}");
    assert_eq!(answers[0]["result"]["serverInfo"]["name"], "agentos-tools");
    assert_eq!(answers[1]["result"]["tools"][0]["name"], "weather_forecast");
    assert_eq!(answers[2]["result"]["content"][0]["text"], "sunny in Oslo");
}

#[tokio::test]
async fn an_offer_that_makes_no_sense_is_refused_and_no_vm_is_left() {
    let world = World::new().await;
    let tool =
        HostTool::new(
            "So",
            json!({ "type": "string" }),
            |input: Value| async move { Ok::<_, String>(input) },
        );
    let options = world.options().tool_kit(ToolKit::new("kit", "So").tool("tool", tool));
    let refused = AgentOs::create(options).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert!(refused.to_string().contains("kit_tool"), "{refused}");
}
