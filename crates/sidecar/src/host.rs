//! The VMs of this sidecar: made, found and disposed as the [registry](crate::registry) allows.
//!
//! A disposal runs in a task of its own, so that a client that goes away does not stop it half-way; whoever asks for
//! it waits for that task. The registry's lock is held for look-ups alone, never over an await point.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentos_proto::v1::ErrorKind;
use agentos_vm::{IdMode, Vm, VmOptions, VmSpec};
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::timeout;

use crate::doctor::{Facility, Facts, Isolation, RefusedCall, table};
use crate::errors::{self, Failure};
use crate::forwards::Forwards;
use crate::launch::{Launchers, Start, StartError};
use crate::options::Config;
use crate::registry::{LeaseId, LeaseState, Listed, Refusal, Registry, VmId};
use crate::sessions::{SessionDefaults, SessionHost, VmSessions};
use crate::tools::{self, ToolOffer, VmTools};

/// A VM takes milliseconds to make. One that takes longer has a launcher that hangs, which ends with the sidecar.
const LATE_CREATES: Duration = Duration::from_secs(2);

/// A VM, what its sessions share, the addresses of the host that lead to it, and what its programs can have a client do.
#[derive(Debug)]
pub(crate) struct HostedVm {
    pub(crate) vm: Vm,
    pub(crate) sessions: VmSessions,
    pub(crate) forwards: Arc<Forwards>,
    pub(crate) tools: Option<VmTools>,
}

/// A validated wish for a VM.
#[derive(Debug)]
pub(crate) struct CreateVm {
    pub(crate) lease: String,
    /// Empty for a VM that ends with its lease.
    pub(crate) name: String,
    pub(crate) options: VmOptions,
    pub(crate) sessions: SessionDefaults,
    pub(crate) tools: Option<ToolOffer>,
}

#[derive(Debug)]
pub(crate) struct Host {
    config: Config,
    registry: Mutex<Registry<Arc<HostedVm>>>,
    changed: Notify,
    launchers: Launchers,
    sessions: SessionHost,
    /// Guards are dropped wherever their connection or stream is; what they start needs the runtime.
    runtime: Handle,
    ending: AtomicBool,
}

