//! Sessions: one running agent each, its prompts, its events.
//!
//! ```text
//!              start                 prompt ⇄ settled               close, exit, fault
//! AgentProcess ─────► Starting ─────► Idle ⇄ Prompting ────────────► Closed
//!                        │ not ready, died      │ cancel: Cancelling, at most 2 s
//!                        └► StartError          └► Settling: answered, the agent isn't done yet (prompts are Busy),
//!                                                             at most 10 s, then the agent is ended
//! ```
//!
//! A session's state lives in one task ([`driver`]) behind a bounded queue; [`Session`] is a handle to it. The task
//! reads the agent's output as fast as its events reach the disk and no faster, so an agent that floods is slowed by
//! its own pipe. Dropping a prompt's future cancels the turn; dropping the last handle closes the session. Prompts of
//! different sessions share nothing but the transcript writer.

mod driver;
mod error;
mod handshake;
mod link;
mod log;
mod permissions;
mod process;
mod running;
mod state;
mod turn;
pub mod workspace;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

pub use error::{
    AgentExit, AgentFault, ContentError, FaultKind, PermissionError, PromptError, StartError, Trouble,
};
pub use log::Events;
pub use permissions::{PermissionRequests, PermissionSetup};
pub use process::AgentProcess;
pub use state::SessionState;
pub use workspace::Workspace;

use crate::model::{ModelChoice, ModelKind};
use crate::permission::PermissionReply;
use crate::plan::LaunchPlan;
use crate::registry::Launch;
use crate::store::InstallRecord;
use crate::transcript::{SessionDetails, SessionRecord, StoredSession, Transcripts, now_ms};
use crate::wire::pi::PiWire;
use crate::wire::{Wire, acp};
use driver::Driver;
use link::Link;
use log::EventLog;
use permissions::{Board, Desk};
use workspace::Client;

/// Requests that may wait for a session's task. Each is answered within milliseconds or queued nowhere else.
const QUEUE: usize = 32;

/// A session's id: ours, unique across VMs, hosts and restarts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }

    /// The id of a session that is kept.
    #[must_use]
    pub fn of(stored: &StoredSession) -> Self {
        Self(stored.id.clone())
    }

    /// As text: lower-case hex and dashes, fit for a file name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SessionId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// No live session has that id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Session not found: {id}")]
pub struct SessionNotFound {
    /// The id that was asked for.
    pub id: String,
}

/// What a session is started from.
#[derive(Debug)]
pub struct SessionStart<'a> {
    /// Its id; the plan was made for it.
    pub id: SessionId,
    /// Whose it is: a VM's id. Only compared, never read.
    pub owner: String,
    /// By which of its owner's attempts it is made. Only compared.
    pub attempt: u64,
    /// The agent's id.
    pub agent_type: String,
    /// The plan that the process was started by.
    pub plan: &'a LaunchPlan,
    /// The process.
    pub process: AgentProcess,
    /// The model it was planned for.
    pub model: ModelChoice,
    /// What had to be installed for it.
    pub install: Option<InstallRecord>,
    /// Where its events are kept.
    pub transcripts: Transcripts,
    /// Who answers what the agent asks.
    pub permissions: PermissionSetup,
    /// What the agent may have done for it; where it is absent such requests are refused.
    pub workspace: Option<Arc<dyn Workspace>>,
    /// What restoring it later needs, beyond what the agent says itself.
    pub details: SessionDetails,
    /// The session that is brought back.
    pub former: Option<Former>,
}

/// A session of the transcripts that goes on. [`SessionStart::id`] is its own.
#[derive(Debug, Clone)]
pub struct Former {
    /// What is kept of it.
    pub stored: StoredSession,
    /// The number of the last event that the agent's own files know of, where they were brought back.
    pub known_through: Option<u64>,
    /// Its working directory, where that is gone and the session goes on elsewhere.
    pub lost_cwd: Option<String>,
    /// What it was created with and has no more, in words.
    pub lost: Vec<String>,
    /// Why the agent is not asked for its own memory of it, where that was tried in vain: it is told the transcript.
    pub forgotten: Option<String>,
}

