//! The one place where inner errors become gRPC statuses.
//!
//! A [`Failure`] is what a client learns: a kind to match on, the errno where a system call is behind it, the object
//! the call was about, and the message. Every inner error enum converts into one here; services use `?`.

mod agents;
mod vm;

use std::error::Error;

use agentos_proto::v1::{ErrorDetail, ErrorKind};
use agentos_vm::errno;
use prost::Message;
use rustix::io::Errno;
use tonic::{Code, Status};

use crate::registry::Refusal;
use crate::tools::ServeError;

/// Statuses travel in header fields, whose size a peer bounds (16 KiB by default): a path may have 4,096 bytes, each
/// three in a header.
const MAX_TEXT_BYTES: usize = 1024;

#[derive(Debug, Clone)]
pub(crate) struct Failure {
    kind: ErrorKind,
    errno: Option<i32>,
    object: String,
    message: String,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, object: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, errno: None, object: object.into(), message: message.into() }
    }

    pub(crate) fn invalid(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, object, message)
    }

    /// The kind follows from the errno.
    pub(crate) fn system(errno: i32, object: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: kind_of_errno(errno),
            errno: Some(errno),
            object: object.into(),
            message: message.into(),
        }
    }

    pub(crate) fn with_errno(mut self, errno: Errno) -> Self {
        self.errno = Some(errno.raw_os_error());
        self
    }

    /// Names the VM where the failure names no object of its own.
    pub(crate) fn about(mut self, object: &str) -> Self {
        if self.object.is_empty() {
            self.object = object.to_owned();
            self.message = format!("{} ({object})", self.message);
        }
        self
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn into_detail(self) -> ErrorDetail {
        ErrorDetail {
            kind: self.kind.into(),
            errno: self.errno.map(|errno| errno::name(errno).to_string()).unwrap_or_default(),
            object: cut(self.object),
            message: cut(self.message),
            retryable: is_retryable(self.kind),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let kind = match error {
            ServeError::Served => ErrorKind::Busy,
            ServeError::Closed => ErrorKind::Closed,
        };
        Self::new(kind, "host tools", error.to_string())
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = code_of(failure.kind);
        let detail = failure.into_detail();
        Self::with_details(code, detail.message.clone(), detail.encode_to_vec().into())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (kind, object) = match &refusal {
            Refusal::LeaseNotFound(id) | Refusal::VmNotFound(id) | Refusal::NameNotFound(id) => {
                (ErrorKind::NotFound, id)
            }
            Refusal::LeaseEnding { sidecar, .. } => (ErrorKind::Closed, sidecar),
            Refusal::VmDisposed(id) => (ErrorKind::Closed, id),
            Refusal::VmCreating(id) => (ErrorKind::Busy, id),
            Refusal::NameTaken(name) => (ErrorKind::AlreadyExists, name),
            Refusal::BadName(name) => (ErrorKind::InvalidInput, name),
        };
        Self::new(kind, object.clone(), refusal.to_string())
    }
}

/// For `map_err`: what went wrong in this VM.
pub(crate) fn of_vm<E: Into<Failure>>(vm_id: &str) -> impl FnOnce(E) -> Status {
    move |error| error.into().about(vm_id).into()
}

/// An error with its sources: they don't print one another.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // Errors that travel on their own have their cause in their text already.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Failure::from(refusal).into()
    }
}

/// What a system call's error means to a caller who doesn't look at the errno.
fn kind_of_errno(errno: i32) -> ErrorKind {
    match Errno::from_raw_os_error(errno) {
        Errno::NOENT | Errno::SRCH | Errno::CONNREFUSED => ErrorKind::NotFound,
        Errno::EXIST => ErrorKind::AlreadyExists,
        Errno::ACCESS | Errno::PERM => ErrorKind::Permission,
        Errno::ROFS => ErrorKind::ReadOnly,
        Errno::NOSPC | Errno::DQUOT => ErrorKind::NoSpace,
        Errno::BUSY | Errno::AGAIN | Errno::TXTBSY | Errno::ADDRINUSE => ErrorKind::Busy,
        Errno::TIMEDOUT => ErrorKind::Timeout,
        Errno::NOSYS | Errno::OPNOTSUPP => ErrorKind::Unsupported,
        Errno::PIPE => ErrorKind::Closed,
        // The kernel names a thousand ways in which an argument doesn't fit what it finds: ENOTDIR, EISDIR,
        // ENOTEMPTY, ELOOP, ENAMETOOLONG, E2BIG, ENOEXEC... all are answers to what was asked.
        _ => ErrorKind::InvalidInput,
    }
}

