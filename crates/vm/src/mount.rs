//! Live mounts. Guest processes see them at once; they hide what was below.
//!
//! A host directory takes two steps: the launcher makes a detached, idmapped tree of it, init attaches that. The
//! sidecar holds the tree's descriptor in between and never looks into it.
//!
//! What the VM itself is made of (its /tmp, its /usr) is mounted too, and an agent needs what was mounted for it. So it is
//! remembered who mounted what, and everybody takes away the own alone.

use std::collections::BTreeMap;

use agentos_guest_protocol::init::{Failure, Request, Response};
use agentos_guest_protocol::launcher::{BootFailure, PlannedMountKind};
use agentos_guest_protocol::mount::MountRequest;
use rustix::io::Errno;

use crate::command::{Answer, CallFailure, ProtocolError};
use crate::launcher::OpenHostDirError;
use crate::path::{GuestPath, PathError};
use crate::spec::{MountOptions, MountRefusal, plan_mount};
use crate::sync::lock;
use crate::vm::{GoneReason, Unavailable, Vm};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    #[error(transparent)]
    Path(PathError),
    /// `/`, and all of /proc, /dev and /sys.
    #[error("EINVAL: nothing can be mounted at '{0}'")]
    Target(GuestPath),
    /// An unmount of what this party has not mounted there.
    #[error("EINVAL: nothing that could be unmounted was mounted at '{0}'")]
    NotMounted(GuestPath),
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
            Self::Target(_) | Self::NotMounted(_) | Self::TooSmall { .. } => {
                Some(Errno::INVAL.raw_os_error())
            }
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

/// Who has mounted something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounter {
    User,
    /// We, for an agent.
    Sidecar,
}

/// Who has mounted what where, the topmost mount of a place last.
#[derive(Debug, Default)]
pub(crate) struct Mounted(BTreeMap<GuestPath, Vec<Mounter>>);

impl Mounted {
    pub(crate) fn add(&mut self, target: GuestPath, mounter: Mounter) {
        self.0.entry(target).or_default().push(mounter);
    }

    /// Takes the topmost mount of a place out, if it is this party's.
    fn take(&mut self, target: &GuestPath, mounter: Mounter) -> bool {
        let Some(mounters) = self.0.get_mut(target) else { return false };
        let own = mounters.pop_if(|topmost| *topmost == mounter).is_some();
        if mounters.is_empty() {
            self.0.remove(target);
        }
        own
    }

    /// Takes out what was noted for a mount of this party that has come to nothing, whatever others have put on top
    /// meanwhile. False where somebody has taken it already.
    fn forget(&mut self, target: &GuestPath, mounter: Mounter) -> bool {
        let Some(mounters) = self.0.get_mut(target) else { return false };
        let noted = mounters.iter().rposition(|noted| *noted == mounter).map(|at| mounters.remove(at));
        if mounters.is_empty() {
            self.0.remove(target);
        }
        noted.is_some()
    }
}

impl Vm {
    pub async fn mount_fs(&self, mount: MountOptions, mounter: Mounter) -> Result<(), MountError> {
        let plan = plan_mount(mount, self.spec().disk_bytes())?;
        let target = plan.target.to_wire();
        let (request, descriptors) = match plan.kind {
            PlannedMountKind::Memory { max_bytes, read_only } => {
                (MountRequest::Memory { target, max_bytes, read_only }, Vec::new())
            }
            PlannedMountKind::HostDir(host_dir) => {
                let file = host_dir.file;
                let (launcher, number) = self.launcher();
                let tree = launcher.open_host_dir(number, host_dir).await.map_err(|error| match error {
                    OpenHostDirError::Failed(failure) => MountError::Failed(failure),
                    OpenHostDirError::Died(death) => {
                        MountError::Unavailable(Unavailable::Gone(GoneReason::Launcher(death)))
                    }
                })?;
                (MountRequest::Attach { target, file }, vec![tree])
            }
        };
        // Noted first: a caller that gives up may have mounted all the same, as may one that hears of no answer.
        lock(&self.shared().mounted).add(plan.target.clone(), mounter);
        let mounted = self.call(Request::Mount(request), descriptors, Answer::done).await;
        mounted.map_err(|failure| {
            let error = failed("mount", &plan.target, failure);
            if matches!(error, MountError::TimedOut { .. }) {
                return error;
            }
            if !lock(&self.shared().mounted).forget(&plan.target, mounter) {
                // An unmount that came too early has the note, and gives it back when it fails, as it must.
                tracing::debug!(target = %plan.target, "failed mount was to be unmounted meanwhile");
            }
            error
        })
    }

    /// Takes a mount away that this party has made, live or with the VM; one that is in use is out of sight at once and
    /// goes with its last user.
    pub async fn unmount_fs(&self, path: &[u8], mounter: Mounter) -> Result<Unmounted, MountError> {
        let target = GuestPath::parse(path).map_err(MountError::Path)?;
        // Taken first, so that of two callers one alone gets to what lies there.
        if !lock(&self.shared().mounted).take(&target, mounter) {
            return Err(MountError::NotMounted(target));
        }
        let request = Request::Mount(MountRequest::Unmount { target: target.to_wire() });
        let unmounted = self.call(request, Vec::new(), parse_unmounted).await;
        unmounted.map_err(|failure| {
            lock(&self.shared().mounted).add(target.clone(), mounter);
            failed("unmount", &target, failure)
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_mount_is_forgotten_below_anothers_that_came_meanwhile() {
        let target = GuestPath::parse(b"/mnt/data").unwrap();
        let mut mounted = Mounted::default();
        mounted.add(target.clone(), Mounter::User);
        mounted.add(target.clone(), Mounter::Sidecar);
        assert!(mounted.forget(&target, Mounter::User));
        assert!(!mounted.forget(&target, Mounter::User), "one note was taken twice");
        assert!(!mounted.take(&target, Mounter::User));
        assert!(mounted.take(&target, Mounter::Sidecar));
        assert!(mounted.0.is_empty());
    }
}
