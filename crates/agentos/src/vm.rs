//! The VM handle.
//!
//! ```text
//! create ──► running ──dispose()──► disposed
//!               └──last handle dropped──▲   (in the background, unless detached)
//! ```
//!
//! Every handle made from a VM (processes, shells, sessions, their streams) holds an [`AgentOs`], so the VM lives as
//! long as anything of it is in use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use agentos_proto::v1;

use crate::agent_config::{AgentConfig, Prepare};
use crate::connection::Connection;
use crate::convert;
use crate::convert::error::CallError;
use crate::error::{Error, ErrorKind};
use crate::options::{
    AgentOsCreateSidecarOptions, AgentOsOptions, AgentOsSharedSidecarOptions, AgentOsSidecarConfig,
};
use crate::process::Exit;
use crate::session::SessionData;
use crate::sidecar::AgentOsSidecar;
use crate::tool_calls::Serving;

/// A VM. Clones are the same VM; dropping the last handle of it disposes it without blocking, unless it is detached.
#[derive(Clone)]
pub struct AgentOs {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    sidecar: AgentOsSidecar,
    /// Made to outlive its lease: not counted among the VMs leased through the sidecar's handle.
    detached: bool,
    /// The last handle leaves the VM alone. A detached VM is kept from the moment its creator has it.
    kept: AtomicBool,
    disposed: AtomicBool,
    /// Sessions made through this handle, by id; locked for single map operations only.
    sessions: Mutex<HashMap<String, Arc<SessionData>>>,
    /// How agents of the caller's own get their instructions, by agent.
    prepare: HashMap<String, Prepare>,
}

/// One VM of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmInfo {
    /// The VM's id.
    pub vm_id: String,
    /// The name of a detached VM; `None` for a leased one.
    pub detached_name: Option<String>,
    /// Where it is in its life.
    pub state: VmState,
    /// Why it failed.
    pub reason: Option<String>,
    /// Milliseconds since the epoch.
    pub created_at_ms: u64,
}

/// The life of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmState {
    /// It answers calls.
    Running,
    /// It is being taken down.
    Disposing,
    /// Its init or launcher is gone.
    Failed,
}

/// One line of the doctor's table: a facility of the host, and what to do where it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facility {
    /// Its name.
    pub name: String,
    /// Whether VMs can use it.
    pub state: FacilityState,
    /// What was tried and what the kernel answered.
    pub finding: String,
    /// What is lost without it.
    pub cost: String,
    /// The one command or flag that cures it; empty when nothing is wrong.
    pub remedy: String,
}

/// Whether VMs can use a facility of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FacilityState {
    /// It works.
    Ok,
    /// VMs work without it, at the cost named.
    Degraded,
    /// No VM can be created without it.
    Missing,
}

impl AgentOs {
    /// Creates and boots a VM, on the default pool's sidecar unless the options name another. The sidecar is started
    /// where it does not run. Dropping the future undoes what it began.
    ///
    /// # Errors
    ///
    /// `SidecarNotFound` and `SidecarVersion` from finding the sidecar, `HostUnsupported` where this host cannot run
    /// VMs (the message names the cure), `AlreadyExists` for a detached name that is taken, `Closed` for a sidecar
    /// handle that is disposed, `InvalidInput` for host tools that can't be offered as they are, and what the mounts and
    /// options are refused with.
    pub async fn create(options: AgentOsOptions) -> Result<Self, Error> {
        crate::sidecar::runtime()?;
        let sidecar = match options.sidecar.clone() {
            AgentOsSidecarConfig::Explicit(handle) => handle,
            AgentOsSidecarConfig::Shared(shared) => AgentOsSidecar::shared(shared).await?,
        };
        sidecar.check_ready()?;
        let detached = options.detached.is_some();
        let kits = options.tool_kits.clone();
        let prepares = |(id, agent): (&String, &AgentConfig)| Some((id.clone(), agent.prepare.clone()?));
        let prepare: HashMap<_, _> = options.agents.iter().filter_map(prepares).collect();
        let request = convert::vm::create_request(sidecar.lease_id(), options)?;
        // A task of its own: when the caller goes away while the sidecar answers, the handle is dropped in there and
        // so the VM disposed, detached or not.
        let create = tokio::spawn(async move {
            let reply = sidecar
                .connection()
                .vm()
                .create_vm(request)
                .await
                .map_err(|status| sidecar.failed(status))?;
            let vm = Self::over(sidecar, reply.into_inner().vm_id, detached, prepare);
            if !kits.is_empty() {
                let serving = Serving::begin(vm.live()?, vm.id(), kits).await;
                tokio::spawn(serving.map_err(|status| vm.failed(status))?.run());
            }
            Ok::<_, Error>(vm)
        });
        let vm = create.await.map_err(CallError::Task)??;
        // Nothing is awaited between here and the caller.
        vm.inner.kept.store(detached, Ordering::Release);
        Ok(vm)
    }

