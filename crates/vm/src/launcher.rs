//! The host's end of the launcher, the small process that clones VMs.
//!
//! One task owns the socket. It sends what handles ask for and gives every event to whom it concerns:
//!
//! ```text
//! Launcher::boot ──► Boot ──► launcher        slot of the VM: its ids, its cgroups, how it ended
//!   BootedVm::ended ◄── BootFailed | Exited   the slot goes, and with it the VM's lease of ids
//! Launcher::open_host_dir ──► OpenHostDir ──► HostDirOpened | HostDirFailed, matched by token
//! ```
//! A launcher that hangs up or breaks the protocol ends every VM it made, with that as the reason; whoever waits for
//! [`Launcher::died`] starts another one. When the last handle is dropped the task ends, the socket closes, and the
//! launcher exits.

mod task;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use agentos_guest_protocol::launcher::{
    BootFailure, BootPlan, Cgroups, HostFindings, LauncherEvent, LauncherRequest, VmNumber,
};
use agentos_guest_protocol::mount::HostDir;
use agentos_guest_protocol::process::Status;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::channel::{Channel, ReceiveError};
use crate::ids::{self, IdLease, IdPool};
use crate::network::{HostNetwork, TrustError};
use crate::sync::lock;

/// The launcher prepares itself in milliseconds; a host that swaps may take longer.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Requests that wait for the launcher's task; whoever asks next waits.
const QUEUED_REQUESTS: usize = 64;

/// A launcher process; VMs are made through it and die with it. Clones share it.
#[derive(Debug, Clone)]
pub struct Launcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    findings: HostFindings,
    network: HostNetwork,
    ids: IdPool,
    requests: mpsc::Sender<Queued>,
    shared: Arc<Shared>,
    next_vm: AtomicU64,
    next_token: AtomicU32,
}

/// What the task and the handles share. Each lock is held for one operation on its table.
#[derive(Debug)]
struct Shared {
    slots: Mutex<HashMap<VmNumber, Slot>>,
    /// Host directories being opened, bounded by the calls that wait for them.
    host_dirs: Mutex<HashMap<u32, oneshot::Sender<HostDirAnswer>>>,
    /// VMs to be killed, at most once each: a drop can't wait for room in the queue.
    kills: Mutex<Vec<VmNumber>>,
    kill_asked: Notify,
    death: watch::Sender<Option<LauncherDeath>>,
}

type HostDirAnswer = Result<OwnedFd, BootFailure>;

/// One VM of this launcher, from its Boot to its end.
#[derive(Debug)]
struct Slot {
    cgroups: Arc<OnceLock<Cgroups>>,
    ended: watch::Sender<Option<VmEnd>>,
    _ids: IdLease,
}

#[derive(Debug)]
struct Queued {
    request: LauncherRequest,
    descriptors: Vec<OwnedFd>,
}

