//! A pi made of a script: the other side of a session's pipes, in the test's hands.

use std::collections::BTreeMap;
use std::time::Duration;

use agentos_agents::model::{ModelChoice, ModelKind};
use agentos_agents::plan::{AcpSetup, LaunchPlan};
use agentos_agents::registry::Launch;
use agentos_agents::session::{PermissionSetup, SessionStart, StartError};
use agentos_agents::store::InstallRecord;
use agentos_agents::transcript::{Event, SessionDetails};
use agentos_agents::{AgentExit, AgentProcess, Session, SessionId, Transcripts};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// What the pipes between them hold; small, so that whoever doesn't read is felt.
const PIPE_BYTES: usize = 64 << 10;

pub(crate) struct FakePi {
    input: tokio::io::Lines<BufReader<DuplexStream>>,
    output: DuplexStream,
    log: Option<DuplexStream>,
    exit: Option<oneshot::Sender<AgentExit>>,
    killed: watch::Receiver<bool>,
}

/// A home with its transcripts.
pub(crate) struct Place {
    home: tempfile::TempDir,
    pub(crate) transcripts: Transcripts,
}

impl Place {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::open(&home.path().join("sessions.db")).unwrap();
        Self { home, transcripts }
    }

    /// The same transcripts through another connection.
    pub(crate) fn reopened(&self) -> Transcripts {
        Transcripts::open(&self.home.path().join("sessions.db")).unwrap()
    }

    pub(crate) async fn ready(&self) -> (Session, FakePi) {
        self.ready_after(None).await
    }

    /// A session with a pi that knows these models.
    pub(crate) async fn ready_with(&self, models: Value) -> (Session, FakePi) {
        let (mut pi, starting) = self.start(None);
        pi.introduce(models).await;
        (starting.await.unwrap().unwrap(), pi)
    }

    pub(crate) async fn ready_after(&self, install: Option<InstallRecord>) -> (Session, FakePi) {
        let (mut pi, starting) = self.start(install);
        pi.introduce(json!({ "models": [{ "provider": "p", "id": "m", "name": "M" }] })).await;
        (starting.await.unwrap().unwrap(), pi)
    }

    pub(crate) fn starting(&self) -> (FakePi, JoinHandle<Result<Session, StartError>>) {
        self.start(None)
    }

    fn start(&self, install: Option<InstallRecord>) -> (FakePi, JoinHandle<Result<Session, StartError>>) {
        let (pi, process) = FakePi::new();
        let transcripts = self.transcripts.clone();
        let starting = tokio::spawn(async move {
            let plan = plan();
            let start = SessionStart {
                id: SessionId::new(),
                owner: "vm-1".to_owned(),
                attempt: 1,
                agent_type: "pi".to_owned(),
                plan: &plan,
                process,
                model: ModelChoice { kind: ModelKind::Demo, reason: "a test".to_owned() },
                install,
                transcripts,
                permissions: PermissionSetup::default(),
                workspace: None,
                details: SessionDetails::default(),
                former: None,
            };
            Session::start(start).await
        });
        (pi, starting)
    }
}

fn plan() -> LaunchPlan {
    LaunchPlan {
        argv: vec!["/pi".to_owned()],
        env: BTreeMap::new(),
        cwd: "/work".to_owned(),
        mounts: Vec::new(),
        state: Vec::new(),
        state_dir: None,
        files: Vec::new(),
        path_dirs: Vec::new(),
        launch: Launch::PiRpc,
        acp: AcpSetup::default(),
        agent_version: None,
    }
}

impl FakePi {
    fn new() -> (Self, AgentProcess) {
        let (stdin, input) = tokio::io::duplex(PIPE_BYTES);
        let (output, stdout) = tokio::io::duplex(PIPE_BYTES);
        let (log, stderr) = tokio::io::duplex(PIPE_BYTES);
        let (exit, exited) = oneshot::channel();
        let (kill, killed) = watch::channel(false);
        let mut dying = killed.clone();
        let process = AgentProcess {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            exit: Box::pin(async move {
                tokio::select! {
                    Ok(exit) = exited => exit,
                    Ok(_) = dying.wait_for(|dead| *dead) => AgentExit { code: None, signal: Some(9) },
                }
            }),
            kill: Box::new(move || {
                let _ = kill.send(true);
            }),
        };
        let input = BufReader::new(input).lines();
        (Self { input, output, log: Some(log), exit: Some(exit), killed }, process)
    }

