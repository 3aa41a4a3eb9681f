//! From a name to a sidecar that answered: connect to the one that runs, or start one and connect to that.
//!
//! ```text
//! connect ──ok──► Hello ──same version──► Greeted
//!    │nobody home      └─gone meanwhile─► again, a few times
//!    ▼
//! lock ─► connect again (another client was faster) ─► start ─► "ready" on its stdout ─► connect
//! ```
//!
//! The start lock makes one of many simultaneous clients start the sidecar and the others find it. A sidecar that is
//! just ending may still accept a connection and then drop it: that is the case for "again".

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agentos_proto::rendezvous::{LockFile, Rendezvous};
use agentos_proto::v1::{HelloRequest, HelloResponse};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::connection::{Connection, DialError};
use crate::discovery::{DiscoverError, find_binary};
use crate::secret::is_provider_key;

/// The version both sides must agree on.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A sidecar that is ending needs a moment to take its socket away; each attempt waits a little longer.
const ATTEMPTS: u32 = 6;
const PAUSE_BETWEEN_ATTEMPTS: Duration = Duration::from_millis(10);
/// Starting takes tens of milliseconds; a machine under heavy load may take seconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Enough of the log to see a panic with its message.
const LOG_TAIL_BYTES: u64 = 2048;

#[derive(Debug, Error)]
pub(crate) enum LaunchError {
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("cannot take the start lock {}", .path.display())]
    Lock { path: PathBuf, source: std::io::Error },
    #[error("cannot open the sidecar's log {}", .path.display())]
    Log { path: PathBuf, source: std::io::Error },
    #[error("cannot start {}", .binary.display())]
    Start { binary: PathBuf, source: std::io::Error },
    #[error("{} sidecar {outcome}{}", .binary.display(), quote_log(.log_tail))]
    NotReady { binary: PathBuf, outcome: StartOutcome, log_tail: String },
    #[error(
        "the running sidecar is version {theirs} and this client is version {ours}; dispose its VMs or use another \
         pool"
    )]
    Version { ours: &'static str, theirs: String },
    #[error("the sidecar did not answer the first call")]
    Hello { source: tonic::Status },
    #[error("no sidecar is running")]
    NotRunning,
}

#[derive(Debug, Clone, Copy, Error)]
pub(crate) enum StartOutcome {
    #[error("ended before it was ready")]
    Ended,
    #[error("was not ready after {} s", START_TIMEOUT.as_secs())]
    TimedOut,
}

fn quote_log(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!("; its log ends: {tail}") }
}

/// Which sidecar, and how to start it where it doesn't run.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) rendezvous: Rendezvous,
    /// `--pool NAME` or `--id ID`.
    pub(crate) identity: [String; 2],
    pub(crate) binary: Option<PathBuf>,
}

/// A sidecar that answered with our own version.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) connection: Connection,
    pub(crate) hello: HelloResponse,
}

/// Connects to the sidecar, starting it first where it does not run.
pub(crate) async fn connect_or_start(target: &Target) -> Result<Greeted, LaunchError> {
    let mut attempt = 0;
    loop {
        let outcome = match Connection::dial(&target.rendezvous.socket).await {
            Err(error) if error.nobody_home() => start(target).await,
            Err(error) => Err(error.into()),
            Ok(connection) => Ok(connection),
        };
        let outcome = match outcome {
            Ok(connection) => greet(connection).await,
            Err(error) => Err(error),
        };
        attempt += 1;
        match outcome {
            Err(error) if error.is_race_with_an_end() && attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE_BETWEEN_ATTEMPTS * attempt).await;
            }
            outcome => return outcome,
        }
    }
}

/// Connects only to a sidecar that runs already.
pub(crate) async fn connect_running(target: &Target) -> Result<Greeted, LaunchError> {
    match Connection::dial(&target.rendezvous.socket).await {
        Ok(connection) => greet(connection).await,
        Err(error) if error.nobody_home() => Err(LaunchError::NotRunning),
        Err(error) => Err(error.into()),
    }
}

