//! The one place where the errors of every operation, and the sidecar's, become [`Error`].

use std::path::Path;

use agentos_proto::rendezvous::DirectoryError;
use agentos_proto::v1;
use prost::Message;
use tonic::{Code, Status};

use super::AnswerError;
use crate::connection::{Connection, DialError};
use crate::discovery::DiscoverError;
use crate::error::{Error, ErrorKind, JsonRpcError};
use crate::launch::{LaunchError, log_tail};
use crate::policy::{FileError, TargetError};
use crate::terminal::TerminalError;

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{}", .0.message)]
    Answered(v1::ErrorDetail),
    #[error("the sidecar answered {code}: {}", .status.message())]
    Bare { code: Code, status: Box<Status> },
    #[error("sidecar {sidecar_id} died{}", quote_log(.log_tail))]
    Died { sidecar_id: String, log_tail: String, source: Option<Box<Status>> },
    #[error("sidecar {sidecar_id} has been disposed")]
    Closed { sidecar_id: String },
    #[error("Cannot lease VM from sidecar {sidecar_id} while it is disposed")]
    SidecarDisposed { sidecar_id: String },
    #[error("VM {vm_id} has been disposed")]
    VmDisposed { vm_id: String },
    #[error("VM not found: {name}")]
    NoSuchVm { name: String },
    #[error("Process not found: {pid}")]
    NoSuchProcess { pid: i32 },
    #[error("Session not found: {id}")]
    NoSuchSession { id: String },
    #[error("{call} ended without an answer")]
    Incomplete { call: &'static str },
    #[error("there is no tokio runtime here, and the SDK needs one")]
    NoRuntime(#[source] tokio::runtime::TryCurrentError),
    #[error("a task of the call was cancelled")]
    Task(#[source] tokio::task::JoinError),
    #[error("exec takes its standard input whole; use spawn to write to a running process")]
    PipedExec,
    #[error("output from byte {from} to byte {next} was discarded before it was read")]
    OutputGap { from: u64, next: u64 },
    #[error(
        "this reader of session {session_id} has fallen far behind; nothing is lost, it can go on from event {next}"
    )]
    EventsBehind { session_id: String, next: u64 },
    #[error("EPIPE: the connection to port {port} has ended")]
    ConnectionEnded { port: u16 },
    #[error("the request's body failed")]
    RequestBody { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the prompt was not answered within {} ms", .limit.as_millis())]
    PromptTimeout { session_id: String, limit: std::time::Duration },
    #[error("the agent has no option of category {category}; it has {}", list(.supported))]
    NoSuchOption { category: &'static str, supported: Vec<String> },
    #[error("an entry of the registry of ACP agents is an object with an id and a distribution: {0}")]
    RegistryEntry(#[source] serde_json::Error),
    #[error(
        "the registry has {id} as archives alone, which are not fetched: unpack the one for Linux, mount its directory and use \
         AgentConfig::command with its command there"
    )]
    ArchivedAgent { id: String },
    #[error("the instructions of agent {agent} could not be prepared: {source}")]
    Preparation { agent: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the agent answered {method} with error {}: {}", .error.code, .error.message)]
    Rpc { method: String, error: JsonRpcError },
}

/// A wish cannot be put into a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(
        "E2BIG: argument list too long: arguments and environment are {bytes} bytes, and Linux takes {limit}"
    )]
    ArgumentsTooLong { bytes: usize, limit: usize },
    #[error("EINVAL: {what} contains a NUL byte")]
    Nul { what: &'static str },
    #[error("EINVAL: the name {name:?} of an environment variable is empty or has a '=' in it")]
    VariableName { name: String },
    #[error("EINVAL: the host path {path:?} is not UTF-8")]
    HostPath { path: String },
    #[error("cannot make the host path {path:?} absolute")]
    Absolute { path: String, source: std::io::Error },
    #[error("EINVAL: {text:?} is not an address of the host: PORT, or an IP address and a port")]
    HostAddr { text: String },
    #[error("EINVAL: limits.cpu must be a positive number, not {cpus}")]
    Cpu { cpus: f64 },
}

fn quote_log(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!("; its log ends: {tail}") }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl CallError {
    /// What a failed call means: the sidecar's own answer where there is one, else what became of the connection.
    pub(crate) fn from_status(status: Status, connection: &Connection, sidecar_id: &str, log: &Path) -> Self {
        if let Some(detail) = detail(&status) {
            return Self::Answered(detail);
        }
        let sidecar_id = sidecar_id.to_owned();
        if connection.was_closed() {
            return Self::Closed { sidecar_id };
        }
        // Only what the transport made carries a source; what the sidecar answered does not.
        if std::error::Error::source(&status).is_some() || connection.is_gone() {
            return Self::Died { sidecar_id, log_tail: log_tail(log), source: Some(Box::new(status)) };
        }
        Self::Bare { code: status.code(), status: Box::new(status) }
    }
}

fn detail(status: &Status) -> Option<v1::ErrorDetail> {
    if status.details().is_empty() {
        return None;
    }
    v1::ErrorDetail::decode(status.details()).ok()
}

