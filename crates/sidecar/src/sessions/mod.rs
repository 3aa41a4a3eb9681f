//! Agents at work in VMs: what agentos_agents decides, done in a VM.
//!
//! ```text
//! find agent ─► choose model ─► install (once) ─► plan ─► mount, spawn (a `launch`) ─► Session ─► watched
//!                                                              │ failed or dropped         │ closed or agent gone
//!                                                              └────► undone ◄─────────────┘
//! ```
//! Undoing a launch kills every process of the session, daemons included, and removes its state directory. A session
//! whose agent has died is no longer listed; its calls say why, until it is closed or its VM goes.
//!
//! A session has its id before it stands ([`creation`]), so that it can be closed at any moment: by its caller, or with
//! its VM. What the sessions of one VM share belongs to the VM ([`guest`]).

mod create;
mod creation;
mod details;
mod guest;
mod instructions;
mod kept;
mod launch;
mod modules;
mod restore;
mod stdio;
mod workspace;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use agentos_agents::model::ModelWish;
use agentos_agents::plan::McpServer;
use agentos_agents::transcript::StoredSession;
use agentos_agents::{
    AgentConfig, Home, HomeError, Registry, Session, SessionId, Sessions, Store, Transcripts,
};
use agentos_proto::v1::ErrorKind;
use futures_util::future::join_all;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

pub(crate) use create::{CreateSession, PreparedInstructions};
pub(crate) use creation::Creation;
pub(crate) use guest::VmSessions;

use crate::demo_model::DemoModel;
use crate::errors::{self, Failure};
use crate::options::Config;
use crate::secrets::ProviderKey;
use instructions::Scratch;
use kept::KeptFiles;

/// Agents' modules that the user brings, looked at before the store.
const NODE_MODULES: &str = "/root/node_modules";

/// A session of a VM that is being disposed has this long to end by itself; the VM's end ends it anyway.
const CLOSE_DEADLINE: Duration = Duration::from_millis(300);

/// What every session of a VM starts from.
#[derive(Debug, Default)]
pub(crate) struct SessionDefaults {
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) instructions: String,
    pub(crate) model: ModelWish,
    pub(crate) agents: Vec<AgentConfig>,
    /// The providers' keys among the VM's secrets.
    pub(crate) keys: Vec<ProviderKey>,
}

/// A session on its way.
#[derive(Debug)]
struct OnItsWay {
    attempt: u64,
    /// Whether anybody has closed it before it stood.
    closed: bool,
}

/// All sessions of this sidecar.
#[derive(Debug)]
pub(crate) struct SessionHost {
    home: Result<Home, HomeError>,
    /// Opened at the first session: most sidecars never see one.
    transcripts: OnceCell<Transcripts>,
    live: Sessions,
    /// By id. Held for look-ups alone, and over the step from here to `live`, so that whoever looks for a session finds
    /// it in one of the two.
    creating: std::sync::Mutex<HashMap<String, OnItsWay>>,
    /// How many sessions were begun, new and former ones.
    attempts: AtomicU64,
    demo: DemoModel,
    runtime_dir: PathBuf,
    /// Made for the first session, too.
    scratch: OnceCell<Arc<Scratch>>,
    /// Installations whose compile cache this run has made or failed to make.
    warmed_up: Mutex<HashSet<String>>,
}

