//! A live VM.
use std::sync::Arc;
use std::time::Duration;

use agentos_guest_protocol::launcher::BootFailure;
use agentos_guest_protocol::process::Status;

use crate::launcher::{Launcher, LauncherDeath};
use crate::spec::VmSpec;

/// A handle to a VM; clones share it.
#[derive(Debug, Clone)]
pub struct Vm;

/// What a VM is doing.
#[derive(Debug, Clone)]
pub enum VmState {
    Running,
    Disposing,
    Failed(GoneReason),
    Disposed,
}

/// Why a VM is no more.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GoneReason {
    #[error("VM was disposed")]
    Disposed,
    #[error("VM's init ended: {0:?}")]
    InitEnded(Status),
    #[error("VM's init broke the protocol")]
    Protocol(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error("launcher of the VM died")]
    Launcher(#[source] LauncherDeath),
    #[error("fault in the sidecar while it served this VM")]
    Fault,
}

/// Why a VM can't be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unavailable {
    #[error("VM is being disposed")]
    Disposing,
    #[error(transparent)]
    Gone(GoneReason),
}

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Init or launcher could not do a step.
    #[error("VM can't be booted: {}", crate::errno::describe(.0))]
    Boot(BootFailure),
    #[error("VM did not become ready")]
    Gone(#[source] GoneReason),
    #[error("VM was not ready within {} s", .after.as_secs())]
    TimedOut { after: Duration },
    #[error("no ids are left for the VM")]
    Ids(#[source] std::io::Error),
    #[error("VM's control socket can't be made")]
    Socket(#[source] std::io::Error),
    #[error("VM can't serve loopback port {port}")]
    LoopbackPort {
        port: u16,
        #[source]
        source: crate::network::NetworkError,
    },
}

impl Vm {
    pub async fn create(_launcher: &Launcher, _spec: VmSpec) -> Result<Self, CreateError> {
        todo!()
    }
    pub fn spec(&self) -> &VmSpec {
        todo!()
    }
    pub fn state(&self) -> VmState {
        todo!()
    }
    pub async fn gone(&self) -> GoneReason {
        todo!()
    }
    pub async fn dispose(&self, _grace: Option<Duration>) {
        todo!()
    }
}
