//! How a VM comes to life. Each phase is a type that consumes the former and undoes itself when it is dropped:
//!
//! ```text
//! Prepared ──launch──► Launched ──ready──► Vm (a driver runs) ──trust, serve_ports──► Vm
//! drop: ids go back    drop: VM is killed  drop: VM is killed
//! ```
//! The ids of a VM that is killed come back when the launcher says that nothing of it is left, not before.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentos_guest_protocol::init::InitMessage;
use agentos_guest_protocol::launcher::{BootFailure, BootPlan, VmNumber};
use agentos_linux::seqpacket;
use agentos_netstack::border::Border;
use tokio::sync::mpsc;

use crate::channel::{Channel, ReceiveError};
use crate::command::{Command, ProtocolError};
use crate::driver::Driver;
use crate::filesystem::FileError;
use crate::ids::IdLease;
use crate::launcher::{BootedVm, Launcher, VmEnd};
use crate::mount::{Mounted, Mounter};
use crate::network::{BorderError, Link, Missing, NetworkError, Seed, TrustError};
use crate::spec::VmSpec;
use crate::storage::{self, KnownStorage, LockedStorage, StorageError};
use crate::trust;
use crate::vm::{GoneReason, Shared, Vm};

/// A boot takes milliseconds; a host that swaps, with a thousand others under way, may need much more.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Commands that wait for the driver; whoever asks next waits.
const QUEUED_COMMANDS: usize = 64;

