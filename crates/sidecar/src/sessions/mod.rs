//! Agents at work in VMs: what agentos_agents decides, done in a VM.
//!
//! ```text
//! find agent ─► choose model ─► install (once) ─► plan ─► mount, spawn (a `launch`) ─► Session ─► watched
//!                                                              │ failed or dropped         │ closed or agent gone
//!                                                              └────► undone ◄─────────────┘
//! ```
//! Undoing a launch kills every process of the session, daemons included, and unmounts its state directory. A session
//! whose agent has died stays listed, so that its calls say why, until it is closed or its VM goes.

mod create;
mod launch;
mod stdio;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use agentos_agents::model::ModelWish;
use agentos_agents::plan::McpServer;
use agentos_agents::{AgentConfig, Home, HomeError, Registry, Session, Sessions, Store, Transcripts};
use agentos_proto::v1::ErrorKind;
use futures_util::future::join_all;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

pub(crate) use create::CreateSession;

use crate::demo_model::DemoModel;
use crate::errors::Failure;
use crate::options::Config;

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
}

/// What a VM sees already of what all its sessions share.
#[derive(Debug, Default)]
struct Prepared {
    packages: bool,
    instructions: bool,
}

/// All sessions of this sidecar.
#[derive(Debug)]
pub(crate) struct SessionHost {
    home: Result<Home, HomeError>,
    /// Opened at the first session: most sidecars never see one.
    transcripts: OnceCell<Transcripts>,
    live: Sessions,
    demo: DemoModel,
    /// What VMs see already.
    prepared: Mutex<HashMap<String, Prepared>>,
    /// Installations whose compile cache this run has made or failed to make.
    warmed_up: Mutex<HashSet<String>>,
}

impl SessionHost {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            home: config.home.clone(),
            transcripts: OnceCell::new(),
            live: Sessions::default(),
            demo: DemoModel::new(config.runtime_dir.clone()),
            prepared: Mutex::new(HashMap::new()),
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

    pub(crate) fn get(&self, id: &str) -> Result<Session, Failure> {
        Ok(self.live.get(id)?)
    }

    pub(crate) fn list(&self, vm_id: &str) -> Vec<Session> {
        self.live.list(vm_id)
    }

    pub(crate) async fn close_session(&self, id: &str, graceful: bool) -> Result<(), Failure> {
        let session = self.get(id)?;
        session.close(graceful).await;
        self.live.remove(id);
        Ok(())
    }

    /// The transcripts, where they hold this session.
    pub(crate) async fn stored(&self, id: &str) -> Result<Transcripts, Failure> {
        let transcripts = self.transcripts().await?.clone();
        match transcripts.session(id).await? {
            Some(_) => Ok(transcripts),
            None => Err(Failure::new(ErrorKind::NotFound, id, format!("Session not found: {id}"))),
        }
    }

    /// Removes all that is kept of a session, which is ended first.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Failure> {
        let transcripts = self.stored(id).await?;
        if let Some(session) = self.live.remove(id) {
            session.close(false).await;
        }
        transcripts.delete(id).await?;
        // A stored id is one that we made, so it names a directory and nothing above it.
        let directory = self.home()?.root().join("sessions").join(id);
        match tokio::fs::remove_dir_all(&directory).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %directory.display(), %error, "a deleted session's directory stays");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ends the sessions of a VM that is about to go, and forgets the VM.
    pub(crate) async fn close_all_of(&self, vm_id: &str) {
        let sessions = self.live.list(vm_id);
        let closing = join_all(sessions.iter().map(|session| session.close(false)));
        if timeout(CLOSE_DEADLINE, closing).await.is_err() {
            tracing::debug!(vm_id, "sessions end with their VM");
        }
        for session in sessions {
            self.live.remove(session.id().as_str());
        }
        self.prepared.lock().await.remove(vm_id);
        self.demo.forget(vm_id);
    }

    /// Ends what serves sessions.
    pub(crate) async fn close(&self) {
        self.demo.stop().await;
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
