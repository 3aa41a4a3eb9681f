//! A live VM: the handle, its visible states and how it ends.
//!
//! The handle is a queue to the VM's owner task (see `driver`) and what the two share. Every call goes through
//! `Vm::call`: send, wait, and where no answer comes, say why from the VM's state. When the last handle is dropped
//! the VM is killed; [`Vm::dispose`] is the polite way, and the only one that waits.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentos_guest_protocol::init::Request;
use agentos_guest_protocol::launcher::{BootFailure, VmNumber};
use agentos_guest_protocol::process::Status;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::asks::Asks;
use crate::command::{Answer, Call, CallFailure, Command, Completion, Outcome, ProtocolError};
use crate::launcher::{Launcher, LauncherDeath, VmEnd};
use crate::mount::Mounted;
use crate::network::{MAX_LOOKUPS, Uplink};
use crate::process::records::Records;
use crate::shell::Shells;
use crate::spec::VmSpec;

pub use crate::create::CreateError;

/// After the driver is through, the launcher has this long to report that nothing is left.
const TEARDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// A handle to a VM; clones share it.
#[derive(Debug, Clone)]
pub struct Vm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    number: VmNumber,
    spec: VmSpec,
    /// Keeps the launcher, and so the VM, alive.
    launcher: Launcher,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    ended: watch::Receiver<Option<VmEnd>>,
}

/// What the handles and the owner task share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: watch::Sender<VmState>,
    /// The owner task is through.
    pub(crate) finished: watch::Sender<bool>,
    pub(crate) asks: Asks,
    /// Held for one look-up or change.
    pub(crate) records: Mutex<Records>,
    /// Held for one look-up or change.
    pub(crate) shells: Mutex<Shells>,
    /// Held for one look-up or change.
    pub(crate) mounted: Mutex<Mounted>,
    pub(crate) uplink: Uplink,
    /// A permit per look-up of sockets that is under way.
    pub(crate) lookups: Semaphore,
}

impl Shared {
    pub(crate) fn new(mounted: Mounted) -> Self {
        Self {
            mounted: Mutex::new(mounted),
            state: watch::Sender::new(VmState::Running),
            finished: watch::Sender::new(false),
            asks: Asks::default(),
            records: Mutex::default(),
            shells: Mutex::default(),
            uplink: Uplink::default(),
            lookups: Semaphore::new(MAX_LOOKUPS),
        }
    }
}

/// What a VM is doing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum VmState {
    Running,
    Disposing,
    Failed(GoneReason),
    Disposed,
}

impl VmState {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Disposed)
    }
}

/// Why a VM is no more. Its text travels to the user on its own, hence with the cause in it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GoneReason {
    #[error("VM was disposed")]
    Disposed,
    #[error("VM's init {}", describe_status(.0))]
    InitEnded(Status),
    #[error("VM's init hung up")]
    InitHungUp,
    #[error("VM could not be booted: {}", crate::errno::describe(.0))]
    Boot(BootFailure),
    #[error("VM's init broke the protocol: {0}")]
    Protocol(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error("VM's control socket failed: {0}")]
    Socket(#[source] Arc<std::io::Error>),
    #[error("{0}")]
    Launcher(#[source] LauncherDeath),
    #[error("fault in the sidecar while it served this VM")]
    Fault,
}

fn describe_status(status: &Status) -> String {
    match status {
        Status::Exited(code) => format!("exited with {code}"),
        Status::Signaled(signal) => format!("was killed by signal {signal}"),
    }
}

/// Why a VM can't be asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    #[error("VM is being disposed")]
    Disposing,
    #[error(transparent)]
    Gone(GoneReason),
}

impl Vm {
    pub(crate) fn assemble(
        (number, spec, launcher): (VmNumber, VmSpec, Launcher),
        commands: mpsc::Sender<Command>,
        shared: Arc<Shared>,
        ended: watch::Receiver<Option<VmEnd>>,
    ) -> Self {
        Self { inner: Arc::new(Inner { number, spec, launcher, commands, shared, ended }) }
    }

    /// Boots a VM and returns when it is ready. A dropped future kills what it began.
    pub async fn create(launcher: &Launcher, spec: VmSpec) -> Result<Self, CreateError> {
        crate::create::create(launcher, spec).await
    }

    pub fn spec(&self) -> &VmSpec {
        &self.inner.spec
    }

    pub fn state(&self) -> VmState {
        self.shared().state.borrow().clone()
    }

    /// Resolves when no call can succeed any more.
    pub async fn gone(&self) -> GoneReason {
        let mut state = self.shared().state.subscribe();
        match state.wait_for(VmState::is_over).await.as_deref() {
            Ok(VmState::Failed(reason)) => reason.clone(),
            Ok(_) => GoneReason::Disposed,
            // The sender is in what this handle holds.
            Err(_) => GoneReason::Fault,
        }
    }

    /// Ends every process politely, then the VM, and returns when nothing of it is left on the host. None is the
    /// spec's grace. Disposing twice is fine, the shorter grace counts; a failed VM is cleared away. A dropped future
    /// stops nothing: the VM goes.
    pub async fn dispose(&self, grace: Option<Duration>) {
        let shared = self.shared();
        shared.asks.dispose(grace.unwrap_or(self.inner.spec.dispose_grace()));
        let (mut finished, mut ended) = (shared.finished.subscribe(), self.inner.ended.clone());
        // An error says that the other side is gone: then it is finished, too.
        let _ = finished.wait_for(|finished| *finished).await;
        let ended = tokio::time::timeout(TEARDOWN_TIMEOUT, ended.wait_for(Option::is_some)).await;
        if ended.is_err() {
            tracing::warn!(vm = self.inner.number.0, "launcher has not reported the end of the VM");
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn commands(&self) -> &mpsc::Sender<Command> {
        &self.inner.commands
    }

    pub(crate) fn launcher(&self) -> (&Launcher, VmNumber) {
        (&self.inner.launcher, self.inner.number)
    }

    /// Why nothing was answered.
    pub(crate) fn unavailable(&self) -> Unavailable {
        match self.state() {
            VmState::Disposing => Unavailable::Disposing,
            VmState::Disposed => Unavailable::Gone(GoneReason::Disposed),
            VmState::Failed(reason) => Unavailable::Gone(reason),
            // A call can only be lost together with the driver, which sets the state first.
            VmState::Running => Unavailable::Gone(GoneReason::Fault),
        }
    }

    /// Asks init and waits for its answer.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        parse: impl FnOnce(Answer) -> Result<T, ProtocolError> + Send + 'static,
    ) -> Result<T, CallFailure> {
        let outcome = self.begin(request, descriptors, parse).await?;
        self.finish(outcome).await
    }

    /// Asks init; several calls may be begun before the first is finished.
    pub(crate) async fn begin<T: Send + 'static>(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        parse: impl FnOnce(Answer) -> Result<T, ProtocolError> + Send + 'static,
    ) -> Result<Outcome<T>, CallFailure> {
        let (completion, outcome) = Completion::new(parse);
        let command = Command::Call(Call { request, descriptors, completion });
        match self.commands().send(command).await {
            Ok(()) => Ok(outcome),
            Err(_) => Err(CallFailure::Unavailable(self.unavailable())),
        }
    }

    pub(crate) async fn finish<T>(&self, outcome: Outcome<T>) -> Result<T, CallFailure> {
        outcome.await.unwrap_or_else(|_| Err(CallFailure::Unavailable(self.unavailable())))
    }
}