    /// Finds a detached VM of the default pool's sidecar by its name.
    ///
    /// # Errors
    ///
    /// `NotFound` when no VM has that name, which includes that no sidecar runs.
    pub async fn attach(name: &str) -> Result<Self, Error> {
        match AgentOsSidecar::shared_running(AgentOsSharedSidecarOptions::default()).await {
            Ok(sidecar) => sidecar.attach(name).await,
            Err(error) if error.kind() == ErrorKind::SidecarNotFound => {
                Err(CallError::NoSuchVm { name: name.to_owned() }.into())
            }
            Err(error) => Err(error),
        }
    }

    /// The handle of a pool's sidecar, which is started where it does not run. The same pool gives the same handle
    /// while it is alive.
    ///
    /// # Errors
    ///
    /// `SidecarNotFound` with the places searched, `SidecarVersion` naming both versions.
    pub async fn get_shared_sidecar(options: AgentOsSharedSidecarOptions) -> Result<AgentOsSidecar, Error> {
        AgentOsSidecar::shared(options).await
    }

    /// Starts a sidecar of one's own.
    ///
    /// # Errors
    ///
    /// As [`get_shared_sidecar`](Self::get_shared_sidecar).
    pub async fn create_sidecar(options: AgentOsCreateSidecarOptions) -> Result<AgentOsSidecar, Error> {
        AgentOsSidecar::explicit(options).await
    }

    /// The VMs of the default pool's sidecar, of all its clients; none where no sidecar runs.
    ///
    /// # Errors
    ///
    /// When the sidecar cannot be asked.
    pub async fn list_vms() -> Result<Vec<VmInfo>, Error> {
        match AgentOsSidecar::shared_running(AgentOsSharedSidecarOptions::default()).await {
            Ok(sidecar) => sidecar.list_vms().await,
            Err(error) if error.kind() == ErrorKind::SidecarNotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// What this host can and cannot do for VMs.
    ///
    /// # Errors
    ///
    /// When no sidecar could be found or started to look.
    pub async fn doctor() -> Result<Vec<Facility>, Error> {
        AgentOsSidecar::shared(AgentOsSharedSidecarOptions::default()).await?.doctor().await
    }

    /// Shuts the VM down, with everything in it, and returns when nothing of it is left on the host. Running calls
    /// fail with `Closed`. Disposing twice is fine.
    ///
    /// # Errors
    ///
    /// When the sidecar could not end it.
    pub async fn dispose(&self) -> Result<(), Error> {
        let this = self.clone();
        // A task of its own: a caller that goes away must not leave a VM that counts as disposed and is not.
        let dispose = tokio::spawn(async move {
            let inner = &this.inner;
            let sidecar = &inner.sidecar;
            if !inner.disposed.swap(true, Ordering::AcqRel) && !inner.detached {
                sidecar.uncount_vm();
            }
            if sidecar.connection().was_closed() {
                return Ok(());
            }
            let request = v1::DisposeVmRequest { vm_id: inner.id.clone() };
            sidecar.connection().vm().dispose_vm(request).await.map_err(|status| sidecar.failed(status))?;
            Ok(())
        });
        dispose.await.map_err(CallError::Task)?
    }

    /// The sidecar that hosts the VM.
    #[must_use]
    pub fn sidecar(&self) -> &AgentOsSidecar {
        &self.inner.sidecar
    }

    /// The VM's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    fn over(sidecar: AgentOsSidecar, id: String, detached: bool, prepare: HashMap<String, Prepare>) -> Self {
        if !detached {
            sidecar.count_vm();
        }
        let (kept, disposed, sessions) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::default());
        Self { inner: Arc::new(Inner { id, sidecar, detached, kept, disposed, sessions, prepare }) }
    }

