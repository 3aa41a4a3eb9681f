//! What agentos_agents says.

use agentos_agents::configuration::Malformed;
use agentos_agents::model::NoModel;
use agentos_agents::plan::{PlanError, PrepareError};
use agentos_agents::session::{FaultKind, PermissionError, PromptError, StartError};
use agentos_agents::store::InstallError;
use agentos_agents::transcript::TranscriptError;
use agentos_agents::{SessionNotFound, UnknownAgent};
use agentos_proto::v1::ErrorKind;
use rustix::io::Errno;

use super::{Failure, chain};

impl From<UnknownAgent> for Failure {
    fn from(error: UnknownAgent) -> Self {
        Self::new(ErrorKind::NotFound, &error.id, error.to_string())
    }
}

impl From<Malformed> for Failure {
    fn from(error: Malformed) -> Self {
        let message = chain(&error);
        Self::invalid(error.path, message)
    }
}

impl From<NoModel> for Failure {
    fn from(error: NoModel) -> Self {
        Self::new(ErrorKind::NoModel, error.agent(), error.to_string())
    }
}

impl From<SessionNotFound> for Failure {
    fn from(error: SessionNotFound) -> Self {
        Self::new(ErrorKind::NotFound, &error.id, error.to_string())
    }
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        let message = chain(&error);
        match error {
            InstallError::Processor { arch } => Self::new(ErrorKind::HostUnsupported, arch, message),
            InstallError::NoSpace { place, .. } => {
                Self::new(ErrorKind::NoSpace, place.to_string_lossy(), message).with_errno(Errno::NOSPC)
            }
            InstallError::Directory { path, source, .. } => match source.raw_os_error() {
                Some(errno) => Self::system(errno, path.to_string_lossy(), message),
                None => Self::new(ErrorKind::Internal, path.to_string_lossy(), message),
            },
            InstallError::Locked { lock, .. } => Self::new(ErrorKind::Busy, lock.to_string_lossy(), message),
            InstallError::Cancelled => Self::new(ErrorKind::Cancelled, "", message),
            InstallError::Download { package, .. } | InstallError::Unpack { package, .. } => {
                Self::new(ErrorKind::AgentNotInstalled, package, message)
            }
            _ => Self::new(ErrorKind::AgentNotInstalled, "", message),
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let message = chain(&error);
        match error {
            PlanError::MissingPackage { agent, .. } => {
                Self::new(ErrorKind::AgentNotInstalled, agent, message)
            }
            PlanError::NoToolServers { agent } => Self::new(ErrorKind::Unsupported, agent, message),
            PlanError::Nothing { agent, .. } | PlanError::File { agent, .. } => {
                Self::new(ErrorKind::Internal, agent, message)
            }
        }
    }
}

impl From<PrepareError> for Failure {
    fn from(error: PrepareError) -> Self {
        let (message, path) = (chain(&error), error.path.to_string_lossy().into_owned());
        match error.source.raw_os_error() {
            Some(errno) => Self::system(errno, path, message),
            None => Self::new(ErrorKind::Internal, path, message),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let message = chain(&error);
        match error {
            StartError::Agent { agent, source } if source.kind() == FaultKind::NoSpace => {
                Self::new(ErrorKind::NoSpace, agent, message)
            }
            StartError::Agent { agent, .. } | StartError::Refused { agent, .. } => {
                Self::new(ErrorKind::AgentFailed, agent, message)
            }
            StartError::Version { agent, .. } | StartError::NoRemoteToolServers { agent } => {
                Self::new(ErrorKind::Unsupported, agent, message)
            }
            StartError::NotLoggedIn { agent, .. } => Self::new(ErrorKind::NoModel, agent, message),
            StartError::NotReady { agent, .. } => Self::new(ErrorKind::Timeout, agent, message),
        }
    }
}

impl From<PromptError> for Failure {
    fn from(error: PromptError) -> Self {
        let kind = match error.kind() {
            FaultKind::Busy => ErrorKind::Busy,
            FaultKind::InvalidInput => ErrorKind::InvalidInput,
            FaultKind::Model => ErrorKind::Model,
            FaultKind::EmptyTurn => ErrorKind::EmptyTurn,
            FaultKind::Timeout => ErrorKind::Timeout,
            FaultKind::AgentFailed => ErrorKind::AgentFailed,
            FaultKind::Closed => ErrorKind::Closed,
            FaultKind::NoSpace => ErrorKind::NoSpace,
            FaultKind::Internal => ErrorKind::Internal,
        };
        Self::new(kind, "", chain(&error))
    }
}

impl From<PermissionError> for Failure {
    fn from(error: PermissionError) -> Self {
        let message = error.to_string();
        match error {
            PermissionError::NotFound { id } => Self::new(ErrorKind::NotFound, id, message),
            PermissionError::NotOffered { .. } => Self::new(ErrorKind::Unsupported, "", message),
        }
    }
}

impl From<TranscriptError> for Failure {
    fn from(error: TranscriptError) -> Self {
        let message = chain(&error);
        match &error {
            error if error.is_no_space() => Self::new(ErrorKind::NoSpace, "transcript", message),
            TranscriptError::UnknownSession { session } => Self::new(ErrorKind::NotFound, session, message),
            TranscriptError::Newer { path, .. } => {
                Self::new(ErrorKind::Unsupported, path.to_string_lossy(), message)
            }
            _ => Self::new(ErrorKind::Internal, "transcript", message),
        }
    }
}