/// A VM that fails to boot hangs up before the launcher has said why.
const REASON_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Init or launcher could not do a step.
    #[error("VM can't be booted: {}", crate::errno::describe(.0))]
    Boot(BootFailure),
    #[error("VM did not become ready: {0}")]
    Gone(#[source] GoneReason),
    #[error("VM was not ready within {} s", .after.as_secs())]
    TimedOut { after: Duration },
    /// The directory that was to keep its files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("no ids are left for the VM")]
    Ids(#[source] std::io::Error),
    #[error("VM's control socket can't be made")]
    Socket(#[source] std::io::Error),
    #[error("secrets of the VM can't be kept")]
    Border(#[source] BorderError),
    #[error("secrets of the VM can't be sent anywhere: no server can be told from another")]
    Trust(#[source] TrustError),
    #[error("VM's own certificate authority can't be written to {path}: {source}")]
    TrustStore {
        path: &'static str,
        #[source]
        source: FileError,
    },
    #[error("VM can't serve loopback port {port}: {source}")]
    LoopbackPort {
        port: u16,
        #[source]
        source: NetworkError,
    },
}

pub(crate) async fn create(launcher: &Launcher, mut spec: VmSpec) -> Result<Vm, CreateError> {
    let border = launcher.network().keep_secrets(&mut spec).await?;
    let storage = match spec.storage() {
        Some(path) => Some(storage::lock(path).await?),
        None => None,
    };
    let launched = Prepared::new(launcher, &spec, storage)?.launch(launcher).await?;
    let vm = launched.ready(launcher, spec, Arc::clone(&border)).await?;
    if let Some(authority) = border.authority_pem() {
        trust::install(&vm, authority).await?;
    }
    serve_ports(&vm).await?;
    Ok(vm)
}

/// Everything is decided, nothing exists but a socket and a lease.
struct Prepared {
    number: VmNumber,
    plan: BootPlan,
    ids: IdLease,
    channel: Channel,
    init_end: OwnedFd,
    storage: Option<LockedStorage>,
}

/// The launcher was told.
struct Launched {
    channel: Channel,
    storage: Option<KnownStorage>,
    booted: BootedVm,
}

impl Prepared {
    fn new(launcher: &Launcher, spec: &VmSpec, storage: Option<LockedStorage>) -> Result<Self, CreateError> {
        let number = launcher.number_vm();
        let ids = launcher.lease_ids().map_err(CreateError::Ids)?;
        let (our_end, init_end) = seqpacket::pair().map_err(|errno| CreateError::Socket(errno.into()))?;
        let channel = Channel::new(our_end).map_err(CreateError::Socket)?;
        // Unique on this host as long as the directory exists: pids are, and numbers within a process.
        let cgroup_name = format!("agentos-{}-{}", std::process::id(), number.0);
        let mut plan = spec.boot_plan(ids.range(), cgroup_name);
        plan.storage = storage.as_ref().map(|locked| locked.storage.storage.clone());
        Ok(Self { number, plan, ids, channel, init_end, storage })
    }

    async fn launch(self, launcher: &Launcher) -> Result<Launched, CreateError> {
        let Self { number, plan, ids, channel, init_end, storage } = self;
        let (storage, lock) = storage.map(|locked| (locked.storage, locked.lock)).unzip();
        let descriptors = [init_end].into_iter().chain(lock).collect();
        let booted = launcher.boot(number, plan, ids, descriptors).await;
        let booted = booted.map_err(|death| CreateError::Gone(GoneReason::Launcher(death)))?;
        Ok(Launched { channel, storage, booted })
    }
}

impl Launched {
    async fn ready(
        mut self,
        launcher: &Launcher,
        spec: VmSpec,
        border: Arc<Border>,
    ) -> Result<Vm, CreateError> {
        tokio::time::timeout(READY_TIMEOUT, self.wait())
            .await
            .unwrap_or(Err(CreateError::TimedOut { after: READY_TIMEOUT }))
            .map_err(|error| blame_storage(self.storage.as_ref(), error))?;
        let (commands, queue) = mpsc::channel(QUEUED_COMMANDS);
        let mut mounted = Mounted::default();
        spec.mount_targets().iter().for_each(|target| mounted.add(target.clone(), Mounter::User));
        let shared = Arc::new(Shared::new(mounted));
        let seed = match spec.no_uplink() {
            None => Some(Seed::new(&spec, &shared.uplink, commands.downgrade(), launcher.network(), border)),
            Some(failure) => {
                shared.uplink.set(Link::Missing(Missing::Host(failure.clone())));
                None
            }
        };
        let (number, ended) = (self.booted.number(), self.booted.watch_end());
        tokio::spawn(Driver::new(self.channel, queue, Arc::clone(&shared), (self.booted, seed)).run());
        Ok(Vm::assemble((number, spec, launcher.clone()), commands, shared, ended))
    }

    async fn wait(&mut self) -> Result<(), CreateError> {
        tokio::select! {
            packet = self.channel.receive() => match packet.map(|packet| (packet.message, packet.descriptors)) {
                Ok((InitMessage::Ready, descriptors)) if descriptors.is_empty() => Ok(()),
                Ok((InitMessage::BootFailed(failure), _)) => Err(CreateError::Boot(failure)),
                Ok(_) => Err(broken(ProtocolError::Unexpected("something other than Ready"))),
                Err(ReceiveError::HungUp) => Err(self.ask_launcher().await),
                Err(error) => Err(broken(error.into())),
            },
            end = self.booted.ended() => Err(ended(end)),
        }
    }

    async fn ask_launcher(&mut self) -> CreateError {
        match tokio::time::timeout(REASON_TIMEOUT, self.booted.ended()).await {
            Ok(end) => ended(end),
            Err(_) => CreateError::Gone(GoneReason::InitHungUp),
        }
    }
}

fn blame_storage(storage: Option<&KnownStorage>, error: CreateError) -> CreateError {
    let blamed = match (storage, &error) {
        (Some(storage), CreateError::Boot(failure)) => storage.blame(failure),
        _ => None,
    };
    blamed.map_or(error, CreateError::Storage)
}

fn broken(error: ProtocolError) -> CreateError {
    CreateError::Gone(error.into_reason())
}

fn ended(end: VmEnd) -> CreateError {
    match end {
        VmEnd::BootFailed(failure) => CreateError::Boot(failure),
        VmEnd::Exited(status) => CreateError::Gone(GoneReason::InitEnded(status)),
        VmEnd::LauncherDied(death) => CreateError::Gone(GoneReason::Launcher(death)),
    }
}

/// Ports of the VM's loopback that reach the host's. They stand before anybody has the handle.
async fn serve_ports(vm: &Vm) -> Result<(), CreateError> {
    for &port in vm.spec().loopback_exempt_ports() {
        let failed = |source| CreateError::LoopbackPort { port, source };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = vm.listen(address).await.map_err(failed)?;
        if vm.commands().send(Command::Forward { listener, port }).await.is_err() {
            return Err(failed(vm.unavailable().into()));
        }
    }
    Ok(())
}