    /// How agents of the caller's own get their instructions.
    pub(crate) fn prepare(&self) -> &HashMap<String, Prepare> {
        &self.inner.prepare
    }

    /// The connection, as long as this VM has not been disposed through this handle.
    pub(crate) fn live(&self) -> Result<&Connection, Error> {
        if self.inner.disposed.load(Ordering::Acquire) {
            return Err(CallError::VmDisposed { vm_id: self.inner.id.clone() }.into());
        }
        Ok(self.inner.sidecar.connection())
    }

    /// What a failed call of this VM means. What is cut off by our own dispose was closed, whatever the call says.
    pub(crate) fn failed(&self, status: tonic::Status) -> Error {
        if status.details().is_empty() && self.inner.disposed.load(Ordering::Acquire) {
            return CallError::VmDisposed { vm_id: self.inner.id.clone() }.into();
        }
        self.inner.sidecar.failed(status)
    }

    /// An exit as it is told to whoever waited for it: a call that our own dispose cut off was closed.
    pub(crate) fn exited(&self, exit: Exit) -> Result<Exit, Error> {
        match exit {
            Exit::VmGone { .. } if self.inner.disposed.load(Ordering::Acquire) => {
                Err(CallError::VmDisposed { vm_id: self.inner.id.clone() }.into())
            }
            exit => Ok(exit),
        }
    }

    pub(crate) fn sessions(&self) -> &Mutex<HashMap<String, Arc<SessionData>>> {
        &self.inner.sessions
    }
}

impl AgentOsSidecar {
    /// Finds a detached VM of this sidecar by its name.
    ///
    /// # Errors
    ///
    /// `NotFound` when no VM has that name.
    pub async fn attach(&self, name: &str) -> Result<AgentOs, Error> {
        self.check_ready()?;
        let request = v1::AttachVmRequest { name: name.to_owned() };
        let reply = self.connection().vm().attach_vm(request).await.map_err(|status| self.failed(status))?;
        let vm = AgentOs::over(self.clone(), reply.into_inner().vm_id, true, HashMap::new());
        vm.inner.kept.store(true, Ordering::Release);
        Ok(vm)
    }

    /// The VMs of this sidecar, of all its clients.
    ///
    /// # Errors
    ///
    /// When the sidecar cannot be asked.
    pub async fn list_vms(&self) -> Result<Vec<VmInfo>, Error> {
        let request = v1::ListVmsRequest {};
        let reply = self.connection().vm().list_vms(request).await.map_err(|status| self.failed(status))?;
        reply.into_inner().vms.into_iter().map(|vm| convert::vm::info(vm).map_err(Error::from)).collect()
    }

    /// What the sidecar's host can and cannot do for VMs.
    ///
    /// # Errors
    ///
    /// When the sidecar cannot be asked.
    pub async fn doctor(&self) -> Result<Vec<Facility>, Error> {
        let request = v1::DoctorRequest {};
        let reply =
            self.connection().sidecar().doctor(request).await.map_err(|status| self.failed(status))?;
        let facilities = reply.into_inner().facilities.into_iter();
        facilities.map(|facility| convert::sidecar::facility(facility).map_err(Error::from)).collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if *self.kept.get_mut() || *self.disposed.get_mut() {
            return;
        }
        if !self.detached {
            self.sidecar.uncount_vm();
        }
        let sidecar = self.sidecar.clone();
        let request = v1::DisposeVmRequest { vm_id: std::mem::take(&mut self.id) };
        // Where the runtime is gone this task never runs, but then the connection is gone and the lease with it.
        self.sidecar.runtime().spawn(async move {
            if let Err(status) = sidecar.connection().vm().dispose_vm(request).await {
                tracing::debug!(%status, "disposing a dropped VM");
            }
        });
    }
}

impl std::fmt::Debug for AgentOs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentOs")
            .field("id", &self.inner.id)
            .field("sidecar", &self.inner.sidecar.id())
            .field("detached", &self.inner.detached)
            .finish()
    }
}