fn is_retryable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Busy | ErrorKind::Timeout | ErrorKind::SidecarDied | ErrorKind::NoSpace)
}

fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound | ErrorKind::SidecarNotFound | ErrorKind::AgentNotInstalled => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidInput => Code::InvalidArgument,
        ErrorKind::Permission | ErrorKind::ReadOnly | ErrorKind::Policy => Code::PermissionDenied,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Busy => Code::Aborted,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Lagged => Code::OutOfRange,
        ErrorKind::Closed
        | ErrorKind::SidecarVersion
        | ErrorKind::HostUnsupported
        | ErrorKind::NoModel
        | ErrorKind::EmptyTurn => Code::FailedPrecondition,
        ErrorKind::SidecarDied | ErrorKind::VmFailed | ErrorKind::AgentFailed | ErrorKind::Model => {
            Code::Unavailable
        }
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Internal | ErrorKind::Unspecified => Code::Internal,
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use agentos_vm::filesystem::{FileCall, FileError};
    use agentos_vm::{GoneReason, PathError, Unavailable};

    use super::*;

    #[track_caller]
    fn detail(failure: impl Into<Failure>) -> ErrorDetail {
        let status = Status::from(failure.into());
        let detail = ErrorDetail::decode(status.details()).expect("details hold an ErrorDetail");
        assert_eq!(detail.message, status.message());
        assert_ne!(status.code(), Code::Ok);
        detail
    }

    #[test]
    fn a_kernels_answer_keeps_its_errno_and_its_path() {
        let missing = FileError::Failed { errno: 2, call: FileCall::Open, path: b"/x".to_vec() };
        let detail = detail(missing);
        assert_eq!(detail.kind(), ErrorKind::NotFound);
        assert_eq!((detail.errno.as_str(), detail.object.as_str()), ("ENOENT", "/x"));
        assert_eq!(detail.message, "ENOENT: no such file or directory, open '/x'");
    }

    #[test]
    fn refused_paths_are_invalid_input() {
        let detail = detail(FileError::Path(PathError::NotAbsolute(b"x".to_vec())));
        assert_eq!((detail.kind(), detail.errno.as_str()), (ErrorKind::InvalidInput, "EINVAL"));
        assert_eq!(detail.message, "Path must be absolute: x");
    }

    #[test]
    fn a_disposed_vm_is_closed_and_a_broken_one_has_failed() {
        assert_eq!(detail(Unavailable::Disposing).kind(), ErrorKind::Closed);
        assert_eq!(detail(Unavailable::Gone(GoneReason::Disposed)).kind(), ErrorKind::Closed);
        let failed: Failure = Unavailable::Gone(GoneReason::Fault).into();
        let detail = detail(failed.about("vm-1"));
        assert_eq!((detail.kind(), detail.object.as_str()), (ErrorKind::VmFailed, "vm-1"));
        assert!(detail.message.contains("vm-1"), "{}", detail.message);
    }

    #[test]
    fn refusals_of_the_registry_have_their_kinds() {
        let kind = |refusal: Refusal| detail(refusal).kind();
        assert_eq!(kind(Refusal::VmNotFound("vm-9".into())), ErrorKind::NotFound);
        assert_eq!(kind(Refusal::VmDisposed("vm-9".into())), ErrorKind::Closed);
        assert_eq!(kind(Refusal::NameTaken("web".into())), ErrorKind::AlreadyExists);
        let ending = Refusal::LeaseEnding { sidecar: "s".into(), state: "disposed" };
        assert_eq!(kind(ending), ErrorKind::Closed);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let status = Status::from(Failure::invalid("é".repeat(5000), "ü".repeat(5000)));
        assert!(status.message().len() <= MAX_TEXT_BYTES + '…'.len_utf8());
        assert!(status.message().ends_with('…'));
        assert!(status.details().len() < 3 * MAX_TEXT_BYTES);
    }

    #[test]
    fn sources_are_told_once_each() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::fmt::Error);
        assert!(chain(&Outer(std::fmt::Error)).starts_with("outer: "));
    }
}
