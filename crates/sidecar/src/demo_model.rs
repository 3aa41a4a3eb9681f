//! The offline model, where a VM can reach it.
//!
//! ```text
//! agent in the VM ─► ADDRESS (init's listener) ─► forwarder ─► unix socket ─► `agentos demo-model`, a child process
//! ```
//! One process serves every VM. It is started for the first session that needs it and ends when the last forwarder of
//! a VM is gone. One forwarder per VM, kept by the VM's sessions until the VM goes.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use agentos_proto::v1::ErrorKind;
use agentos_vm::Vm;
use agentos_vm::network::NetworkError;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, copy_bidirectional};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::errors::{self, Failure};
use crate::guest_listener;
use crate::socket::LockFile;

/// Fixed, so that configuration files that agents keep stay true.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 41_414);

/// The process binds a socket and prints a line; the rest is a loaded machine.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Connections of one VM at a time: agents keep a few alive.
const CONNECTIONS_PER_VM: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoModelError {
    #[error("the demo model can't be started")]
    Start(#[source] io::Error),
    #[error("the demo model ended before it was ready")]
    Ended,
    #[error("the demo model was not ready within {} s", START_DEADLINE.as_secs())]
    TimedOut,
    #[error("the demo model can't be reached at {ADDRESS} in the VM")]
    Listen(#[source] NetworkError),
}

impl From<DemoModelError> for Failure {
    fn from(error: DemoModelError) -> Self {
        Self::new(ErrorKind::Model, "demo model", errors::chain(&error))
    }
}

#[derive(Debug)]
pub(crate) struct DemoModel {
    runtime_dir: PathBuf,
    // Held while the process starts, so that two sessions don't start two; no guest has a part in that.
    running: tokio::sync::Mutex<Weak<Running>>,
}

/// The way of one VM to the model. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Forwarder {
    model: Weak<Running>,
    task: JoinHandle<()>,
}

impl Forwarder {
    fn leads_to(&self, model: &Arc<Running>) -> bool {
        self.model.as_ptr() == Arc::as_ptr(model) && !self.task.is_finished()
    }

    /// Returns when the address in the VM is free again.
    async fn end(mut self) {
        self.task.abort();
        // Cancelled, which is what was wanted, or ended already.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DemoModel {
    pub(crate) fn new(runtime_dir: PathBuf) -> Self {
        Self { runtime_dir, running: Default::default() }
    }

    /// Makes the model reachable in a VM, whose way to it is in `current`, and says where.
    pub(crate) async fn serve(
        &self,
        vm: &Vm,
        current: &mut Option<Forwarder>,
    ) -> Result<String, DemoModelError> {
        let model = self.running().await?;
        let url = format!("http://{ADDRESS}");
        if current.as_ref().is_some_and(|forwarder| forwarder.leads_to(&model)) {
            return Ok(url);
        }
        // The way to a model that has died leads nowhere and holds the address.
        if let Some(former) = current.take() {
            former.end().await;
        }
        let listener = vm.listen(ADDRESS).await.map_err(DemoModelError::Listen)?;
        let (vm, target) = (vm.clone(), Arc::downgrade(&model));
        let task = tokio::spawn(async move {
            // The listener holds the VM's network namespace; it must not outlive the VM.
            let forward = guest_listener::serve(listener, CONNECTIONS_PER_VM, "demo model", |stream| {
                connect(stream, Arc::clone(&model))
            });
            tokio::select! {
                () = forward => {}
                _ = vm.gone() => {}
            }
        });
        *current = Some(Forwarder { model: target, task });
        Ok(url)
    }

    /// The process, started where there is none.
    async fn running(&self) -> Result<Arc<Running>, DemoModelError> {
        let mut current = self.running.lock().await;
        if let Some(model) = current.upgrade().filter(|model| model.is_alive()) {
            return Ok(model);
        }
        let model = Arc::new(Running::start(&self.runtime_dir).await?);
        *current = Arc::downgrade(&model);
        Ok(model)
    }
}

/// The child process. It is killed when this is dropped, and sees the end of its stdin when the sidecar is.
#[derive(Debug)]
struct Running {
    child: Mutex<Child>,
    socket: PathBuf,
    _lock: LockFile,
}

impl Running {
    async fn start(runtime_dir: &Path) -> Result<Self, DemoModelError> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let socket = runtime_dir.join(format!("demo-{}.sock", name.get(..8).unwrap_or_default()));
        let lock = LockFile::beside(&socket)
            .and_then(|lock| lock.ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse)))
            .map_err(DemoModelError::Start)?;
        let mut listen = OsString::from("unix:");
        listen.push(&socket);
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("agentos")
            .args(["demo-model", "--exit-with-stdin", "--listen"])
            .arg(listen)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(log) = std::env::var_os("AGENTOS_DEMO_MODEL_LOG").filter(|path| !path.is_empty()) {
            command.arg("--request-log").arg(log);
        }
        let mut child = command.spawn().map_err(DemoModelError::Start)?;
        let stdout = child.stdout.take().ok_or(DemoModelError::Ended)?;
        // From here on a start that fails, or that nobody waits for any more, leaves nothing.
        let running = Self { child: Mutex::new(child), socket, _lock: lock };
        timeout(START_DEADLINE, first_line(stdout)).await.map_err(|_| DemoModelError::TimedOut)??;
        Ok(running)
    }

    fn is_alive(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Before the socket goes: a process that is just beginning would make it again.
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = child.start_kill() {
            tracing::debug!(%error, "the demo model has ended by itself");
        }
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(path = %self.socket.display(), %error, "the demo model took its socket with it");
        }
    }
}

async fn first_line(stdout: impl AsyncRead + Unpin) -> Result<(), DemoModelError> {
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line).await.map_err(DemoModelError::Start)?;
    if read == 0 { Err(DemoModelError::Ended) } else { Ok(()) }
}

async fn connect(mut inside: TcpStream, model: Arc<Running>) -> io::Result<()> {
    // Tokens are small and each one counts.
    inside.set_nodelay(true)?;
    let mut outside = UnixStream::connect(&model.socket).await?;
    copy_bidirectional(&mut inside, &mut outside).await?;
    Ok(())
}