/// One prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// ACP content blocks.
    pub content: Vec<Value>,
    /// How long the agent may be silent while no tool runs; 10 minutes where it is absent.
    pub idle_timeout: Option<Duration>,
    /// How long the turn may take in all; as long as it likes where it is absent.
    pub timeout: Option<Duration>,
}

impl Prompt {
    /// A prompt of plain text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self { content: vec![json!({ "type": "text", "text": text })], ..Self::default() }
    }
}

/// How a prompt ended.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptReply {
    /// The agent's whole text.
    pub text: String,
    /// ACP's stop reason.
    pub stop_reason: String,
    /// The JSON-RPC response to `session/prompt`.
    pub response: Value,
    /// The model that answered.
    pub model: ModelKind,
    /// What the agent asked permission for and did not get, although nobody has said no.
    pub rejected_permissions: u32,
}

type Reply<T> = oneshot::Sender<Result<T, PromptError>>;

/// What a handle asks of its task.
#[derive(Debug)]
enum Request {
    Prompt { prompt: Prompt, reply: Reply<PromptReply> },
    Cancel { reply: oneshot::Sender<bool> },
    Raw { method: String, params: Value, reply: Reply<Value> },
    Permission { id: String, reply: PermissionReply, done: oneshot::Sender<Result<(), PermissionError>> },
    Close { graceful: bool },
}

/// What handles and the task share.
#[derive(Debug)]
struct Shared {
    id: SessionId,
    owner: String,
    attempt: u64,
    agent_type: String,
    model: ModelChoice,
    log: Arc<EventLog>,
    board: Arc<Board>,
    /// The number of the last event of the last turn that has ended.
    turns: watch::Sender<u64>,
    /// What the agent has said of itself; replaced whole, and locked for that alone.
    state: Mutex<Arc<SessionState>>,
    /// Set once, before the log is closed.
    fate: OnceLock<AgentFault>,
}