/// The error of one file of a batch.
pub(crate) fn from_detail(detail: v1::ErrorDetail) -> Error {
    CallError::Answered(detail).into()
}

fn kind(kind: v1::ErrorKind) -> ErrorKind {
    match kind {
        v1::ErrorKind::Unspecified | v1::ErrorKind::Internal => ErrorKind::Internal,
        v1::ErrorKind::NotFound => ErrorKind::NotFound,
        v1::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        v1::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
        v1::ErrorKind::Permission => ErrorKind::Permission,
        v1::ErrorKind::ReadOnly => ErrorKind::ReadOnly,
        v1::ErrorKind::NoSpace => ErrorKind::NoSpace,
        v1::ErrorKind::Busy => ErrorKind::Busy,
        v1::ErrorKind::Timeout => ErrorKind::Timeout,
        v1::ErrorKind::Cancelled => ErrorKind::Cancelled,
        v1::ErrorKind::Lagged => ErrorKind::Lagged,
        v1::ErrorKind::Closed => ErrorKind::Closed,
        v1::ErrorKind::SidecarNotFound => ErrorKind::SidecarNotFound,
        v1::ErrorKind::SidecarVersion => ErrorKind::SidecarVersion,
        v1::ErrorKind::SidecarDied => ErrorKind::SidecarDied,
        v1::ErrorKind::VmFailed => ErrorKind::VmFailed,
        v1::ErrorKind::HostUnsupported => ErrorKind::HostUnsupported,
        v1::ErrorKind::Policy => ErrorKind::Policy,
        v1::ErrorKind::AgentNotInstalled => ErrorKind::AgentNotInstalled,
        v1::ErrorKind::AgentFailed => ErrorKind::AgentFailed,
        v1::ErrorKind::Model => ErrorKind::Model,
        v1::ErrorKind::NoModel => ErrorKind::NoModel,
        v1::ErrorKind::EmptyTurn => ErrorKind::EmptyTurn,
        v1::ErrorKind::Unsupported => ErrorKind::Unsupported,
    }
}

/// For an answer without details, which only gRPC's own machinery in the sidecar gives.
fn kind_of_code(code: Code) -> ErrorKind {
    match code {
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidInput,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Permission,
        Code::DeadlineExceeded => ErrorKind::Timeout,
        Code::Cancelled => ErrorKind::Cancelled,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::Unavailable => ErrorKind::SidecarDied,
        _ => ErrorKind::Internal,
    }
}

/// JSON-RPC's "method not found".
const METHOD_NOT_FOUND: i64 = -32601;

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        let message = error.to_string();
        let new = |kind| Error::new(kind, message);
        match error {
            CallError::Answered(detail) => new(kind(detail.kind()))
                .with_errno(detail.errno)
                .with_object(detail.object)
                .with_retryable(detail.retryable),
            CallError::Bare { code, status } => new(kind_of_code(code)).with_source(status),
            CallError::Died { sidecar_id, source, .. } => {
                let error = new(ErrorKind::SidecarDied).with_object(sidecar_id).with_retryable(true);
                match source {
                    Some(status) => error.with_source(status),
                    None => error,
                }
            }
            CallError::Closed { sidecar_id } | CallError::SidecarDisposed { sidecar_id } => {
                new(ErrorKind::Closed).with_object(sidecar_id)
            }
            CallError::VmDisposed { vm_id } => new(ErrorKind::Closed).with_object(vm_id),
            CallError::NoSuchVm { name } => new(ErrorKind::NotFound).with_object(name),
            CallError::NoSuchProcess { pid } => {
                new(ErrorKind::NotFound).with_errno("ESRCH").with_object(pid.to_string())
            }
            CallError::NoSuchSession { id } => new(ErrorKind::NotFound).with_object(id),
            CallError::Incomplete { .. } => new(ErrorKind::Internal),
            CallError::NoRuntime(source) => new(ErrorKind::Unsupported).with_source(source),
            CallError::Task(source) => {
                let kind = if source.is_cancelled() { ErrorKind::Cancelled } else { ErrorKind::Internal };
                new(kind).with_source(source)
            }
            CallError::PipedExec => new(ErrorKind::InvalidInput).with_object("stdin"),
            CallError::OutputGap { next, .. } | CallError::EventsBehind { next, .. } => {
                new(ErrorKind::Lagged).with_object(next.to_string())
            }
            CallError::ConnectionEnded { port } => {
                new(ErrorKind::Closed).with_errno("EPIPE").with_object(port.to_string())
            }
            CallError::RequestBody { source } => new(ErrorKind::Cancelled).with_source(source),
            CallError::PromptTimeout { session_id, .. } => new(ErrorKind::Timeout).with_object(session_id),
            CallError::RegistryEntry(source) => new(ErrorKind::InvalidInput).with_source(source),
            CallError::ArchivedAgent { id } => new(ErrorKind::Unsupported).with_object(id),
            CallError::Preparation { agent, source } => {
                new(ErrorKind::AgentFailed).with_object(agent).with_source(source)
            }
            // As an agent would answer that has no such method.
            CallError::NoSuchOption { category, supported } => {
                let message = format!("the agent has no option of category {category}");
                let data = Some(serde_json::json!({ "supported": supported }));
                let error = JsonRpcError { code: METHOD_NOT_FOUND, message, data };
                new(ErrorKind::Unsupported).with_object(category).with_rpc(error)
            }
            CallError::Rpc { method, error } => {
                let unknown = error.code == METHOD_NOT_FOUND;
                let kind = if unknown { ErrorKind::Unsupported } else { ErrorKind::AgentFailed };
                new(kind).with_object(method).with_rpc(error)
            }
        }
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        let new = Error::new(ErrorKind::InvalidInput, error.to_string());
        match error {
            RequestError::ArgumentsTooLong { .. } => new.with_errno("E2BIG").with_object("argv"),
            RequestError::Nul { what } => new.with_errno("EINVAL").with_object(what),
            RequestError::VariableName { name } => new.with_errno("EINVAL").with_object(name),
            RequestError::HostPath { path } => new.with_errno("EINVAL").with_object(path),
            RequestError::Absolute { path, source } => new.with_object(path).with_source(source),
            RequestError::HostAddr { text } => new.with_errno("EINVAL").with_object(text),
            RequestError::Cpu { .. } => new.with_errno("EINVAL").with_object("limits.cpu"),
        }
    }
}

