//! A client's hold on one sidecar.
//!
//! ```text
//! ready ──dispose()──► disposing ──► disposed
//!   └──────the sidecar ends──────────────▲
//! ```
//!
//! A handle is one connection and one lease on it; the VMs made through the handle are under that lease and end with
//! it, however it ends. Handles are shared: the same pool gives the same handle while it is alive. They are kept per
//! tokio runtime, because a connection lives on the runtime that made it: a program (or a test binary) with several
//! runtimes must not lose a connection with a runtime it knows nothing of.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use agentos_proto::v1;
use tokio::runtime::Handle;

use crate::connection::Connection;
use crate::convert::error::CallError;
use crate::discovery::rendezvous;
use crate::error::Error;
use crate::launch::{Greeted, LaunchError, Target, connect_or_start, connect_running, log_tail};
use crate::options::{AgentOsCreateSidecarOptions, AgentOsSharedSidecarOptions};

/// A handle to a sidecar, the daemon that hosts VMs. Clones are the same handle.
///
/// Dropping the last clone, and the last VM made through it, ends the lease.
#[derive(Clone)]
pub struct AgentOsSidecar {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    placement: SidecarPlacement,
    connection: Connection,
    lease_id: String,
    log: PathBuf,
    state: AtomicU8,
    active_vms: AtomicUsize,
    runtime: Handle,
}

/// Identity, placement, state and load of a sidecar handle.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentOsSidecarDescription {
    /// `agent-os-shared-sidecar:POOL` or `agent-os-sidecar-UUID`.
    pub sidecar_id: String,
    /// Whether it is a pool's sidecar or one of its own.
    pub placement: SidecarPlacement,
    /// Whether VMs can be leased from it.
    pub state: SidecarState,
    /// VMs leased through this handle.
    pub active_vm_count: usize,
}

/// How a sidecar was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SidecarPlacement {
    /// Shared by every client that names the pool.
    Shared {
        /// The pool's name.
        pool: String,
    },
    /// Made by `create_sidecar`, for its maker alone.
    Explicit {
        /// The sidecar's id.
        sidecar_id: String,
    },
}

/// The life of a sidecar handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SidecarState {
    /// VMs can be leased.
    Ready,
    /// Its VMs are being disposed.
    Disposing,
    /// Disposed, or the sidecar has ended.
    Disposed,
}

const READY: u8 = 0;
const DISPOSING: u8 = 1;
const DISPOSED: u8 = 2;

/// Connects that run now or handles that live, by socket and runtime.
static POOLS: LazyLock<Mutex<HashMap<PoolKey, Arc<Slot>>>> = LazyLock::new(Mutex::default);

type PoolKey = (PathBuf, tokio::runtime::Id);

#[derive(Default)]
struct Slot {
    handle: Mutex<Weak<Inner>>,
    /// Held while one caller connects, so that the others get its handle.
    connecting: Arc<tokio::sync::Mutex<()>>,
}

/// Every lock here is held for a few loads and stores that cannot panic half way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The runtime that connections live on.
pub(crate) fn runtime() -> Result<Handle, CallError> {
    Handle::try_current().map_err(CallError::NoRuntime)
}

impl Slot {
    fn of(socket: PathBuf, runtime: &Handle) -> Arc<Self> {
        let mut pools = lock(&POOLS);
        pools.retain(|_, slot| Arc::strong_count(slot) > 1 || lock(&slot.handle).strong_count() > 0);
        Arc::clone(pools.entry((socket, runtime.id())).or_default())
    }

    fn living(&self) -> Option<AgentOsSidecar> {
        let handle = AgentOsSidecar { inner: lock(&self.handle).upgrade()? };
        (handle.describe().state == SidecarState::Ready).then_some(handle)
    }
}

impl AgentOsSidecar {
    /// The pool's handle: the living one, else a new one, starting the sidecar where it does not run.
    pub(crate) async fn shared(options: AgentOsSharedSidecarOptions) -> Result<Self, Error> {
        Self::shared_with(options, true).await
    }

    /// As [`shared`](Self::shared), but only of a sidecar that runs already.
    pub(crate) async fn shared_running(options: AgentOsSharedSidecarOptions) -> Result<Self, Error> {
        Self::shared_with(options, false).await
    }

    async fn shared_with(options: AgentOsSharedSidecarOptions, start: bool) -> Result<Self, Error> {
        let AgentOsSharedSidecarOptions { pool, runtime_dir, binary } = options;
        let rendezvous = rendezvous(runtime_dir.as_deref(), &pool).map_err(LaunchError::from)?;
        let runtime = runtime()?;
        let slot = Slot::of(rendezvous.socket.clone(), &runtime);
        if let Some(living) = slot.living() {
            return Ok(living);
        }
        let target = Target { rendezvous, identity: ["--pool".to_owned(), pool.clone()], binary };
        let id = format!("agent-os-shared-sidecar:{pool}");
        // A task of its own: a caller that goes away must not leave a half started sidecar behind.
        let connect = tokio::spawn(async move {
            let _connecting = slot.connecting.lock().await;
            if let Some(living) = slot.living() {
                return Ok(living);
            }
            let greeted =
                if start { connect_or_start(&target).await? } else { connect_running(&target).await? };
            let handle = Self::open(id, SidecarPlacement::Shared { pool }, target, greeted).await?;
            *lock(&slot.handle) = Arc::downgrade(&handle.inner);
            Ok::<_, Error>(handle)
        });
        connect.await.map_err(CallError::Task)?
    }