impl Host {
    /// To be called inside the runtime.
    pub(crate) fn new(config: Config, starts: SyncSender<Start>) -> Self {
        let mut tag = uuid::Uuid::new_v4().simple().to_string();
        tag.truncate(12);
        let registry = Registry::new(config.id.clone(), tag, config.pool.is_empty());
        Self {
            registry: Mutex::new(registry),
            changed: Notify::new(),
            launchers: Launchers::new(starts, config.runtime_dir.clone()),
            sessions: SessionHost::new(&config),
            runtime: Handle::current(),
            ending: AtomicBool::new(false),
            config,
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn launchers(&self) -> &Launchers {
        &self.launchers
    }

    pub(crate) fn sessions(&self) -> &SessionHost {
        &self.sessions
    }

    pub(crate) fn connected(self: &Arc<Self>) -> ConnectionGuard {
        self.registry().connected();
        self.changed.notify_waiters();
        ConnectionGuard(Arc::clone(self))
    }

    pub(crate) fn connections_seen(&self) -> u64 {
        self.registry().connections_seen()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.registry().is_idle()
    }

    /// Resolves at the next change of connections, leases or VMs after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(crate) fn open_lease(self: &Arc<Self>) -> LeaseGuard {
        let lease = self.registry().open_lease();
        LeaseGuard { host: Arc::clone(self), lease }
    }

    /// The lease's state and how many VMs it holds.
    pub(crate) fn describe(&self, lease: &str) -> Result<(LeaseState, usize), Refusal> {
        let registry = self.registry();
        let (lease, state) = registry.lease(lease)?;
        Ok((state, registry.vms_of(&lease).len()))
    }

    /// Disposes every VM of a lease, one that is just being made included. The lease gives out none from now on.
    pub(crate) async fn dispose_lease(self: &Arc<Self>, lease: &str) -> Result<(), Refusal> {
        let (lease, vms) = {
            let mut registry = self.registry();
            let (lease, state) = registry.lease(lease)?;
            if state == LeaseState::Open {
                registry.set_lease(&lease, LeaseState::Disposing);
            }
            let vms = registry.vms_of(&lease);
            (lease, vms)
        };
        self.dispose_all(&vms).await;
        self.until(|registry| registry.vms_of(&lease).is_empty()).await;
        self.registry().set_lease(&lease, LeaseState::Disposed);
        self.changed.notify_waiters();
        Ok(())
    }

    pub(crate) async fn create(self: &Arc<Self>, wish: CreateVm) -> Result<VmId, Failure> {
        if self.ending.load(Ordering::Acquire) {
            let message = format!("Cannot lease VM from sidecar {} while it is disposing", self.config.id);
            return Err(Failure::new(ErrorKind::Closed, &self.config.id, message));
        }
        let id = self.registry().reserve(&wish.lease, &wish.name, now_ms())?;
        let reservation = Reservation { host: self, id: Some(id) };
        let launcher = self.launchers.get().await.map_err(|error| Failure::from(&*error))?;
        let spec = VmSpec::validate(wish.options, &agentos_vm::Host::of(&launcher))?;
        let vm = Vm::create(&launcher, spec).await?;
        let tools = match wish.tools {
            Some(offer) => match tools::open(&vm, offer).await {
                Ok(tools) => Some(tools),
                Err(failure) => {
                    // Not before it is gone: a storage directory would still be its own.
                    vm.dispose(None).await;
                    return Err(failure);
                }
            },
            None => None,
        };
        let (sessions, forwards) = (VmSessions::new(wish.sessions), Arc::default());
        reservation.fulfil(HostedVm { vm, sessions, forwards, tools })
    }

    pub(crate) fn vm(&self, id: &str) -> Result<Arc<HostedVm>, Refusal> {
        self.registry().get(id)
    }

    pub(crate) fn find_name(&self, name: &str) -> Result<VmId, Refusal> {
        self.registry().find_name(name)
    }

    pub(crate) fn list(&self) -> Vec<Listed<Arc<HostedVm>>> {
        self.registry().list()
    }

    /// Ends a VM and returns when nothing of it is left. One that is gone already is fine.
    pub(crate) async fn dispose(self: &Arc<Self>, id: &str) -> Result<(), Refusal> {
        let (id, hosted) = match self.registry().begin_dispose(id) {
            Err(Refusal::VmDisposed(_)) => return Ok(()),
            begun => begun?,
        };
        // The task is the owner of the disposal; it ends well even when nobody waits.
        let _ = self.spawn_dispose(id, hosted).await;
        Ok(())
    }

    /// Disposes everything and lets no new VM be made.
    pub(crate) async fn close(self: &Arc<Self>) {
        self.ending.store(true, Ordering::Release);
        let vms = self.registry().all_vms();
        self.dispose_all(&vms).await;
        if timeout(LATE_CREATES, self.until(|registry| registry.all_vms().is_empty())).await.is_err() {
            tracing::warn!("VMs that are still being made end with their launcher");
        }
    }

    /// Resolves when the registry is so. What is still being made when its lease ends is disposed by its creation.
    async fn until(&self, settled: impl Fn(&Registry<Arc<HostedVm>>) -> bool) {
        loop {
            // Subscribed before the look, so that no change falls between.
            let changed = self.changed();
            if settled(&self.registry()) {
                return;
            }
            changed.await;
        }
    }

    async fn dispose_all(self: &Arc<Self>, vms: &[VmId]) {
        join_all(vms.iter().map(|id| self.dispose(id.as_str()))).await;
    }

    fn spawn_dispose(self: &Arc<Self>, id: VmId, hosted: Arc<HostedVm>) -> tokio::task::JoinHandle<()> {
        let host = Arc::clone(self);
        self.runtime.spawn(async move {
            hosted.forwards.close_all().await;
            host.sessions.close_all_of(id.as_str()).await;
            hosted.vm.dispose(None).await;
            host.registry().remove(&id);
            host.changed.notify_waiters();
        })
    }

    fn end_lease(self: &Arc<Self>, lease: &LeaseId) {
        let vms = {
            let mut registry = self.registry();
            registry.end_lease(lease);
            registry.vms_of(lease)
        };
        for id in vms {
            let host = Arc::clone(self);
            self.runtime.spawn(async move {
                if let Err(refusal) = host.dispose(id.as_str()).await {
                    // One that is still being made is given back to its creator, who disposes it.
                    tracing::debug!(%refusal, "not disposed with its lease");
                }
            });
        }
        self.changed.notify_waiters();
    }

    /// Tries a VM and says what this host can do.
    pub(crate) async fn examine(&self) -> Result<Vec<Facility>, Failure> {
        let isolation = match self.launchers.get().await {
            Ok(launcher) => {
                let spec = VmSpec::validate(VmOptions::default(), &agentos_vm::Host::of(&launcher))?;
                match Vm::create(&launcher, spec).await {
                    Ok(vm) => {
                        vm.dispose(Some(Duration::ZERO)).await;
                        let found = launcher.findings();
                        Isolation::Works {
                            private_ids: found.ids == IdMode::Range,
                            cgroup_memory: found.cgroup_memory,
                            cgroup_cpu: found.cgroup_cpu,
                            cgroup_processes: found.cgroup_processes,
                        }
                    }
                    Err(agentos_vm::CreateError::Boot(failure)) => Isolation::Refused(refused(&failure)),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => match &*error {
                StartError::Launcher(agentos_vm::LauncherError::Unsupported(failure)) => {
                    Isolation::Refused(refused(failure))
                }
                other => return Err(Failure::from(other)),
            },
        };
        let no_uplink = self.launchers.get().await.ok();
        let no_uplink = no_uplink.and_then(|launcher| launcher.findings().no_uplink.as_ref().map(refused));
        Ok(table(&Facts::collect(isolation, no_uplink)))
    }

    fn registry(&self) -> MutexGuard<'_, Registry<Arc<HostedVm>>> {
        // No method of the registry panics half-way through a change, so a poisoned lock guards sound state.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(failure: &agentos_vm::BootFailure) -> RefusedCall {
    RefusedCall {
        step: failure.step.clone(),
        object: String::from_utf8_lossy(&failure.object).into_owned(),
        errno: failure.errno,
    }
}

impl From<&StartError> for Failure {
    fn from(error: &StartError) -> Self {
        match error {
            StartError::Launcher(error) => Self::from(error),
            StartError::Ending => Self::new(ErrorKind::Closed, "launcher", error.to_string()),
            StartError::Busy => Self::new(ErrorKind::Busy, "launcher", error.to_string()),
            _ => Self::new(ErrorKind::Internal, "launcher", errors::chain(error)),
        }
    }
}

/// A VM that is being made. Dropped, it is forgotten; agentos_vm undoes what it had begun.
struct Reservation<'a> {
    host: &'a Arc<Host>,
    id: Option<VmId>,
}

impl Reservation<'_> {
    fn fulfil(mut self, hosted: HostedVm) -> Result<VmId, Failure> {
        let Some(id) = self.id.take() else {
            return Err(Failure::new(ErrorKind::Internal, "", "the VM's reservation is gone"));
        };
        let created = self.host.registry().created(&id, Arc::new(hosted));
        // A sidecar that began to end while the VM was made has not seen it among those to dispose.
        let created = match created {
            Ok(()) if self.host.ending.load(Ordering::Acquire) => {
                self.host.registry().begin_dispose(id.as_str()).map_or(Ok(()), |(_, hosted)| Err(hosted))
            }
            other => other,
        };
        match created {
            Ok(()) => Ok(id),
            Err(hosted) => {
                self.host.spawn_dispose(id.clone(), hosted);
                Err(Failure::new(ErrorKind::Closed, id.as_str(), "the VM's lease ended while it was made"))
            }
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.host.registry().remove(&id);
            self.host.changed.notify_waiters();
        }
    }
}

/// Counts a client connection while it lives.
#[derive(Debug)]
pub(crate) struct ConnectionGuard(Arc<Host>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.registry().disconnected();
        self.0.changed.notify_waiters();
    }
}