/// Why a launcher can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LauncherError {
    #[error("launcher can't work on this host: {}", crate::errno::describe(.0))]
    Unsupported(BootFailure),
    #[error("launcher died before it had started")]
    Died(#[source] LauncherDeath),
    #[error("launcher was not ready within {} s", .after.as_secs())]
    TimedOut { after: Duration },
    #[error("id ranges can't be leased")]
    Ids(#[source] std::io::Error),
    #[error("TLS can't be set up")]
    Tls(#[source] TrustError),
    #[error("launcher's socket can't be used")]
    Socket(#[source] std::io::Error),
}

/// Why a launcher is no more.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LauncherDeath {
    #[error("launcher hung up")]
    HungUp,
    #[error("launcher broke the protocol: {0}")]
    Protocol(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error("launcher's socket failed: {0}")]
    Socket(#[source] Arc<std::io::Error>),
    #[error("fault in the sidecar while it served the launcher")]
    Fault,
}

/// The other end of a Boot.
#[derive(Debug, Clone)]
pub(crate) enum VmEnd {
    BootFailed(BootFailure),
    Exited(Status),
    LauncherDied(LauncherDeath),
}

/// A VM the launcher was told to boot; dropped before it has ended, it is killed.
#[derive(Debug)]
pub(crate) struct BootedVm {
    number: VmNumber,
    shared: Arc<Shared>,
    cgroups: Arc<OnceLock<Cgroups>>,
    ended: watch::Receiver<Option<VmEnd>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenHostDirError {
    #[error("{}", crate::errno::describe(.0))]
    Failed(BootFailure),
    #[error(transparent)]
    Died(LauncherDeath),
}

impl Launcher {
    /// The sidecar's end and the launcher's end of a socket between the two.
    pub fn socket_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
        Ok(agentos_linux::seqpacket::pair()?)
    }

    /// Takes the sidecar's end of the socket and waits until the launcher stands. Ids are leased where all sidecars of
    /// this host meet, or below `runtime_directory` where that can't be written to.
    pub async fn connect(socket: OwnedFd, runtime_directory: &Path) -> Result<Self, LauncherError> {
        let channel = Channel::new(socket).map_err(LauncherError::Socket)?;
        let started = tokio::time::timeout(START_TIMEOUT, channel.receive())
            .await
            .map_err(|_| LauncherError::TimedOut { after: START_TIMEOUT })?;
        let findings = match started.map(|packet| packet.message) {
            Ok(LauncherEvent::Started(findings)) => findings,
            Ok(LauncherEvent::StartFailed(failure)) => return Err(LauncherError::Unsupported(failure)),
            Ok(_) => return Err(LauncherError::Died(LauncherDeath::protocol(task::Breach::NotStarted))),
            Err(error) => return Err(LauncherError::Died(error.into())),
        };
        // A host whose /run can't be written to has no second sidecar there either.
        let ids = IdPool::open(Path::new(ids::HOST_DIRECTORY), findings.ids)
            .or_else(|_| IdPool::open(&runtime_directory.join("ids"), findings.ids))
            .map_err(LauncherError::Ids)?;
        let network = HostNetwork::new().map_err(LauncherError::Tls)?;
        let (requests, queue) = mpsc::channel(QUEUED_REQUESTS);
        let shared = Arc::new(Shared {
            slots: Mutex::default(),
            host_dirs: Mutex::default(),
            kills: Mutex::default(),
            kill_asked: Notify::new(),
            death: watch::Sender::new(None),
        });
        tokio::spawn(task::run(channel, queue, Arc::clone(&shared)));
        let (next_vm, next_token) = (AtomicU64::new(1), AtomicU32::new(1));
        Ok(Self { inner: Arc::new(Inner { findings, network, ids, requests, shared, next_vm, next_token }) })
    }

    /// What the launcher found out about this host.
    pub fn findings(&self) -> &HostFindings {
        &self.inner.findings
    }

    pub(crate) fn network(&self) -> &HostNetwork {
        &self.inner.network
    }

    /// Resolves when the launcher is no more.
    pub async fn died(&self) -> LauncherDeath {
        let mut death = self.inner.shared.death.subscribe();
        let died = death.wait_for(Option::is_some).await;
        died.ok().and_then(|died| died.clone()).unwrap_or(LauncherDeath::Fault)
    }

    pub(crate) fn lease_ids(&self) -> std::io::Result<IdLease> {
        self.inner.ids.lease()
    }

    pub(crate) fn number_vm(&self) -> VmNumber {
        VmNumber(self.inner.next_vm.fetch_add(1, Ordering::Relaxed))
    }

    /// Has a VM cloned, with the descriptors that a Boot carries. Its ids are held until nothing of it is left.
    pub(crate) async fn boot(
        &self,
        number: VmNumber,
        plan: BootPlan,
        ids: IdLease,
        descriptors: Vec<OwnedFd>,
    ) -> Result<BootedVm, LauncherDeath> {
        // Room first: from here on nothing waits, so a caller that gives up leaves no slot behind.
        let Ok(room) = self.inner.requests.reserve().await else { return Err(self.died().await) };
        let shared = Arc::clone(&self.inner.shared);
        let cgroups = Arc::<OnceLock<Cgroups>>::default();
        let (ended_sender, ended) = watch::channel(None);
        let slot = Slot { cgroups: Arc::clone(&cgroups), ended: ended_sender, _ids: ids };
        lock(&shared.slots).insert(number, slot);
        // The task may have died between the two steps above and have missed the slot.
        if let Some(death) = shared.death.borrow().clone() {
            lock(&shared.slots).remove(&number);
            return Err(death);
        }
        let request = LauncherRequest::Boot { vm: number, plan: Box::new(plan) };
        room.send(Queued { request, descriptors });
        Ok(BootedVm { number, shared, cgroups, ended })
    }

    /// A detached tree of a host directory, for a live mount in this VM.
    pub(crate) async fn open_host_dir(
        &self,
        vm: VmNumber,
        host_dir: HostDir,
    ) -> Result<OwnedFd, OpenHostDirError> {
        let shared = &self.inner.shared;
        let Ok(room) = self.inner.requests.reserve().await else {
            return Err(OpenHostDirError::Died(self.died().await));
        };
        let token = self.inner.next_token.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&shared.host_dirs).insert(token, answer);
        let request = LauncherRequest::OpenHostDir { vm, token, host_dir };
        room.send(Queued { request, descriptors: Vec::new() });
        match answered.await {
            Ok(Ok(tree)) => Ok(tree),
            Ok(Err(failure)) => Err(OpenHostDirError::Failed(failure)),
            Err(_task_ended) => Err(OpenHostDirError::Died(self.died().await)),
        }
    }
}

impl BootedVm {
    pub(crate) fn number(&self) -> VmNumber {
        self.number
    }

    /// SIGKILL to all of the VM.
    pub(crate) fn kill(&self) {
        lock(&self.shared.kills).push(self.number);
        self.shared.kill_asked.notify_one();
    }

    pub(crate) fn cgroups(&self) -> Arc<OnceLock<Cgroups>> {
        Arc::clone(&self.cgroups)
    }

    pub(crate) fn watch_end(&self) -> watch::Receiver<Option<VmEnd>> {
        self.ended.clone()
    }

    /// Resolves when nothing of the VM is left.
    pub(crate) async fn ended(&mut self) -> VmEnd {
        let ended = self.ended.wait_for(Option::is_some).await;
        let ended = ended.ok().and_then(|ended| ended.clone());
        ended.unwrap_or(VmEnd::LauncherDied(LauncherDeath::Fault))
    }
}

impl Drop for BootedVm {
    fn drop(&mut self) {
        if self.ended.borrow().is_none() {
            self.kill();
        }
    }
}

impl LauncherDeath {
    fn protocol(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Protocol(Arc::new(error))
    }
}

impl From<ReceiveError> for LauncherDeath {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::HungUp => Self::HungUp,
            other => Self::protocol(other),
        }
    }
}