    /// A sidecar of its own.
    pub(crate) async fn explicit(options: AgentOsCreateSidecarOptions) -> Result<Self, Error> {
        let AgentOsCreateSidecarOptions { sidecar_id, runtime_dir, binary } = options;
        let id = sidecar_id.unwrap_or_else(|| format!("agent-os-sidecar-{}", uuid::Uuid::new_v4()));
        let rendezvous = rendezvous(runtime_dir.as_deref(), &id).map_err(LaunchError::from)?;
        let target = Target { rendezvous, identity: ["--id".to_owned(), id.clone()], binary };
        let placement = SidecarPlacement::Explicit { sidecar_id: id.clone() };
        let connect = runtime()?.spawn(async move {
            let greeted = connect_or_start(&target).await?;
            Self::open(id, placement, target, greeted).await
        });
        connect.await.map_err(CallError::Task)?
    }

    async fn open(
        id: String,
        placement: SidecarPlacement,
        target: Target,
        greeted: Greeted,
    ) -> Result<Self, Error> {
        let Greeted { connection, hello } = greeted;
        tracing::debug!(sidecar = %hello.sidecar_id, version = %hello.sidecar_version, "connected");
        let log = target.rendezvous.log;
        let failed = |status| CallError::from_status(status, &connection, &id, &log);
        let mut lease =
            connection.sidecar().open_lease(v1::OpenLeaseRequest {}).await.map_err(failed)?.into_inner();
        let opened =
            lease.message().await.map_err(failed)?.ok_or(CallError::Incomplete { call: "OpenLease" })?;
        // The lease lasts as long as its stream; reading it keeps the stream, and ends with the connection.
        tokio::spawn(async move { while let Ok(Some(_)) = lease.message().await {} });
        Ok(Self {
            inner: Arc::new(Inner {
                id,
                placement,
                connection,
                lease_id: opened.lease_id,
                log,
                state: AtomicU8::new(READY),
                active_vms: AtomicUsize::new(0),
                runtime: Handle::current(),
            }),
        })
    }

    /// Identity, placement, state and the number of VMs leased through this handle. Never waits.
    #[must_use]
    pub fn describe(&self) -> AgentOsSidecarDescription {
        let inner = &self.inner;
        let state = match inner.state.load(Ordering::Acquire) {
            DISPOSING => SidecarState::Disposing,
            READY if !inner.connection.is_gone() => SidecarState::Ready,
            _ => SidecarState::Disposed,
        };
        AgentOsSidecarDescription {
            sidecar_id: inner.id.clone(),
            placement: inner.placement.clone(),
            state,
            active_vm_count: inner.active_vms.load(Ordering::Acquire),
        }
    }

    /// Disposes every VM leased through this handle and waits for it; a sidecar nobody else uses then ends.
    ///
    /// Calls that run through the handle fail with [`Closed`](crate::ErrorKind::Closed). Disposing twice is fine.
    ///
    /// # Errors
    ///
    /// When the sidecar could not end a VM. The handle is disposed all the same.
    pub async fn dispose(&self) -> Result<(), Error> {
        let inner = &self.inner;
        let first =
            inner.state.compare_exchange(READY, DISPOSING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !first || inner.connection.is_gone() {
            return self.wait_until_disposed().await;
        }
        let this = self.clone();
        // A task of its own: a caller that goes away must not leave the handle disposing for ever.
        let dispose = tokio::spawn(async move {
            let inner = &this.inner;
            let request = v1::DisposeLeaseRequest { lease_id: inner.lease_id.clone() };
            let outcome = inner.connection.sidecar().dispose_lease(request).await;
            inner.state.store(DISPOSED, Ordering::Release);
            inner.active_vms.store(0, Ordering::Release);
            let outcome = match outcome {
                Ok(_) => Ok(()),
                // The last client's sidecar may be gone before its answer is: then everything is disposed.
                Err(_) if inner.connection.is_gone() => Ok(()),
                Err(status) => Err(this.failed(status)),
            };
            inner.connection.close();
            outcome
        });
        dispose.await.map_err(CallError::Task)?
    }

    async fn wait_until_disposed(&self) -> Result<(), Error> {
        let mut gone = self.inner.connection.gone();
        // Announced even when the connection's task panics.
        if !self.inner.connection.is_gone() {
            let _ = gone.wait_for(|gone| *gone).await;
        }
        self.inner.state.store(DISPOSED, Ordering::Release);
        Ok(())
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    pub(crate) fn lease_id(&self) -> &str {
        &self.inner.lease_id
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    pub(crate) fn id(&self) -> &str {
        &self.inner.id
    }

    /// A VM leased through this handle exists from now on.
    pub(crate) fn count_vm(&self) {
        self.inner.active_vms.fetch_add(1, Ordering::AcqRel);
    }

    /// It is gone. Saturating, because disposing the handle has already counted all of them off.
    pub(crate) fn uncount_vm(&self) {
        let _ = self
            .inner
            .active_vms
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1));
    }

    /// Refuses new VMs on a handle that is disposed, or whose sidecar has ended.
    pub(crate) fn check_ready(&self) -> Result<(), Error> {
        match self.describe().state {
            SidecarState::Ready => Ok(()),
            _ if self.inner.state.load(Ordering::Acquire) == READY => Err(self.died().into()),
            SidecarState::Disposing | SidecarState::Disposed => {
                Err(CallError::SidecarDisposed { sidecar_id: self.inner.id.clone() }.into())
            }
        }
    }

    fn died(&self) -> CallError {
        CallError::Died {
            sidecar_id: self.inner.id.clone(),
            log_tail: log_tail(&self.inner.log),
            source: None,
        }
    }

    /// What a failed call means, given what is known of the connection.
    pub(crate) fn failed(&self, status: tonic::Status) -> Error {
        CallError::from_status(status, &self.inner.connection, &self.inner.id, &self.inner.log).into()
    }
}

impl std::fmt::Debug for AgentOsSidecar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentOsSidecar").field("description", &self.describe()).finish()
    }
}