impl LaunchError {
    fn is_race_with_an_end(&self) -> bool {
        match self {
            Self::Hello { source } => source.details().is_empty(),
            Self::Dial(DialError::Handshake { .. }) => true,
            Self::Dial(error) => error.nobody_home(),
            _ => false,
        }
    }
}

async fn greet(connection: Connection) -> Result<Greeted, LaunchError> {
    let request = HelloRequest { client_version: VERSION.to_owned() };
    let hello = connection
        .sidecar()
        .hello(request)
        .await
        .map_err(|source| LaunchError::Hello { source })?
        .into_inner();
    if hello.sidecar_version != VERSION {
        return Err(LaunchError::Version { ours: VERSION, theirs: hello.sidecar_version });
    }
    Ok(Greeted { connection, hello })
}

/// Starts the sidecar under the start lock, unless somebody else did so while we waited for the lock.
async fn start(target: &Target) -> Result<Connection, LaunchError> {
    let lock_path = target.rendezvous.start_lock.clone();
    let lock_failed = |source| LaunchError::Lock { path: target.rendezvous.start_lock.clone(), source };
    let lock = tokio::task::spawn_blocking(move || LockFile::take(&lock_path))
        .await
        .map_err(|error| lock_failed(error.into()))?
        .map_err(lock_failed)?;
    match Connection::dial(&target.rendezvous.socket).await {
        Err(error) if error.nobody_home() => {}
        outcome => return Ok(outcome?),
    }
    spawn_and_wait(target).await?;
    let connection = Connection::dial(&target.rendezvous.socket).await?;
    drop(lock);
    Ok(connection)
}

async fn spawn_and_wait(target: &Target) -> Result<(), LaunchError> {
    let binary = find_binary(target.binary.as_deref())?;
    let log = open_log(&target.rendezvous.log)
        .map_err(|source| LaunchError::Log { path: target.rendezvous.log.clone(), source })?;
    let mut command = Command::new(&binary);
    // It would have them for as long as it runs, also when whoever started it is long gone.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_provider_key(name)) {
        command.env_remove(name);
    }
    let mut child = command
        .arg("sidecar")
        .arg("--socket")
        .arg(&target.rendezvous.socket)
        .args(&target.identity)
        // A daemon must not keep a directory of its first client busy.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // Ctrl-C in the client's terminal is for the client.
        .process_group(0)
        .spawn()
        .map_err(|source| LaunchError::Start { binary: binary.clone(), source })?;
    let not_ready = |outcome| LaunchError::NotReady {
        binary: binary.clone(),
        outcome,
        log_tail: log_tail(&target.rendezvous.log),
    };
    let stdout = child.stdout.take().ok_or_else(|| not_ready(StartOutcome::Ended))?;
    let ready = tokio::time::timeout(START_TIMEOUT, wait_for_ready(stdout)).await;
    // Reaps the sidecar when it ends; it outlives this client otherwise.
    let reaper = |mut child: tokio::process::Child| tokio::spawn(async move { child.wait().await });
    match ready {
        Ok(true) => {
            reaper(child);
            Ok(())
        }
        Ok(false) => {
            // It closed its stdout: let it finish writing why.
            let _ = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
            reaper(child);
            Err(not_ready(StartOutcome::Ended))
        }
        Err(_) => {
            // Nobody else knows of it yet; left alone it would serve a socket that no lock protects.
            let _ = child.start_kill();
            reaper(child);
            Err(not_ready(StartOutcome::TimedOut))
        }
    }
}

/// A new file at each start: a former sidecar of the name that is just ending must neither write into this one nor take
/// it for its own and remove it.
fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::File::options().create_new(true).append(true).mode(0o600).open(path),
    }
}

async fn wait_for_ready(stdout: tokio::process::ChildStdout) -> bool {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.starts_with("ready") {
            return true;
        }
    }
    false
}

/// The end of a sidecar's log, for errors; empty when there is none.
pub(crate) fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(tail)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}
