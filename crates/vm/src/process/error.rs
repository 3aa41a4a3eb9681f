//! What can go wrong with processes.

use std::fmt;

use agentos_guest_protocol::init::Failure;
use agentos_guest_protocol::process::{SpawnFailure, SpawnRequest, SpawnStep};
use rustix::io::Errno;

use super::prepare;
use crate::command::CallFailure;
use crate::errno::text;
use crate::path::{PathError, lossy};
use crate::vm::Unavailable;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    #[error("EINVAL: argv must not be empty")]
    EmptyArgv,
    #[error("EINVAL: {0} must not contain NUL")]
    Nul(SpawnInput),
    #[error("EINVAL: name of an environment variable is empty or contains '=' or NUL: {0:?}")]
    EnvironmentName(String),
    /// The working directory.
    #[error("{0}")]
    Cwd(#[source] PathError),
    /// Longer than the kernel takes; refused before anything is sent.
    #[error("E2BIG: argument list too long, spawn")]
    TooBig,
    /// `object` is the program, or the directory where the step is about that.
    #[error("{}, {} '{object}'", text(*errno), step_call(*step))]
    Failed { step: SpawnStep, errno: i32, object: String },
    #[error("ETIMEDOUT: VM does not answer, spawn '{object}'")]
    NoAnswer { object: String },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnInput {
    Argument,
    Environment,
}

impl fmt::Display for SpawnInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Argument => "argument",
            Self::Environment => "environment",
        })
    }
}

fn step_call(step: SpawnStep) -> &'static str {
    match step {
        SpawnStep::Stdio => "pipe",
        SpawnStep::Fork => "fork",
        SpawnStep::Setup => "set up",
        SpawnStep::Cwd => "chdir",
        SpawnStep::Exec => "spawn",
    }
}

impl SpawnError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::EmptyArgv | Self::Nul(_) | Self::EnvironmentName(_) => Some(Errno::INVAL.raw_os_error()),
            Self::Cwd(error) => Some(error.errno()),
            Self::TooBig => Some(Errno::TOOBIG.raw_os_error()),
            Self::Failed { errno, .. } => Some(*errno),
            Self::NoAnswer { .. } => Some(Errno::TIMEDOUT.raw_os_error()),
            Self::Unavailable(_) => None,
        }
    }

    pub(crate) fn failed(failure: SpawnFailure, request: &SpawnRequest) -> Self {
        let object = match failure.step {
            SpawnStep::Cwd => lossy(&request.cwd).into_owned(),
            _ => prepare::object(request),
        };
        Self::Failed { step: failure.step, errno: failure.errno, object }
    }

    /// Init could not even fork.
    pub(crate) fn of(failure: Failure, object: String) -> Self {
        match failure {
            Failure::Spawn(SpawnFailure { step, errno }) => Self::Failed { step, errno, object },
            Failure::System(failure) => Self::Failed { step: SpawnStep::Fork, errno: failure.errno, object },
            Failure::File(failure) => Self::Failed { step: SpawnStep::Fork, errno: failure.errno, object },
            Failure::TimedOut { .. } | Failure::TooManyStuck => Self::NoAnswer { object },
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StdinError {
    #[error("stdin of the process is not piped")]
    NotPiped,
    #[error("stdin of the process is closed")]
    Closed,
    /// The reader is gone.
    #[error("EPIPE: broken pipe, write")]
    BrokenPipe,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    #[error("EINVAL: unknown signal: {0}")]
    Unknown(i32),
    #[error("{}, kill {pid}", text(*errno))]
    Failed { pid: i32, errno: i32 },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl SignalError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Unknown(_) => Some(Errno::INVAL.raw_os_error()),
            Self::Failed { errno, .. } => Some(*errno),
            Self::Unavailable(_) => None,
        }
    }

    pub(crate) fn of(pid: i32, failure: CallFailure) -> Self {
        match failure.errno() {
            Ok(errno) => Self::Failed { pid, errno },
            Err(unavailable) => Self::Unavailable(unavailable),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    #[error("{}, list processes", text(*errno))]
    Failed { errno: i32 },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<CallFailure> for ListError {
    fn from(failure: CallFailure) -> Self {
        match failure.errno() {
            Ok(errno) => Self::Failed { errno },
            Err(unavailable) => Self::Unavailable(unavailable),
        }
    }
}

impl CallFailure {
    /// The number that says most, where a number is all there is room for.
    pub(crate) fn errno(self) -> Result<i32, Unavailable> {
        match self {
            Self::Init(Failure::Spawn(failure)) => Ok(failure.errno),
            Self::Init(Failure::File(failure)) => Ok(failure.errno),
            Self::Init(Failure::System(failure)) => Ok(failure.errno),
            Self::Init(Failure::TimedOut { .. }) => Ok(Errno::TIMEDOUT.raw_os_error()),
            Self::Init(Failure::TooManyStuck) => Ok(Errno::BUSY.raw_os_error()),
            Self::Local(errno) => Ok(errno.raw_os_error()),
            Self::Unavailable(unavailable) => Err(unavailable),
        }
    }
}
