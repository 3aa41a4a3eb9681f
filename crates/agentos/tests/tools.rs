//! Host tools: functions of this program, called from inside a VM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentos::{AgentOs, ErrorKind, ExecResult, HostTool, Mount, Storage, ToolKit, ToolPermissions};
use serde_json::{Value, json};
use support::world::World;
use support::{eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn schema() -> Value {
    json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] })
}

/// `weather_forecast`, which counts its calls.
fn weather(calls: &Arc<AtomicUsize>) -> ToolKit {
    let calls = Arc::clone(calls);
    let forecast = HostTool::new("The weather of tomorrow", schema(), move |input: Value| {
        calls.fetch_add(1, Ordering::SeqCst);
        assert_ne!(input["city"], "Sodom", "before there is a future");
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
    let vm = world.vm_with(world.options().tool_kit(weather(&calls))).await;

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
    let vm = world.vm_with(world.options().tool_kit(weather(&calls))).await;
    for (call, code, said) in [
        (r#"call weather_forecast '{"city":"Atlantis"}'"#, 1, "nobody knows"),
        (r#"call weather_forecast '{"city":"Sodom"}'"#, 1, "panicked"),
        (r#"call weather_forecast '{"city":"Babel"}'"#, 1, "panicked"),
        (r#"call weather_forecast '{"city":7}'"#, 1, "schema: at '/city': want string"),
        ("call weather_forecast", 1, "missing properties 'city'"),
        ("call weather_forecast '{'", 2, "no JSON object"),
        ("call weather_history '{}'", 1, "no host tool weather_history"),
        ("describe weather_history", 2, "no tool weather_history"),
        ("call", 2, "<NAME>"),
    ] {
        let failed = sh(&vm, &format!("agentos-tools {call}")).await;
        assert_eq!(failed.exit_code(), code, "{call}: {failed:?}");
        assert!(text(&failed.stderr).contains(said), "{call}: {}", text(&failed.stderr));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 3, "what doesn't fit never gets here");
}

#[tokio::test]
async fn a_denied_tool_is_neither_listed_nor_called() {
    let world = World::new().await;
    let calls = Arc::default();
    let permissions = ToolPermissions::allow_all().deny("weather_*");
    let options = world.options().tool_kit(weather(&calls)).tool_permissions(permissions);
    let vm = world.vm_with(options).await;
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

/// The calls of a tool that never answers.
#[derive(Default)]
struct Calls {
    begun: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Calls {
    fn tool(&self, timeout: Duration) -> HostTool {
        let (begun, dropped) = (Arc::clone(&self.begun), Arc::clone(&self.dropped));
        let for_ever = move |_: Value| {
            let (begun, gone) = (Arc::clone(&begun), Gone(Arc::clone(&dropped)));
            async move {
                let _gone = gone;
                begun.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<Result<Value, String>>().await
            }
        };
        HostTool::new("Never ends", json!({ "type": "object" }), for_ever).timeout(timeout)
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_dropped() {
    let world = World::new().await;
    let (short, long) = (Calls::default(), Calls::default());
    let kit = ToolKit::new("wait", "Time")
        .tool("short", short.tool(Duration::from_secs(3)))
        .tool("long", long.tool(Duration::from_secs(3600)));
    let vm = world.vm_with(world.options().tool_kit(kit)).await;

    // Of a machine that stands still a call may be over before it gets here.
    eventually("the handler is called", || async {
        let late = sh(&vm, "agentos-tools call wait_short").await;
        assert!(text(&late.stderr).contains("did not answer within 3000 ms"), "{late:?}");
        short.begun() > 0
    })
    .await;
    eventually("the handler is dropped", || async { short.dropped() == short.begun() }).await;

    let caller = vm.spawn("agentos-tools", ["call", "wait_long"]).await.unwrap();
    eventually("the handler is called", || async { long.begun() == 1 }).await;
    assert_eq!(long.dropped(), 0);
    caller.kill().await.unwrap();
    eventually("the handler of a caller that has gone is dropped", || async { long.dropped() == 1 }).await;
}

#[tokio::test]
async fn mcp_over_stdio_is_the_same_server() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().tool_kit(weather(&Arc::default()))).await;
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

/// A call of `echo_say` with so many bytes.
fn long_call(id: u64, bytes: usize) -> String {
    let params = json!({ "name": "echo_say", "arguments": { "text": "x".repeat(bytes) } });
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params }).to_string() + "\n"
}

/// `echo_say`, which answers its `text`.
fn echo() -> ToolKit {
    let schema = json!({ "type": "object", "properties": { "text": { "type": "string" } } });
    let say = HostTool::new("Says \x1b[31mit", schema, |mut input: Value| async move {
        Ok::<_, String>(input["text"].take())
    });
    ToolKit::new("echo", "Says it again").tool("say", say)
}

#[tokio::test]
async fn what_is_no_request_on_stdio_is_answered_and_what_is_too_long_is_an_error() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().tool_kit(echo())).await;
    let said = "garbage\n".to_owned() + &long_call(1, 3);
    let answered = within("the answers", vm.exec("agentos-tools mcp").stdin(said)).await.unwrap();
    let answers = text(&answered.stdout);
    assert!(answers.contains("-32700") && answers.contains(r#""id":null"#), "{answers}");
    assert!(answers.contains(r#""text":"xxx""#), "{answers}");
    let refused = within("the end", vm.exec("agentos-tools mcp").stdin(long_call(1, 2 << 20))).await.unwrap();
    assert_eq!(refused.exit_code(), 2, "{refused:?}");
    assert!(text(&refused.stderr).contains("too long"), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn nothing_that_is_said_controls_a_terminal() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().tool_kit(echo())).await;
    let say = r#"agentos-tools call echo_say '{"text": "\u001b[2Jit"}'"#;
    assert_eq!(text(&sh(&vm, say).await.stdout), "\x1b[2Jit\n", "programs get it as it is");
    for shown in [say, "agentos-tools describe echo_say", "agentos-tools list"] {
        const TERMINAL: &str =
            r#"exec python3 -c 'import os, pty; pty.spawn(["sh", "-c", os.environ["SHOWN"]])'"#;
        let shown = within("what is shown", vm.exec(TERMINAL).env("SHOWN", shown)).await.unwrap();
        let shown = text(&shown.stdout);
        assert!(shown.contains("^[["), "{shown:?}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
    }
}

/// Sends sixteen requests that are many times as large in memory as they are on the way, and prints the answers' codes.
const INFLATED: &str = r#"exec python3 -c '
import http.client, threading
body = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"echo_say\",\"arguments\":{\"a\":[" \
    + ",".join(["{\"\":0}"] * 140000) + "]}}}"
def ask():
    c = http.client.HTTPConnection("127.0.0.1", 41415)
    c.request("POST", "/mcp", body, {"content-type": "application/json", "accept": "application/json, text/event-stream"})
    print(c.getresponse().status)
asking = [threading.Thread(target=ask) for _ in range(16)]
for t in asking: t.start()
for t in asking: t.join()
'"#;

#[tokio::test]
async fn a_request_does_not_grow_in_the_sidecar() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().tool_kit(echo())).await;
    let most_before = world.memory_kib("VmHWM");
    let refused = sh(&vm, INFLATED).await;
    assert_eq!(text(&refused.stdout), "413\n".repeat(16), "{}", text(&refused.stderr));
    let grown = world.memory_kib("VmHWM") - most_before;
    assert!(grown < 100 << 10, "the sidecar has grown by {grown} KiB");
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

#[tokio::test]
async fn a_vm_without_host_tools_has_no_command_for_them() {
    let world = World::new().await;
    let vm = world.vm().await;
    assert_eq!(sh(&vm, "agentos-tools list").await.exit_code(), 127);
    assert!(!vm.exists("/opt/agentos/bin").await.unwrap());
}

#[tokio::test]
async fn tools_end_with_the_program_that_offers_them_though_its_vm_goes_on() {
    let world = World::new().await;
    let options = world.options().tool_kit(weather(&Arc::default())).detached("kept");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.spawn(async move { AgentOs::create(options).await.map(drop) }).await.unwrap().unwrap();
    let vm = world.sidecar.attach("kept").await.unwrap();
    let call = r#"agentos-tools call weather_forecast '{"city":"Oslo"}'"#;
    assert_eq!(sh(&vm, call).await.exit_code(), 0, "its handles are gone, its program is there");
    runtime.shutdown_background();
    eventually("nobody serves the tools", || async {
        let called = sh(&vm, call).await;
        called.exit_code() == 1 && text(&called.stderr).contains("the application that offers the host tools")
    })
    .await;
    assert_eq!(sh(&vm, "agentos-tools list").await.exit_code(), 0);
    vm.dispose().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_too_long_and_an_input_that_is_too_long_are_errors_and_the_next_call_works() {
    let world = World::new().await;
    let schema = json!({ "type": "object" });
    let repeat = HostTool::new("Repeats x", schema, |input: Value| async move {
        Ok::<_, String>("x".repeat(input["times"].as_u64().unwrap_or(1) as usize))
    });
    let kit = ToolKit::new("echo", "Says it again").tool("repeat", repeat);
    let vm = world.vm_with(world.options().tool_kit(kit)).await;
    let long = sh(&vm, r#"agentos-tools call echo_repeat '{"times": 5000000}'"#).await;
    assert_eq!(long.exit_code(), 1);
    assert!(text(&long.stderr).contains("of at most 1048576"), "{}", text(&long.stderr));
    let input = format!("{{\"x\": \"{}\"}}", "y".repeat(2 << 20));
    let refused =
        within("the refusal", vm.exec("agentos-tools call echo_repeat -").stdin(input)).await.unwrap();
    assert_eq!(refused.exit_code(), 2, "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("too long"), "{}", text(&refused.stderr));
    assert_eq!(text(&sh(&vm, "agentos-tools call echo_repeat").await.stdout), "x\n");
}

/// Many connections that say nothing, and what is no HTTP, no MCP, or not finished.
const GARBAGE: &str = r#"exec python3 -c '
import socket
def say(text):
    s = socket.create_connection(("127.0.0.1", 41415))
    try: s.sendall(text)
    except OSError: pass
    return s
post = b"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" \
    b"accept: application/json, text/event-stream\r\ncontent-length: "
silent = [say(b"") for _ in range(150)]
for s in silent: s.close()
for text in [bytes(range(256)) * 400, b"GET / HTTP/1.1\r\n\r\n", post + b"1\r\n\r\n[", post + b"99999999999\r\n\r\n{",
             post + b"2\r\n\r\n[]", post + b"7\r\n\r\n{\"a\":1}", b"X" * (1 << 20)]:
    say(text).close()
'"#;

#[tokio::test]
async fn garbage_at_the_servers_door_changes_nothing() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().tool_kit(weather(&Arc::default()))).await;
    let called = sh(&vm, GARBAGE).await;
    assert_eq!(called.exit_code(), 0, "{}", text(&called.stderr));
    let called = sh(&vm, r#"agentos-tools call weather_forecast '{"city":"Oslo"}'"#).await;
    assert_eq!(text(&called.stdout), "sunny in Oslo\n");
}

/// As many connections as are served at once, all silent, then one more that calls a tool, and at last one fewer.
const CROWDED: &str = r#"exec python3 -c '
import http.client, select, socket
held = [socket.create_connection(("127.0.0.1", 41415)) for _ in range(64)]
body = """{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"weather_forecast","arguments":{"city":"Oslo"}}}"""
c = http.client.HTTPConnection("127.0.0.1", 41415)
c.request("POST", "/mcp", body, {"content-type": "application/json", "accept": "application/json, text/event-stream"})
print("answered" if select.select([c.sock], [], [], 1)[0] else "waits")
held.pop().close()
print(c.getresponse().read().decode())
'"#;

#[tokio::test]
async fn a_call_waits_while_others_hold_all_connections() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().tool_kit(weather(&Arc::default()))).await;
    let called = sh(&vm, CROWDED).await;
    let said = text(&called.stdout);
    assert!(said.starts_with("waits\n") && said.contains("sunny in Oslo"), "{said}{}", text(&called.stderr));
}

/// A call of `weather_forecast`, as a program without any library says it.
fn raw_call() -> String {
    let params = json!({ "name": "weather_forecast", "arguments": { "city": "Oslo" } });
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string();
    let length = call.len();
    format!(
        "POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:41415\r\nconnection: close\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {length}\r\n\r\n{call}"
    )
}

/// Sends its input there, and prints what comes back.
const SAY: &str = r#"exec python3 -c '
import socket, sys
s = socket.create_connection(("127.0.0.1", 41415), timeout=5)
s.sendall(sys.stdin.buffer.read())
while piece := s.recv(4096): print(piece.decode(errors="replace"), flush=True)
'"#;

#[tokio::test]
async fn the_tools_of_a_vm_are_reached_from_nowhere_else() {
    let world = World::new().await;
    let calls = Arc::default();
    let with_tools = world.vm_with(world.options().tool_kit(weather(&calls))).await;
    let other = world.vm_with(world.options().loopback_exempt_port(41_415)).await;
    let said_in = |vm: &AgentOs| vm.exec(SAY).stdin(raw_call());
    let inside = within("an answer", said_in(&with_tools)).await.unwrap();
    assert!(text(&inside.stdout).contains("sunny in Oslo"), "{inside:?}");
    // From another VM, not by way of the host either, and from the host, where the port may be anybody's.
    let beside = within("an answer, or none", said_in(&other)).await.unwrap();
    assert!(!text(&beside.stdout).contains("sunny in Oslo"), "{beside:?}");
    let mut heard = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", 41_415)).await {
        let said = async {
            stream.write_all(raw_call().as_bytes()).await?;
            stream.read_to_end(&mut heard).await
        };
        // A stranger may answer or not.
        let _ = tokio::time::timeout(Duration::from_secs(5), said).await;
    }
    assert!(!text(&heard).contains("sunny in Oslo"), "{}", text(&heard));
    assert_eq!(calls.load(Ordering::SeqCst), 1, "the one from inside");
}

#[tokio::test]
async fn the_command_needs_its_place_below_opt() {
    let world = World::new().await;
    let host = tempfile::tempdir().unwrap();
    let options = |mount: Mount| world.options().mount("/opt", mount).tool_kit(weather(&Arc::default()));
    let refused = AgentOs::create(options(Mount::host_dir(host.path()))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    assert!(refused.to_string().contains("/opt/agentos/bin/agentos-tools"), "{refused}");
    assert_eq!(world.sidecar.list_vms().await.unwrap(), []);
    // The VM that was refused has given back all that it had: its storage, for one.
    let state = tempfile::tempdir().unwrap();
    let options = |mount: Mount| options(mount).storage(Storage::directory(state.path().join("kept")));
    for _ in 0..3 {
        let refused = AgentOs::create(options(Mount::host_dir(host.path()))).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{refused}");
    }
    let vm = world.vm_with(options(Mount::host_dir(host.path()).read_write())).await;
    assert_eq!(sh(&vm, "agentos-tools list").await.exit_code(), 0);
}

/// Asks ten times for a tool whose name is half a megabyte long, and as often as a host with such a name.
const LONG_NAMES: &str = r#"exec python3 -c '
import http.client
body = "{\"jsonrpc\":\"2.0\",\"id\":\"" + "i" * 400000 + "\",\"method\":\"tools/call\",\"params\":{\"name\":\"" + "n" * 500000 + "\"}}"
for host in ["localhost", "h" * 50000] * 10:
    c = http.client.HTTPConnection("127.0.0.1", 41415)
    c.request("POST", "/mcp", body, {"host": host, "content-type": "application/json",
        "accept": "application/json, text/event-stream"})
    print(c.getresponse().status)
'"#;

#[tokio::test]
async fn what_a_guest_says_does_not_fill_the_sidecars_log() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().tool_kit(weather(&Arc::default()))).await;
    let asked = sh(&vm, LONG_NAMES).await;
    assert_eq!(text(&asked.stdout), "200\n403\n".repeat(10), "{}", text(&asked.stderr));
    let files = std::fs::read_dir(world.runtime_dir()).unwrap().flatten();
    let logs: Vec<_> = files.filter(|file| file.path().extension().is_some_and(|end| end == "log")).collect();
    assert_eq!(logs.len(), 1);
    let bytes = logs[0].metadata().unwrap().len();
    assert!(bytes < 64 << 10, "the log has {bytes} bytes");
}
