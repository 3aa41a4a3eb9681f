//! What handles ask of a VM's owner task, and how answers come back.
//!
//! A call is parsed where it arrives: every request brings a function that turns init's answer into what the caller
//! wants, or says how init broke the protocol. So an answer is looked at once, and a wrong one ends the VM before
//! anybody has used it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentos_guest_protocol::init::{Failure, Request, Response};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::process::SpawnError;
use crate::process::live::{LiveProcess, Running, SpawnPlan};
use crate::vm::{GoneReason, Unavailable};

#[derive(Debug)]
pub(crate) enum Command {
    Call(Call),
    Spawn {
        plan: Box<SpawnPlan>,
        started: oneshot::Sender<Result<Running, SpawnError>>,
    },
    /// For a process that must still be alive when the request goes out: its id may be another's afterwards. Answered
    /// as done where it is not.
    ToProcess {
        process: Arc<LiveProcess>,
        call: Call,
    },
    /// Pipes of a command that has ended: what its children still write is read and dropped.
    Discard(Vec<AsyncFd<OwnedFd>>),
    /// A listener in the VM whose connections go to this port of the host's loopback.
    Forward {
        listener: tokio::net::TcpListener,
        port: u16,
    },
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) completion: Completion,
}

/// Init's answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum CallFailure {
    /// Init tried and could not.
    Init(Failure),
    /// Something on this side of the socket: the request is longer than any frame, the answer's descriptors found no
    /// room in the sidecar's table.
    Local(Errno),
    Unavailable(Unavailable),
}

/// How init broke the protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error(transparent)]
    Receive(#[from] crate::channel::ReceiveError),
    #[error("{0} came although it can't come now")]
    Unexpected(&'static str),
    #[error("answer to request {0}, which is not in flight")]
    UnknownRequest(u32),
    #[error("answer is not one to {0}")]
    WrongAnswer(&'static str),
    #[error("{found} descriptors instead of {expected}")]
    Descriptors { expected: usize, found: usize },
    #[error("descriptor of {0} is of the wrong kind")]
    DescriptorKind(&'static str),
    #[error("event of process {0}, which is not known")]
    UnknownProcess(i32),
    #[error("process id {0} is in use or none")]
    ProcessId(i32),
    #[error("name in a listing is none")]
    Name,
}

impl ProtocolError {
    pub(crate) fn into_reason(self) -> GoneReason {
        GoneReason::Protocol(Arc::new(self))
    }
}

/// The other half of a call: gives the outcome to whoever waits. An outcome nobody waits for any more is dropped, and
/// what must be undone then is a value whose drop undoes it.
pub(crate) struct Completion(Box<CompletionFn>);

type CompletionFn = dyn FnOnce(Result<Answer, CallFailure>) -> Result<(), ProtocolError> + Send;

pub(crate) type Outcome<T> = oneshot::Receiver<Result<T, CallFailure>>;

impl Completion {
    /// `parse` turns an answer into a value, or says how it is wrong.
    pub(crate) fn new<T: Send + 'static>(
        parse: impl FnOnce(Answer) -> Result<T, ProtocolError> + Send + 'static,
    ) -> (Self, Outcome<T>) {
        let (waiting, outcome) = oneshot::channel();
        let complete = move |answer: Result<Answer, CallFailure>| {
            let value = match answer {
                Ok(answer) => Ok(parse(answer)?),
                Err(failure) => Err(failure),
            };
            drop(waiting.send(value));
            Ok(())
        };
        (Self(Box::new(complete)), outcome)
    }

    /// For a request whose answer nobody waits for.
    pub(crate) fn ignored() -> Self {
        Self::new(Answer::done).0
    }

    pub(crate) fn complete(self, outcome: Result<Answer, CallFailure>) -> Result<(), ProtocolError> {
        self.0(outcome)
    }

    /// The VM won't answer. Nothing can be wrong with an answer that never came.
    pub(crate) fn refuse(self, failure: CallFailure) {
        let _ = self.0(Err(failure));
    }
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Completion")
    }
}

impl Answer {
    /// [`Response::Done`] without descriptors.
    pub(crate) fn done(self) -> Result<(), ProtocolError> {
        self.without_descriptors()?;
        match self.response {
            Response::Done => Ok(()),
            _ => Err(ProtocolError::WrongAnswer("a request that is done or not")),
        }
    }

    pub(crate) fn without_descriptors(&self) -> Result<(), ProtocolError> {
        self.expect_descriptors(0)
    }

    pub(crate) fn expect_descriptors(&self, expected: usize) -> Result<(), ProtocolError> {
        let found = self.descriptors.len();
        if found == expected { Ok(()) } else { Err(ProtocolError::Descriptors { expected, found }) }
    }

    /// The only descriptor.
    pub(crate) fn descriptor(mut self) -> Result<OwnedFd, ProtocolError> {
        self.expect_descriptors(1)?;
        self.descriptors.pop().ok_or(ProtocolError::Descriptors { expected: 1, found: 0 })
    }
}
