//! The one error of this crate, as its users see it.
//!
//! Inside, every operation has an enum of its own; all of them, and the sidecar's `ErrorDetail`, become an [`Error`]
//! in `convert::error` and nowhere else. Callers match on [`Error::kind`], never on text.

use std::error::Error as StdError;
use std::fmt;

use serde_json::Value;

/// What went wrong in a call.
///
/// `Display` gives one sentence that begins with the errno name where a system call is behind the error, such as
/// `ENOENT: no such file or directory, open '/x'`. The cause, where there is one, is in
/// [`source`](std::error::Error::source) and not repeated in the sentence.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    errno: Option<String>,
    object: Option<String>,
    retryable: bool,
    rpc: Option<JsonRpcError>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What calls of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such file, process, shell, session or VM.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// An argument is malformed or out of range.
    InvalidInput,
    /// The operation is not permitted.
    Permission,
    /// The file system or mount is read-only.
    ReadOnly,
    /// The disk limit of the VM, or the disk behind a mount, is used up.
    NoSpace,
    /// Somebody else is using it: a running prompt, a mount point, an address of the host.
    Busy,
    /// A deadline passed.
    Timeout,
    /// The call was cancelled.
    Cancelled,
    /// A reader fell behind. Of output, what it has not read is gone; of a session's events it is not.
    Lagged,
    /// The handle, VM or sidecar has been closed or disposed.
    Closed,
    /// No `agentos` binary could be found to start a sidecar.
    SidecarNotFound,
    /// The running sidecar is of another version.
    SidecarVersion,
    /// The sidecar ended while it was needed.
    SidecarDied,
    /// The VM failed: it could not start, or its init is gone.
    VmFailed,
    /// This host lacks something VMs need.
    HostUnsupported,
    /// A policy of the VM refused it: what it may connect to. No VM has one yet; what is refused on account of a path
    /// is `Permission`.
    Policy,
    /// The agent is not installed and was not to be installed.
    AgentNotInstalled,
    /// The agent crashed, or answered with an error.
    AgentFailed,
    /// The model behind the agent answered with an error.
    Model,
    /// No model is configured and the offline model is not allowed.
    NoModel,
    /// The agent ended its turn without text and without a tool call.
    EmptyTurn,
    /// The sidecar, the agent or this host has no such feature.
    Unsupported,
    /// A fault of agentOS itself.
    Internal,
}

/// The `error` member of a JSON-RPC response.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JsonRpcError {
    /// JSON-RPC's code; -32601 is "method not found".
    pub code: i64,
    /// The text the agent gave.
    pub message: String,
    /// Anything the agent added.
    pub data: Option<Value>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                errno: None,
                object: None,
                retryable: false,
                rpc: None,
                source: None,
            }),
        }
    }

    pub(crate) fn with_errno(mut self, errno: impl Into<String>) -> Self {
        self.inner.errno = Some(errno.into()).filter(|name| !name.is_empty());
        self
    }

    pub(crate) fn with_object(mut self, object: impl Into<String>) -> Self {
        self.inner.object = Some(object.into()).filter(|object| !object.is_empty());
        self
    }

    pub(crate) fn with_retryable(mut self, retryable: bool) -> Self {
        self.inner.retryable = retryable;
        self
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    pub(crate) fn with_rpc(mut self, rpc: JsonRpcError) -> Self {
        self.inner.rpc = Some(rpc);
        self
    }

    /// What happened, to branch on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The errno name, such as `ENOENT`, where a system call is behind the error.
    #[must_use]
    pub fn errno(&self) -> Option<&str> {
        self.inner.errno.as_deref()
    }

    /// What the call was about: a path, a pid, an id, an option.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        self.inner.object.as_deref()
    }

    /// Whether the same call may succeed later without anything else being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.inner.retryable
    }

    /// For an error of kind `Lagged`: the byte offset or sequence number at which the stream goes on.
    #[must_use]
    pub fn resume_at(&self) -> Option<u64> {
        let lagged = self.inner.kind == ErrorKind::Lagged;
        self.inner.object.as_deref().filter(|_| lagged)?.parse().ok()
    }

    /// The agent's own JSON-RPC error, where the agent answered a request with one.
    #[must_use]
    pub fn rpc_error(&self) -> Option<&JsonRpcError> {
        self.inner.rpc.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.inner.kind).field("message", &self.inner.message);
        if let Some(errno) = &self.inner.errno {
            out.field("errno", errno);
        }
        if let Some(object) = &self.inner.object {
            out.field("object", object);
        }
        if let Some(rpc) = &self.inner.rpc {
            out.field("rpc", rpc);
        }
        if let Some(source) = &self.inner.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// So that SDK readers can be used behind `std::io` shaped interfaces; the [`Error`] is the inner error.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            ErrorKind::NotFound => Io::NotFound,
            ErrorKind::AlreadyExists => Io::AlreadyExists,
            ErrorKind::InvalidInput => Io::InvalidInput,
            ErrorKind::Permission | ErrorKind::Policy => Io::PermissionDenied,
            ErrorKind::ReadOnly => Io::ReadOnlyFilesystem,
            ErrorKind::NoSpace => Io::StorageFull,
            ErrorKind::Busy => Io::ResourceBusy,
            ErrorKind::Timeout => Io::TimedOut,
            ErrorKind::Closed | ErrorKind::SidecarDied => Io::BrokenPipe,
            ErrorKind::Unsupported => Io::Unsupported,
            _ => Io::Other,
        };
        std::io::Error::new(kind, error)
    }
}
