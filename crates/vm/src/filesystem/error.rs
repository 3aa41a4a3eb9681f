//! What can go wrong with files, in the words of a system call.

use agentos_guest_protocol::filesystem::FileCall;
use agentos_guest_protocol::init::Failure;
use rustix::io::Errno;

use crate::command::CallFailure;
use crate::errno::text;
use crate::path::{GuestPath, PathError, lossy};
use crate::vm::Unavailable;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    #[error(transparent)]
    Path(#[from] PathError),
    /// `ENOENT: no such file or directory, open '/x'`.
    #[error("{}, {} '{}'", text(*errno), call_name(*call), lossy(path))]
    Failed { errno: i32, call: FileCall, path: Vec<u8> },
    #[error("ETIMEDOUT: file system does not answer, {call} '{}'", lossy(path))]
    TimedOut { call: String, path: Vec<u8> },
    #[error("EBUSY: too many calls wait for file systems that don't answer, {} '{}'", call_name(*call), lossy(path))]
    TooManyStuck { call: FileCall, path: Vec<u8> },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

fn call_name(call: FileCall) -> &'static str {
    match call {
        FileCall::Open => "open",
        FileCall::Read => "read",
        FileCall::Write => "write",
        FileCall::Mkdir => "mkdir",
        FileCall::Scandir => "scandir",
        FileCall::Stat => "stat",
        FileCall::Rename => "rename",
        FileCall::Unlink => "unlink",
        FileCall::Rmdir => "rmdir",
        FileCall::Copy => "copyfile",
    }
}

impl FileError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Path(error) => Some(error.errno()),
            Self::Failed { errno, .. } => Some(*errno),
            Self::TimedOut { .. } => Some(Errno::TIMEDOUT.raw_os_error()),
            Self::TooManyStuck { .. } => Some(Errno::BUSY.raw_os_error()),
            Self::Unavailable(_) => None,
        }
    }

    /// The path the error is about.
    pub fn path(&self) -> Option<&[u8]> {
        match self {
            Self::Failed { path, .. } | Self::TimedOut { path, .. } | Self::TooManyStuck { path, .. } => {
                Some(path)
            }
            Self::Path(
                PathError::NotAbsolute(path) | PathError::NotNormalized(path) | PathError::Nul(path),
            ) => Some(path),
            Self::Path(PathError::TooLong { .. }) | Self::Unavailable(_) => None,
        }
    }

    /// `call` and `path` are what was asked; init's failure may name something more exact.
    pub(crate) fn of(failure: CallFailure, call: FileCall, path: &GuestPath) -> Self {
        let path = || path.as_bytes().to_vec();
        match failure {
            CallFailure::Init(Failure::File(failure)) => {
                Self::Failed { errno: failure.errno, call: failure.call, path: failure.path.into_vec() }
            }
            CallFailure::Init(Failure::TimedOut { call }) => Self::TimedOut { call, path: path() },
            CallFailure::Init(Failure::TooManyStuck) => Self::TooManyStuck { call, path: path() },
            other => match other.errno() {
                Ok(errno) => Self::Failed { errno, call, path: path() },
                Err(unavailable) => Self::Unavailable(unavailable),
            },
        }
    }

    /// A call of ours on a descriptor of the VM.
    pub(crate) fn io(error: &std::io::Error, call: FileCall, path: &GuestPath) -> Self {
        let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        Self::Failed { errno, call, path: path.as_bytes().to_vec() }
    }
}
