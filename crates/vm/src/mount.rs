//! Live mounts.
use agentos_guest_protocol::launcher::BootFailure;

use crate::path::PathError;
use crate::spec::MountOptions;
use crate::vm::{Unavailable, Vm};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("EINVAL: nothing can be mounted at '{0}'")]
    Target(crate::path::GuestPath),
    #[error("host directory: {0}")]
    HostPath(#[source] PathError),
    #[error("{}", crate::errno::describe(.0))]
    Failed(BootFailure),
    #[error("ETIMEDOUT: file system does not answer, {call}")]
    TimedOut { call: String },
    #[error("EBUSY: too many calls wait for file systems that don't answer")]
    TooManyStuck,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    Gone,
    /// Out of sight; goes with its last user.
    Busy,
}

impl Vm {
    pub async fn mount_fs(&self, _mount: MountOptions) -> Result<(), MountError> {
        todo!()
    }
    pub async fn unmount_fs(&self, _path: &[u8]) -> Result<Unmounted, MountError> {
        todo!()
    }
}