impl From<TargetError> for Error {
    fn from(error: TargetError) -> Self {
        Error::new(ErrorKind::InvalidInput, error.to_string())
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        Error::new(ErrorKind::InvalidInput, error.to_string()).with_object(format!("line {}", error.line))
    }
}

impl From<AnswerError> for Error {
    fn from(error: AnswerError) -> Self {
        let new = Error::new(ErrorKind::Internal, error.to_string());
        match error {
            AnswerError::Json { source, .. } => new.with_source(source),
            AnswerError::Missing { .. } | AnswerError::Range { .. } => new,
        }
    }
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        let message = error.to_string();
        let new = |kind| Error::new(kind, message);
        match error {
            LaunchError::Discover(error) => error.into(),
            LaunchError::Dial(error) => error.into(),
            LaunchError::Lock { path, source } | LaunchError::Log { path, source } => {
                new(io_kind(&source)).with_object(path.display().to_string()).with_source(source)
            }
            LaunchError::Start { binary, source } => {
                new(ErrorKind::SidecarNotFound).with_object(binary.display().to_string()).with_source(source)
            }
            LaunchError::NotReady { binary, .. } => {
                new(ErrorKind::SidecarDied).with_object(binary.display().to_string())
            }
            LaunchError::Version { theirs, .. } => new(ErrorKind::SidecarVersion).with_object(theirs),
            LaunchError::Hello { source } => {
                new(ErrorKind::SidecarDied).with_retryable(true).with_source(source)
            }
            LaunchError::NotRunning => new(ErrorKind::SidecarNotFound),
        }
    }
}

impl From<DiscoverError> for Error {
    fn from(error: DiscoverError) -> Self {
        let message = error.to_string();
        let new = |kind| Error::new(kind, message);
        match error {
            DiscoverError::NoBinary { .. } => new(ErrorKind::SidecarNotFound),
            DiscoverError::Name { name } => new(ErrorKind::InvalidInput).with_object(name),
            DiscoverError::Directory(DirectoryError::Create { path, source }) => {
                new(io_kind(&source)).with_object(path.display().to_string()).with_source(source)
            }
            DiscoverError::Directory(DirectoryError::NotPrivate { path, .. }) => {
                new(ErrorKind::Permission).with_object(path.display().to_string())
            }
            DiscoverError::SocketPath { path } => {
                let path = path.display().to_string();
                new(ErrorKind::InvalidInput).with_errno("ENAMETOOLONG").with_object(path)
            }
        }
    }
}

impl From<DialError> for Error {
    fn from(error: DialError) -> Self {
        let message = error.to_string();
        let new = |kind| Error::new(kind, message);
        match error {
            DialError::Thread(source) => new(ErrorKind::Busy).with_source(source),
            DialError::Connect { path, source } => {
                let kind = match source.kind() {
                    std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
                    _ => ErrorKind::SidecarDied,
                };
                new(kind).with_object(path).with_source(source)
            }
            DialError::Handshake { path, source } => {
                new(ErrorKind::SidecarDied).with_object(path).with_source(source)
            }
        }
    }
}

impl From<TerminalError> for Error {
    fn from(error: TerminalError) -> Self {
        let message = error.to_string();
        match error {
            TerminalError::Terminal { source, .. } | TerminalError::Signals { source } => {
                Error::new(io_kind(&source), message).with_source(source)
            }
            TerminalError::Signaled { signal } => {
                Error::new(ErrorKind::Cancelled, message).with_object(signal)
            }
        }
    }
}

fn io_kind(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::AlreadyExists => ErrorKind::AlreadyExists,
        Io::PermissionDenied => ErrorKind::Permission,
        Io::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Io::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::Internal,
    }
}
