//! What agentos_vm says.

use agentos_proto::v1::ErrorKind;
use agentos_vm::filesystem::FileError;
use agentos_vm::mount::MountError;
use agentos_vm::network::NetworkError;
use agentos_vm::path::PathError;
use agentos_vm::process::{ListError, SignalError};
use agentos_vm::shell::ResizeError;
use agentos_vm::{
    BootFailure, CreateError, GoneReason, LauncherError, SpawnError, SpecError, StdinError, StorageError,
    StorageProblem, Unavailable,
};
use rustix::io::Errno;

use super::{Failure, chain, lossy};
use crate::doctor::{self, Facts, Isolation, RefusedCall};

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        let message = error.to_string();
        match error {
            Unavailable::Disposing => Self::new(ErrorKind::Closed, "", message),
            Unavailable::Gone(reason) => reason.into(),
            _ => Self::new(ErrorKind::VmFailed, "", message),
        }
    }
}

impl From<GoneReason> for Failure {
    fn from(reason: GoneReason) -> Self {
        let kind = match reason {
            GoneReason::Disposed => ErrorKind::Closed,
            _ => ErrorKind::VmFailed,
        };
        Self::new(kind, "", chain(&reason))
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        let object = match &error {
            PathError::NotAbsolute(path) | PathError::NotNormalized(path) | PathError::Nul(path) => {
                lossy(path)
            }
            PathError::TooLong { .. } => String::new(),
        };
        Self::system(error.errno(), object, error.to_string())
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let message = error.to_string();
        let errno = error.errno();
        match error {
            FileError::Path(error) => error.into(),
            FileError::Unavailable(error) => error.into(),
            FileError::Failed { errno, path, .. } => Self::system(errno, lossy(&path), message),
            FileError::TimedOut { .. } => {
                Self::new(ErrorKind::Timeout, "", message).with_errno(Errno::TIMEDOUT)
            }
            FileError::TooManyStuck { .. } => Self::new(ErrorKind::Busy, "", message).with_errno(Errno::BUSY),
            _ => match errno {
                Some(errno) => Self::system(errno, "", message),
                None => Self::new(ErrorKind::Internal, "", message),
            },
        }
    }
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        let message = chain(&error);
        match error {
            SpawnError::Failed { errno, object, .. } => Self::system(errno, object, message),
            SpawnError::TooBig => Self::invalid("argv", message).with_errno(Errno::TOOBIG),
            SpawnError::EmptyArgv => Self::invalid("argv", message).with_errno(Errno::INVAL),
            SpawnError::Nul(input) => Self::invalid(input.to_string(), message).with_errno(Errno::INVAL),
            SpawnError::EnvironmentName(name) => Self::invalid(name, message).with_errno(Errno::INVAL),
            SpawnError::Cwd(error) => error.into(),
            SpawnError::NoAnswer { .. } => Self::new(ErrorKind::Timeout, "", message),
            SpawnError::Unavailable(error) => error.into(),
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<StdinError> for Failure {
    fn from(error: StdinError) -> Self {
        let message = error.to_string();
        match error {
            StdinError::NotPiped => Self::invalid("stdin", message),
            StdinError::Closed => Self::new(ErrorKind::Closed, "stdin", message),
            StdinError::BrokenPipe => Self::new(ErrorKind::Closed, "stdin", message).with_errno(Errno::PIPE),
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<SignalError> for Failure {
    fn from(error: SignalError) -> Self {
        let message = error.to_string();
        match error {
            SignalError::Unknown(signal) => {
                Self::invalid(signal.to_string(), message).with_errno(Errno::INVAL)
            }
            SignalError::Failed { pid, errno } => Self::system(errno, pid.to_string(), message),
            SignalError::Unavailable(error) => error.into(),
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Self {
        let message = error.to_string();
        match error {
            ListError::Failed { errno } => Self::system(errno, "", message),
            ListError::Unavailable(error) => error.into(),
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<ResizeError> for Failure {
    fn from(error: ResizeError) -> Self {
        let message = error.to_string();
        match error {
            ResizeError::Size { cols, rows } => Self::invalid(format!("{cols}x{rows}"), message),
            ResizeError::Closed => Self::new(ErrorKind::Closed, "", message),
            ResizeError::Failed { errno } => Self::system(errno, "", message),
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        let message = chain(&error);
        match error {
            MountError::Path(error) | MountError::HostPath(error) => error.into(),
            MountError::Target(path) | MountError::NotMounted(path) => {
                Self::invalid(path.to_string(), message).with_errno(Errno::INVAL)
            }
            MountError::Failed(failure) => Self::system(failure.errno, lossy(&failure.object), message),
            MountError::TooSmall { .. } => Self::invalid("max_bytes", message).with_errno(Errno::INVAL),
            MountError::TimedOut { .. } => {
                Self::new(ErrorKind::Timeout, "", message).with_errno(Errno::TIMEDOUT)
            }
            MountError::TooManyStuck => Self::new(ErrorKind::Busy, "", message).with_errno(Errno::BUSY),
            MountError::Unavailable(error) => error.into(),
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        let message = chain(&error);
        match error {
            NetworkError::Failed(failure) => Self::system(failure.errno, lossy(&failure.object), message),
            NetworkError::TimedOut { .. } => {
                Self::new(ErrorKind::Timeout, "", message).with_errno(Errno::TIMEDOUT)
            }
            NetworkError::TooManyStuck => Self::new(ErrorKind::Busy, "", message).with_errno(Errno::BUSY),
            NetworkError::Listen { address, source } => match source.raw_os_error() {
                Some(errno) => Self::system(errno, address.to_string(), message),
                None => Self::new(ErrorKind::Internal, address.to_string(), message),
            },
            NetworkError::Missing(_) => Self::new(ErrorKind::HostUnsupported, "network", message),
            NetworkError::Unavailable(error) => error.into(),
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        let kind = match error.problem.is_unsupported() {
            true => ErrorKind::HostUnsupported,
            false => ErrorKind::InvalidInput,
        };
        Self::new(kind, error.field.to_string(), chain(&error))
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        let message = chain(&error);
        match error {
            CreateError::Boot(failure) => boot(&failure, message),
            CreateError::Storage(error) => Self { message, ..error.into() },
            CreateError::Gone(reason) => Self { message, ..reason.into() },
            CreateError::TimedOut { .. } => Self::new(ErrorKind::Timeout, "", message),
            CreateError::LoopbackPort { port, source } => {
                Self { message, object: port.to_string(), ..source.into() }
            }
            CreateError::TrustStore { path, source } => {
                Self { message, object: path.to_owned(), ..source.into() }
            }
            CreateError::Trust(_) => Self::new(ErrorKind::HostUnsupported, "certificates", message),
            CreateError::Ids(source) | CreateError::Socket(source) => match source.raw_os_error() {
                Some(errno) => Self::system(errno, "", message),
                None => Self::new(ErrorKind::Internal, "", message),
            },
            _ => Self::new(ErrorKind::Internal, "", message),
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        let (object, message) = (error.path.display().to_string(), chain(&error));
        match error.problem {
            StorageProblem::InUse => Self::new(ErrorKind::Busy, object, message).with_errno(Errno::BUSY),
            StorageProblem::TimedOut { .. } => {
                Self::new(ErrorKind::Timeout, object, message).with_errno(Errno::TIMEDOUT)
            }
            StorageProblem::Call { source, .. } => match source.raw_os_error() {
                Some(errno) => Self::system(errno, object, message),
                None => Self::new(ErrorKind::Internal, object, message),
            },
            StorageProblem::Fault => Self::new(ErrorKind::Internal, object, message),
            _ => Self::invalid(object, message),
        }
    }
}

impl From<&LauncherError> for Failure {
    fn from(error: &LauncherError) -> Self {
        match error {
            LauncherError::Unsupported(failure) => boot(failure, chain(error)),
            _ => Self::new(ErrorKind::Internal, "launcher", chain(error)),
        }
    }
}

/// A step of a boot that failed: the host's doing where the kernel refused, else an answer about the object.
fn boot(failure: &BootFailure, message: String) -> Failure {
    let refusals =
        [Errno::PERM, Errno::NOSYS, Errno::USERS, Errno::NODEV, Errno::OPNOTSUPP, Errno::INVAL, Errno::NOSPC];
    let refused = refusals.contains(&Errno::from_raw_os_error(failure.errno));
    let object = lossy(&failure.object);
    if !refused {
        return Failure::system(failure.errno, object, message);
    }
    let call = RefusedCall { step: failure.step.clone(), object: object.clone(), errno: failure.errno };
    match doctor::unsupported(&Facts::collect(Isolation::Refused(call), None)) {
        // A refusal without a known cause, about a path the caller named, is about that path.
        Some(line) if !object.is_empty() && !line.is_explained() => {
            Failure::system(failure.errno, object, message)
        }
        Some(line) => Failure {
            kind: ErrorKind::HostUnsupported,
            errno: Some(failure.errno),
            object: line.name.to_owned(),
            message: format!("This host can't run VMs: {}. To cure it: {}", line.finding, line.remedy),
        },
        None => Failure::system(failure.errno, object, message),
    }
}