impl SessionHost {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            home: config.home.clone(),
            transcripts: OnceCell::new(),
            live: Sessions::default(),
            creating: std::sync::Mutex::default(),
            attempts: AtomicU64::new(0),
            demo: DemoModel::new(config.runtime_dir.clone()),
            runtime_dir: config.runtime_dir.clone(),
            scratch: OnceCell::new(),
            warmed_up: Mutex::new(HashSet::new()),
        }
    }

    pub(crate) fn registry(defaults: &SessionDefaults) -> Registry {
        Registry::with_configs(defaults.agents.clone())
    }

    fn home(&self) -> Result<&Home, Failure> {
        self.home.as_ref().map_err(|error| Failure::invalid("AGENTOS_HOME", error.to_string()))
    }

    pub(crate) fn store(&self) -> Result<Store, Failure> {
        Ok(Store::new(self.home()?.agents_dir()))
    }

    /// The directory for what an agent keeps of a session.
    fn session_dir(&self, id: &str) -> Result<PathBuf, Failure> {
        let not_an_id = || Failure::invalid(id, "that is no session's id");
        self.home()?.session_dir(id).ok_or_else(not_an_id)
    }

    pub(crate) async fn transcripts(&self) -> Result<&Transcripts, Failure> {
        let path = self.home()?.sessions_db();
        let open = || async {
            let opened = tokio::task::spawn_blocking(move || Transcripts::open(&path)).await;
            match opened {
                Ok(opened) => opened.map_err(Failure::from),
                Err(error) => Err(Failure::new(ErrorKind::Internal, "transcripts", error.to_string())),
            }
        };
        self.transcripts.get_or_try_init(open).await
    }

    /// Where the files lie that VMs are shown.
    async fn scratch(&self) -> Result<&Arc<Scratch>, Failure> {
        let runtime_dir = self.runtime_dir.clone();
        self.scratch.get_or_try_init(|| blocking(move || Scratch::make(&runtime_dir).map(Arc::new))).await
    }

    pub(crate) fn get(&self, id: &str) -> Result<Session, Failure> {
        Ok(self.live.get(id)?)
    }

    /// The sessions of a VM that go on.
    pub(crate) fn list(&self, vm_id: &str) -> Vec<Session> {
        let mut sessions = self.live.list(vm_id);
        sessions.retain(|session| session.fate().is_none());
        sessions
    }

    /// The number of the next attempt to make a session. One that is brought back is made more than once.
    pub(crate) fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends a session, also one that is still being made; with an attempt, only what came of that.
    pub(crate) async fn close_session(
        &self,
        id: &str,
        attempt: Option<u64>,
        graceful: bool,
    ) -> Result<(), Failure> {
        let is_meant = |found: u64| attempt.is_none_or(|attempt| attempt == found);
        let session = {
            let mut creating = self.creating();
            if let Some(on_its_way) = creating.get_mut(id) {
                on_its_way.closed |= is_meant(on_its_way.attempt);
                return Ok(());
            }
            self.get(id)?
        };
        if !is_meant(session.attempt()) {
            return Ok(());
        }
        // A task, because a caller that goes away must not leave one that is over among the live ones.
        let live = self.live.clone();
        let closing = tokio::spawn(async move {
            session.close(graceful).await;
            live.remove_this(&session);
        });
        // It fails where it panicked, and nothing more can be done then.
        let _ = closing.await;
        Ok(())
    }

    /// Whether a session is at work here, or on its way.
    pub(crate) fn is_live(&self, id: &str) -> bool {
        let on_its_way = self.creating().contains_key(id);
        on_its_way || self.live.get(id).is_ok_and(|session| session.fate().is_none())
    }

    /// The transcripts, where they hold this session, and what they hold of it.
    pub(crate) async fn stored(&self, id: &str) -> Result<(Transcripts, StoredSession), Failure> {
        let transcripts = self.transcripts().await?.clone();
        match transcripts.session(id).await? {
            Some(stored) => Ok((transcripts, stored)),
            None => Err(Failure::new(ErrorKind::NotFound, id, format!("Session not found: {id}"))),
        }
    }

    /// Removes all that is kept of a session, which is ended first; one that is still being made never stands.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Failure> {
        let (transcripts, stored) = self.stored(id).await?;
        let session = {
            let mut creating = self.creating();
            if let Some(on_its_way) = creating.get_mut(id) {
                on_its_way.closed = true;
            }
            self.live.remove(id)
        };
        if let Some(session) = session {
            session.close(false).await;
        }
        // Until the session is undone its agent's files may still be written.
        let _kept = KeptFiles::take(self, &SessionId::of(&stored)).await?;
        // The files first: what can't be removed can be asked for again as long as the session is listed.
        self.remove_files_of(id).await?;
        Ok(transcripts.delete(id).await?)
    }

    /// Removes what an agent has kept of a session.
    async fn remove_files_of(&self, id: &str) -> Result<(), Failure> {
        let files = self.session_dir(id)?;
        blocking(move || remove_files(&files)).await
    }

    /// Ends the sessions of a VM that is about to go. None is added any more: the registry has said so before.
    pub(crate) async fn close_all_of(&self, vm_id: &str) {
        let sessions = {
            // Whoever is just adding one has looked at the registry before it said so; it is waited for.
            let _adding = self.creating();
            self.live.list(vm_id)
        };
        let closing = join_all(sessions.iter().map(|session| session.close(false)));
        if timeout(CLOSE_DEADLINE, closing).await.is_err() {
            tracing::debug!(vm_id, "sessions end with their VM");
        }
        for session in sessions {
            self.live.remove_this(&session);
        }
    }

    fn creating(&self) -> std::sync::MutexGuard<'_, HashMap<String, OnItsWay>> {
        // Every change is one insert or one removal.
        self.creating.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_files(directory: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let path = directory.to_string_lossy();
            let message = format!("removing {path}: {error}");
            Err(match error.raw_os_error() {
                Some(errno) => Failure::system(errno, path, message),
                None => Failure::new(ErrorKind::Internal, path, message),
            })
        }
        _ => Ok(()),
    }
}

/// Small work on files of the host, off the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Failure::new(ErrorKind::Internal, "", errors::chain(&error))),
    }
}

/// A wish for tool servers, decoded.
pub(crate) type McpServers = Vec<McpServer>;

/// Whether this sidecar was told never to fall back on the demo model.
pub(crate) fn provider_required() -> bool {
    std::env::var_os("AGENTOS_MODEL").is_some_and(|value| value == "provider")
}

pub(crate) fn may_install() -> bool {
    std::env::var_os("AGENTOS_AGENT_INSTALL").is_none_or(|value| value != "never")
}
