//! The scripted ACP agent (`examples/fake_acp_agent`) as a process, and a client without any intelligence for it.
#![allow(dead_code, reason = "each test executable uses its part")]

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const DEADLINE: Duration = Duration::from_secs(20);

/// The agent's program: named by the test run, or beside this executable.
pub(crate) fn program() -> PathBuf {
    let built = || {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().parent().unwrap().join("examples/fake_acp_agent")
    };
    let path = std::env::var_os("AGENTOS_TEST_FAKE_AGENT").map_or_else(built, PathBuf::from);
    assert!(path.exists(), "{} is not built: cargo build -p agentos-agents --examples", path.display());
    path
}

/// A recording of a real agent.
pub(crate) fn recording(name: &str) -> PathBuf {
    let crate_directory = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let crate_directory = crate_directory.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    crate_directory.join("tests/data/acp").join(name).with_extension("ndjson")
}

/// The recordings there are.
pub(crate) const RECORDINGS: [&str; 10] = [
    "claude",
    "claude-full",
    "codex",
    "codex-permission",
    "gemini",
    "gemini-permission",
    "opencode",
    "opencode-permission",
    "pi",
    "pi-acpinator",
];

/// The messages of a recording: whether the client sent it, and what it was.
pub(crate) fn messages(name: &str) -> Vec<(bool, Value)> {
    let text = std::fs::read_to_string(recording(name)).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.map(|entry| (entry["dir"] == "->", entry["msg"].clone())).collect()
}

/// A command that starts the agent with pipes; it dies with its handle.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A client that sends what it is told and reads line by line.
pub(crate) struct Raw {
    pub(crate) child: Child,
    pub(crate) input: Option<ChildStdin>,
    pub(crate) output: BufReader<ChildStdout>,
    next_id: u64,
    pub(crate) session: String,
}

impl Raw {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, next_id: 0, session: String::new() }
    }

    /// An agent with a session.
    pub(crate) async fn ready(arguments: &[&str]) -> Self {
        let mut raw = Self::start(arguments);
        let initialize = json!({ "protocolVersion": 1, "clientCapabilities": { "terminal": false } });
        raw.ask("initialize", initialize).await;
        let made = raw.ask("session/new", json!({ "cwd": "/tmp", "mcpServers": [] })).await;
        raw.session = made["result"]["sessionId"].as_str().unwrap().to_owned();
        raw
    }

    pub(crate) async fn send(&mut self, message: &Value) {
        let input = self.input.as_mut().unwrap();
        input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn bytes(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        let read = self.output.read_until(b'\n', &mut line);
        let count = tokio::time::timeout(DEADLINE, read).await.expect("the agent says something").unwrap();
        (count > 0).then_some(line)
    }

    pub(crate) async fn message(&mut self) -> Value {
        let line = self.bytes().await.expect("the agent's output goes on");
        serde_json::from_slice(&line).unwrap()
    }

    pub(crate) async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = json!(self.next_id);
        self.next_id += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        id
    }

    /// A request and its answer; what comes before is lost.
    pub(crate) async fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.request(method, params).await;
        self.until(&id).await.1
    }

    /// What comes before the answer to a request, and the answer.
    pub(crate) async fn until(&mut self, id: &Value) -> (Vec<Value>, Value) {
        let mut before = Vec::new();
        loop {
            let message = self.message().await;
            if message["id"] == *id && message.get("method").is_none() {
                return (before, message);
            }
            before.push(message);
        }
    }

    pub(crate) async fn prompt(&mut self, text: &str) -> Value {
        let prompt = json!([{ "type": "text", "text": text }]);
        let session = self.session.clone();
        self.request("session/prompt", json!({ "sessionId": session, "prompt": prompt })).await
    }

    /// A whole turn: its messages, its text, its answer.
    pub(crate) async fn turn(&mut self, text: &str) -> (Vec<Value>, String, Value) {
        let id = self.prompt(text).await;
        let (messages, answer) = self.until(&id).await;
        let said = messages.iter().map(|message| &message["params"]["update"]);
        let said = said.filter(|update| update["sessionUpdate"] == "agent_message_chunk");
        let text = said.map(|update| update["content"]["text"].as_str().unwrap()).collect();
        (messages, text, answer)
    }

    pub(crate) async fn cancel(&mut self) {
        let params = json!({ "sessionId": self.session });
        self.send(&json!({ "jsonrpc": "2.0", "method": "session/cancel", "params": params })).await;
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(DEADLINE, self.child.wait()).await.expect("the agent ends").unwrap()
    }

    /// What it wrote to stderr, once it has ended.
    pub(crate) async fn log(&mut self) -> String {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
        log
    }
}

/// Waits until a process is gone.
pub(crate) async fn wait_until_gone(pid: &str) {
    let until = tokio::time::Instant::now() + DEADLINE;
    while is_running(pid) {
        assert!(tokio::time::Instant::now() < until, "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