    /// Answers the four questions of a start.
    pub(crate) async fn introduce(&mut self, models: Value) {
        for (question, data) in [
            (
                "get_state",
                json!({ "sessionId": "pi-1", "thinkingLevel": "off", "model": { "provider": "p", "id": "m" } }),
            ),
            ("get_available_models", models),
            ("get_available_thinking_levels", json!({ "levels": ["off", "low"] })),
            ("get_commands", json!({ "commands": [] })),
        ] {
            let question = self.expect(question).await;
            self.answer(&question, Ok(data)).await;
        }
    }

    /// The next command; `None` at the end of the input.
    pub(crate) async fn next_record(&mut self) -> Option<Value> {
        let line = tokio::time::timeout(Duration::from_secs(20), self.input.next_line()).await;
        let line = line.expect("the session sends something").unwrap()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    pub(crate) async fn record(&mut self) -> Value {
        self.next_record().await.expect("the input goes on")
    }

    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        let record = self.record().await;
        assert_eq!(record["type"], kind, "{record}");
        record
    }

    /// The next prompt after a cancelled one, which it may have been told again to abort.
    pub(crate) async fn next_prompt(&mut self) -> Value {
        loop {
            let record = self.record().await;
            if record["type"] != "abort" {
                assert_eq!(record["type"], "prompt", "{record}");
                return record;
            }
        }
    }

    pub(crate) async fn try_raw(&mut self, bytes: &[u8]) -> bool {
        self.output.write_all(bytes).await.is_ok()
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        assert!(self.try_raw(bytes).await, "the session reads");
    }

    pub(crate) async fn say(&mut self, record: &Value) {
        self.raw(format!("{record}\n").as_bytes()).await;
    }

    pub(crate) async fn answer(&mut self, command: &Value, outcome: Result<Value, &str>) {
        let mut response = json!({ "type": "response", "command": command["type"], "id": command["id"] });
        match outcome {
            Ok(data) => {
                response["success"] = json!(true);
                response["data"] = data;
            }
            Err(reason) => {
                response["success"] = json!(false);
                response["error"] = json!(reason);
            }
        }
        self.say(&response).await;
    }

    pub(crate) async fn accept(&mut self, prompt: &Value) {
        self.answer(prompt, Ok(json!({ "disposition": "started" }))).await;
    }

    pub(crate) async fn text(&mut self, text: &str) {
        let event = json!({ "type": "text_delta", "contentIndex": 0, "delta": text });
        self.say(&json!({ "type": "message_update", "assistantMessageEvent": event })).await;
    }

    pub(crate) async fn settle(&mut self) {
        self.say(&json!({ "type": "agent_settled", "aborted": false })).await;
    }

    /// One assistant message in these pieces, and the end of the turn.
    pub(crate) async fn turn(&mut self, pieces: &[&str]) {
        self.say(&json!({ "type": "message_start", "message": { "role": "assistant" } })).await;
        for piece in pieces {
            self.text(piece).await;
        }
        self.say(&json!({ "type": "message_end", "message": { "role": "assistant", "stopReason": "stop" } }))
            .await;
        self.settle().await;
    }

    /// Returns when the session has understood everything said so far: a question of an extension is answered in turn.
    pub(crate) async fn after_all_is_read(&mut self) {
        self.say(&json!({ "type": "extension_ui_request", "id": "sync", "method": "confirm" })).await;
        loop {
            if self.record().await["id"] == "sync" {
                return;
            }
        }
    }

    pub(crate) async fn log(&mut self, text: &str) {
        self.log.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
    }

    /// Exits, with all its pipes closed.
    pub(crate) async fn exit(&mut self, exit: AgentExit) {
        self.log = None;
        self.output.shutdown().await.unwrap();
        let _ = self.exit.take().unwrap().send(exit);
    }

    /// Resolves when the session has killed it.
    pub(crate) async fn killed(&self) -> bool {
        self.killed.clone().wait_for(|dead| *dead).await.is_ok()
    }
}

/// The first events of a session.
pub(crate) async fn events_of(session: &Session, count: usize) -> Vec<Event> {
    let mut events = session.events(1);
    let mut seen = Vec::new();
    while seen.len() < count {
        let event =
            tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("an event comes");
        seen.push(event.unwrap().unwrap());
    }
    seen
}

pub(crate) fn parse(event: &Event) -> Value {
    serde_json::from_str(&event.notification).unwrap()
}