impl Shared {
    fn show(&self, state: SessionState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    fn fault(&self) -> AgentFault {
        self.fate.get().cloned().unwrap_or(AgentFault::Closed)
    }
}

/// A handle to a live session. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

impl Session {
    /// Takes over an agent's process, waits until it is ready and returns its session. The session's first events are
    /// its model and, where something had to be installed, the installation. On failure the process is killed, and
    /// neither then nor when the future is dropped does a transcript stay.
    pub async fn start(start: SessionStart<'_>) -> Result<Self, StartError> {
        let wire = match start.plan.launch {
            Launch::PiRpc => {
                Wire::Pi(Box::new(PiWire::new(&start.plan.cwd, start.plan.agent_version.as_deref())))
            }
            Launch::Acp => Wire::Acp,
        };
        let (id, transcripts) = (start.id.clone(), start.transcripts.clone());
        let (log, mut provisional) = match &start.former {
            None => (
                EventLog::new(id.clone(), transcripts.clone()),
                Some(Provisional { id, transcripts: Some(transcripts.clone()) }),
            ),
            // What is kept of it stays, whatever comes of this.
            Some(Former { stored, .. }) => {
                (EventLog::resume(id, transcripts.clone(), stored.events, stored.bytes), None)
            }
        };
        let log = Arc::new(log);
        let opening = Self::open_transcript(&start, &log);
        let shared = Arc::new(Shared {
            id: start.id.clone(),
            owner: start.owner.clone(),
            attempt: start.attempt,
            agent_type: start.agent_type.clone(),
            model: start.model.clone(),
            log: Arc::clone(&log),
            board: Arc::default(),
            turns: watch::Sender::default(),
            state: Mutex::default(),
            fate: OnceLock::new(),
        });
        // A few hundred microseconds, in which the agent is starting.
        if let Err(source) = opening.await {
            start.process.kill();
            return Err(StartError::Agent {
                agent: start.agent_type,
                source: AgentFault::Transcript(source),
            });
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        let desk = Desk::new(start.permissions, &start.plan.cwd, Arc::clone(&shared.board));
        let link = Link::new(start.process, wire);
        let mut driver = Driver::new(Arc::clone(&shared), link, desk, Client::new(start.workspace));
        let greeted = driver.greet(start.plan, start.former, (&transcripts, start.details)).await;
        if let Err(error) = greeted {
            // Gone before its transcript is, so that nothing of it is written afterwards.
            drop(driver);
            if let Some(provisional) = provisional.take() {
                provisional.forget().await;
            }
            return Err(error);
        }
        if let Some(provisional) = provisional {
            provisional.keep();
        }
        tokio::spawn(driver.run(queue));
        Ok(Self { shared, requests })
    }

    /// Takes what it needs out of `start` before it is polled: a process can't be shared between threads, so a
    /// future that borrowed it could not be sent to one.
    fn open_transcript<'a>(
        start: &SessionStart<'_>,
        log: &'a EventLog,
    ) -> impl Future<Output = Result<(), crate::transcript::TranscriptError>> + Send + use<'a> {
        let record = SessionRecord {
            id: start.id.to_string(),
            agent_type: start.agent_type.clone(),
            model: start.model.kind.as_str().to_owned(),
            created_ms: now_ms(),
        };
        let record = start.former.is_none().then_some(record);
        let transcripts = start.transcripts.clone();
        let model = json!({ "kind": start.model.kind.as_str(), "reason": start.model.reason });
        let mut first = vec![acp::notification("_agentos/model", &model)];
        if let Some(install) = &start.install {
            let params = json!({
                "packages": install.packages,
                "totalBytes": install.total_bytes,
                "place": install.place,
                "durationMs": u64::try_from(install.duration.as_millis()).unwrap_or(u64::MAX),
            });
            first.push(acp::notification("_agentos/install", &params));
        }
        async move {
            if let Some(record) = record {
                transcripts.begin(record).await?;
            }
            log.publish(first).await
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.shared.id
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.shared.owner
    }

    /// By which attempt it was made.
    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.shared.attempt
    }

    /// The agent's id.
    #[must_use]
    pub fn agent_type(&self) -> &str {
        &self.shared.agent_type
    }

    /// The model it talks to, and why.
    #[must_use]
    pub fn model(&self) -> &ModelChoice {
        &self.shared.model
    }

    /// What the agent says of itself and of the session, as it is now.
    #[must_use]
    pub fn state(&self) -> Arc<SessionState> {
        Arc::clone(&self.shared.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One turn of the agent. Dropping the future cancels the turn.
    pub async fn prompt(&self, prompt: Prompt) -> Result<PromptReply, PromptError> {
        self.state().takes(&prompt.content)?;
        self.ask(|reply| Request::Prompt { prompt, reply }).await
    }

    /// Cancels the running turn, which then ends as `cancelled`, within two seconds even if the agent doesn't answer.
    /// False where nothing was running.
    pub async fn cancel(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Cancel { reply }).await.is_err() {
            return false;
        }
        answer.await.unwrap_or(false)
    }

    /// An ACP request to the agent; the answer is the whole JSON-RPC response, its `error` included. Where `params` name no
    /// session, or this one by our id, methods that begin with `session/` get the agent's own id of it, but for
    /// `session/new` and `session/list`; any other method gets that in the place of our id alone.
    pub async fn raw_send(&self, method: &str, params: Value) -> Result<Value, PromptError> {
        let method = method.to_owned();
        self.ask(|reply| Request::Raw { method, params, reply }).await
    }

    /// What the agent asks permission for and waits for the host to decide. While a reader of them lives the session has
    /// somebody who answers; without one requests are rejected.
    #[must_use]
    pub fn permission_requests(&self) -> PermissionRequests {
        PermissionRequests::new(&self.shared.board)
    }

    /// Answers a request for permission; an id works once.
    pub async fn respond_permission(&self, id: &str, reply: PermissionReply) -> Result<(), PermissionError> {
        let (done, answer) = oneshot::channel();
        let not_found = || PermissionError::NotFound { id: id.to_owned() };
        let request = Request::Permission { id: id.to_owned(), reply, done };
        self.requests.send(request).await.map_err(|_| not_found())?;
        answer.await.unwrap_or_else(|_| Err(not_found()))
    }

    /// The number of the last event of the last turn that has ended; it changes with every one.
    #[must_use]
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.shared.turns.subscribe()
    }