/// A lease lives as long as this: dropped, its VMs are disposed.
#[derive(Debug)]
pub(crate) struct LeaseGuard {
    host: Arc<Host>,
    lease: LeaseId,
}

impl LeaseGuard {
    pub(crate) fn id(&self) -> &LeaseId {
        &self.lease
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.host.end_lease(&self.lease);
    }
}

fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn wish(lease: &LeaseGuard) -> CreateVm {
        let lease = lease.id().as_str().to_owned();
        CreateVm {
            lease,
            name: String::new(),
            options: VmOptions::default(),
            sessions: SessionDefaults::default(),
            tools: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_not_disposed_while_a_vm_of_it_is_being_made() {
        let (starts, _unanswered) = sync_channel(1);
        let host = Arc::new(Host::new(Config::under_test("", "/nonexistent".as_ref()), starts));
        let lease = host.open_lease();
        let creating = tokio::spawn({
            let (host, wish) = (Arc::clone(&host), wish(&lease));
            async move { host.create(wish).await }
        });
        while host.registry().vms_of(lease.id()).is_empty() {
            tokio::task::yield_now().await;
        }
        let mut disposing = std::pin::pin!(host.dispose_lease(lease.id().as_str()));
        // Time stands still while anything else can happen.
        timeout(Duration::from_secs(3600), &mut disposing).await.expect_err("the VM may still come to stand");
        creating.abort();
        timeout(Duration::from_secs(1), disposing).await.unwrap().unwrap();
        assert_eq!(host.describe(lease.id().as_str()), Ok((LeaseState::Disposed, 0)));
    }
}
