//! Live mounts. Guest processes see them at once; they hide what was below.
//!
//! A host directory takes two steps: the launcher makes a detached, idmapped tree of it, init attaches that. The
//! sidecar holds the tree's descriptor in between and never looks into it.

use agentos_guest_protocol::init::{Failure, Request, Response};
use agentos_guest_protocol::launcher::{BootFailure, PlannedMountKind};
use agentos_guest_protocol::mount::MountRequest;
use rustix::io::Errno;

use crate::command::{Answer, CallFailure, ProtocolError};
use crate::launcher::OpenHostDirError;
use crate::path::{GuestPath, PathError};
use crate::spec::{MountOptions, MountRefusal, plan_mount, unmount_target};
use crate::vm::{GoneReason, Unavailable, Vm};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    #[error(transparent)]
    Path(PathError),
    /// `/`, and all of /proc, /dev and /sys.
    #[error("EINVAL: nothing can be mounted at '{0}'")]
    Target(GuestPath),
    #[error("host directory: {0}")]
    HostPath(#[source] PathError),
    #[error("EINVAL: a memory mount of {value} bytes is too small")]
    TooSmall { value: u64 },
    #[error("{}", crate::errno::describe(.0))]
    Failed(BootFailure),
    #[error("ETIMEDOUT: file system does not answer, {call}")]
    TimedOut { call: String },
    #[error("EBUSY: too many calls wait for file systems that don't answer")]
    TooManyStuck,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl MountError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Path(error) | Self::HostPath(error) => Some(error.errno()),
            Self::Target(_) | Self::TooSmall { .. } => Some(Errno::INVAL.raw_os_error()),
            Self::Failed(failure) => Some(failure.errno),
            Self::TimedOut { .. } => Some(Errno::TIMEDOUT.raw_os_error()),
            Self::TooManyStuck => Some(Errno::BUSY.raw_os_error()),
            Self::Unavailable(_) => None,
        }
    }
}

impl From<MountRefusal> for MountError {
    fn from(refusal: MountRefusal) -> Self {
        match refusal {
            MountRefusal::Target(path) => Self::Target(path),
            MountRefusal::TargetPath(error) => Self::Path(error),
            MountRefusal::HostPath(error) => Self::HostPath(error),
            MountRefusal::TooSmall { value } => Self::TooSmall { value },
        }
    }
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    Gone,
    /// Out of sight; goes with its last user.
    Busy,
}

impl Vm {
    pub async fn mount_fs(&self, mount: MountOptions) -> Result<(), MountError> {
        let plan = plan_mount(mount, self.spec().disk_bytes())?;
        let target = plan.target.to_wire();
        let (request, descriptors) = match plan.kind {
            PlannedMountKind::Memory { max_bytes, read_only } => {
                (MountRequest::Memory { target, max_bytes, read_only }, Vec::new())
            }
            PlannedMountKind::HostDir(host_dir) => {
                let (launcher, number) = self.launcher();
                let tree = launcher.open_host_dir(number, host_dir).await.map_err(|error| match error {
                    OpenHostDirError::Failed(failure) => MountError::Failed(failure),
                    OpenHostDirError::Died(death) => {
                        MountError::Unavailable(Unavailable::Gone(GoneReason::Launcher(death)))
                    }
                })?;
                (MountRequest::Attach { target }, vec![tree])
            }
        };
        let mounted = self.call(Request::Mount(request), descriptors, Answer::done).await;
        mounted.map_err(|failure| failed("mount", &plan.target, failure))
    }

    /// Takes a mount away; one that is in use is out of sight at once and goes with its last user.
    pub async fn unmount_fs(&self, path: &[u8]) -> Result<Unmounted, MountError> {
        let target = unmount_target(path)?;
        let request = Request::Mount(MountRequest::Unmount { target: target.to_wire() });
        let unmounted = self.call(request, Vec::new(), parse_unmounted).await;
        unmounted.map_err(|failure| failed("unmount", &target, failure))
    }
}

fn parse_unmounted(answer: Answer) -> Result<Unmounted, ProtocolError> {
    answer.without_descriptors()?;
    match answer.response {
        Response::Done => Ok(Unmounted::Gone),
        Response::UnmountedBusy => Ok(Unmounted::Busy),
        _ => Err(ProtocolError::WrongAnswer("unmount")),
    }
}

fn failed(step: &str, target: &GuestPath, failure: CallFailure) -> MountError {
    match failure {
        CallFailure::Init(Failure::System(failure)) => MountError::Failed(failure),
        CallFailure::Init(Failure::TimedOut { call }) => MountError::TimedOut { call },
        CallFailure::Init(Failure::TooManyStuck) => MountError::TooManyStuck,
        other => match other.errno() {
            Ok(errno) => {
                MountError::Failed(BootFailure { step: step.to_owned(), object: target.to_wire(), errno })
            }
            Err(unavailable) => MountError::Unavailable(unavailable),
        },
    }
}