    /// Ends the session: politely (the turn is cancelled, the agent gets time to exit) or at once. Returns when all its
    /// events are kept; its transcript stays. Closing it again is fine.
    pub async fn close(&self, graceful: bool) {
        // Refused when the task has ended by itself.
        let _ = self.requests.send(Request::Close { graceful }).await;
        self.shared.log.closed().await;
    }

    /// Resolves when the session is over, whatever ended it.
    pub async fn closed(&self) {
        self.shared.log.closed().await;
    }

    /// Why the session is over; `None` while it lives.
    #[must_use]
    pub fn fate(&self) -> Option<AgentFault> {
        self.shared.fate.get().cloned()
    }

    /// Its events from a sequence number on: stored ones first, live ones after.
    #[must_use]
    pub fn events(&self, since: u64) -> Events {
        Events::new(Arc::clone(&self.shared.log), since)
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, PromptError> {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(request(reply)).await.is_err() {
            self.shared.log.closed().await;
            return Err(self.shared.fault().into());
        }
        match answer.await {
            Ok(answer) => answer,
            // The task has dropped the request on its way out; the reason is there when it is.
            Err(_) => {
                self.shared.log.closed().await;
                Err(self.shared.fault().into())
            }
        }
    }
}

/// The transcript of a session that may never be; dropped, it is forgotten.
struct Provisional {
    id: SessionId,
    transcripts: Option<Transcripts>,
}

impl Provisional {
    fn keep(mut self) {
        self.transcripts = None;
    }

    async fn forget(mut self) {
        let Some(transcripts) = self.transcripts.clone() else { return };
        forget(&transcripts, &self.id).await;
        self.transcripts = None;
    }
}

impl Drop for Provisional {
    fn drop(&mut self) {
        let Some(transcripts) = self.transcripts.take() else { return };
        let id = self.id.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { forget(&transcripts, &id).await });
        }
    }
}

async fn forget(transcripts: &Transcripts, id: &SessionId) {
    if let Err(error) = transcripts.delete(id.as_str()).await {
        tracing::warn!(session = %id, %error, "the transcript of a session that never was stays");
    }
}

/// The live sessions of a sidecar. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    // Held for look-ups alone, never across an await.
    live: Arc<Mutex<HashMap<String, Session>>>,
}

impl Sessions {
    /// Adds a session.
    pub fn insert(&self, session: Session) {
        self.live().insert(session.id().to_string(), session);
    }

    /// The live session with this id.
    pub fn get(&self, id: &str) -> Result<Session, SessionNotFound> {
        self.live().get(id).cloned().ok_or_else(|| SessionNotFound { id: id.to_owned() })
    }

    /// The live sessions of one owner, in no order.
    #[must_use]
    pub fn list(&self, owner: &str) -> Vec<Session> {
        self.live().values().filter(|session| session.owner() == owner).cloned().collect()
    }

    /// Takes a session out; it is closed when its last handle goes.
    pub fn remove(&self, id: &str) -> Option<Session> {
        self.live().remove(id)
    }

    /// Takes this session out, and no other one that has its id by now.
    pub fn remove_this(&self, session: &Session) {
        let mut live = self.live();
        let id = session.id().as_str();
        if live.get(id).is_some_and(|found| Arc::ptr_eq(&found.shared, &session.shared)) {
            live.remove(id);
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
