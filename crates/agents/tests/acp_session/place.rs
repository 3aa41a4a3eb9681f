//! A home for sessions, the scripted agent as their process, and a sentinel beside them.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::time::Duration;

use agentos_agents::model::{ModelChoice, ModelKind};
use agentos_agents::plan::{AcpSetup, LaunchPlan};
use agentos_agents::registry::Launch;
use agentos_agents::session::{
    Former, PermissionSetup, Prompt, PromptError, PromptReply, SessionStart, StartError, Workspace,
};
use agentos_agents::transcript::SessionDetails;
use agentos_agents::{AgentExit, AgentProcess, Session, SessionId, Transcripts};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fake_acp;

/// Nothing here may take longer, on a machine that does other things too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

const DATABASE: &str = "sessions.db";

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// A home with its transcripts.
pub(crate) struct Place {
    home: tempfile::TempDir,
    pub(crate) transcripts: Transcripts,
}

/// What a session is started with, beside the agent's flags.
#[derive(Default)]
pub(crate) struct With {
    pub(crate) acp: AcpSetup,
    pub(crate) permissions: PermissionSetup,
    pub(crate) workspace: Option<Arc<dyn Workspace>>,
    pub(crate) former: Option<Former>,
}

/// The agent's process, seen from beside its session.
pub(crate) struct Witness {
    pub(crate) pid: String,
    log: watch::Receiver<String>,
}

impl Witness {
    /// Waits until the agent has logged this.
    pub(crate) async fn logged(&mut self, text: &str) {
        let found = self.log.wait_for(|log| log.contains(text));
        drop(soon("the agent's log", found).await.unwrap());
    }

    pub(crate) async fn gone(&self) {
        fake_acp::wait_until_gone(&self.pid).await;
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::open(&home.path().join(DATABASE)).unwrap();
        Self { home, transcripts }
    }

    /// As long as this is held, nothing is written.
    pub(crate) fn block_disk(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.home.path().join(DATABASE)).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection
    }

    pub(crate) fn start(
        &self,
        flags: &[&str],
        with: With,
    ) -> (Witness, impl Future<Output = Result<Session, StartError>> + Send + use<>) {
        let (process, witness) = process(flags);
        let transcripts = self.transcripts.clone();
        let starting = async move {
            let plan = plan(with.acp);
            let start = SessionStart {
                id: with.former.as_ref().map_or_else(SessionId::new, |former| SessionId::of(&former.stored)),
                owner: "vm-1".to_owned(),
                attempt: 1,
                agent_type: "fake".to_owned(),
                plan: &plan,
                process,
                model: ModelChoice { kind: ModelKind::Demo, reason: "a test".to_owned() },
                install: None,
                transcripts,
                permissions: with.permissions,
                workspace: with.workspace,
                details: SessionDetails::default(),
                former: with.former,
            };
            Session::start(start).await
        };
        (witness, starting)
    }

    /// A session with an agent that has these flags.
    pub(crate) async fn ready(&self, flags: &[&str]) -> (Session, Witness) {
        self.ready_with(flags, With::default()).await
    }

    pub(crate) async fn ready_with(&self, flags: &[&str], with: With) -> (Session, Witness) {
        let (witness, starting) = self.start(flags, with);
        (soon("the start", starting).await.unwrap(), witness)
    }

    /// A session whose agent behaves.
    pub(crate) async fn sentinel(&self) -> Sentinel {
        let (session, witness) = self.ready(&[]).await;
        Sentinel { session, _witness: witness }
    }
}

/// A session beside the one that is in trouble.
pub(crate) struct Sentinel {
    session: Session,
    _witness: Witness,
}

impl Sentinel {
    /// It answers as if nothing had happened.
    pub(crate) async fn goes_on(&self) {
        let reply = soon("the sentinel", self.session.prompt(Prompt::text("all well?"))).await.unwrap();
        assert_eq!(reply.text, "heard: all well?");
    }
}

/// The agent as a process of its own group.
fn process(flags: &[&str]) -> (AgentProcess, Witness) {
    let mut child = fake_acp::command(flags).process_group(0).spawn().unwrap();
    let pid = child.id().unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (log, heard) = watch::channel(String::new());
    let (mut copy, stderr) = tokio::io::duplex(64 << 10);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            log.send_modify(|log| log.push_str(&line));
            if copy.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                break;
            }
        }
    });
    let process = AgentProcess {
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
        exit: Box::pin(async move {
            let status = child.wait().await.unwrap();
            AgentExit { code: status.code(), signal: status.signal() }
        }),
        kill: Box::new(move || {
            let group = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            // Refused when nothing of it is left.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }),
    };
    (process, Witness { pid: pid.to_string(), log: heard })
}

fn plan(acp: AcpSetup) -> LaunchPlan {
    LaunchPlan {
        argv: vec!["/fake".to_owned()],
        env: BTreeMap::new(),
        cwd: "/work".to_owned(),
        mounts: Vec::new(),
        state_dir: None,
        files: Vec::new(),
        path_dirs: Vec::new(),
        launch: Launch::Acp,
        acp,
        agent_version: None,
        state: Vec::new(),
    }
}

/// A prompt on its way.
pub(crate) fn prompting(session: &Session, text: &str) -> JoinHandle<Result<PromptReply, PromptError>> {
    let (session, prompt) = (session.clone(), Prompt::text(text));
    tokio::spawn(async move { session.prompt(prompt).await })
}

/// Waits until the session has kept an event with this text. It has gone on to wait then for its agent, which may have the
/// prompt before the event of it is kept, or for its own deadlines.
pub(crate) async fn kept(session: &Session, text: &str) {
    let mut events = session.events(0);
    let kept = async { while !events.next().await.unwrap().unwrap().notification.contains(text) {} };
    soon(text, kept).await;
}

/// A whole turn.
pub(crate) async fn turn(session: &Session, text: &str) -> Result<PromptReply, PromptError> {
    soon(text, session.prompt(Prompt::text(text))).await
}

/// What a turn's text says, line by line, as JSON.
pub(crate) async fn told(session: &Session, text: &str) -> Vec<Value> {
    let reply = turn(session, text).await.unwrap();
    reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All events there are, as JSON; the session goes on.
pub(crate) async fn events(place: &Place, session: &Session) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let since = all.len() as u64 + 1;
        let page = place.transcripts.history(session.id().as_str(), since, 1000).await.unwrap();
        if page.is_empty() {
            return all;
        }
        assert!(page.iter().map(|event| event.sequence).eq(since..since + page.len() as u64), "no gap");
        all.extend(page.iter().map(|event| serde_json::from_str::<Value>(&event.notification).unwrap()));
    }
}
