//! What init says to the sidecar. Every thread of init may: a message is one packet, and packets stay whole.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentos_guest_protocol::init::{Failure, InitMessage, RequestId, Response};
use agentos_linux::Errno;
use rustix::event::{PollFd, PollFlags};

use crate::wire::{self, WireError, failure};

#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
}

impl Control {
    /// `socket` is non-blocking, for the sake of who reads it.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// A full socket is waited for, because the sidecar always reads, and what can't be said can't be dropped.
    pub(crate) fn say(&self, message: &InitMessage, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        loop {
            match wire::send(self.socket.as_fd(), message, descriptors) {
                Err(WireError::System(Errno::AGAIN)) => {
                    let mut writable = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
                    match rustix::event::poll(&mut writable, None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                other => return other,
            }
        }
    }

    pub(crate) fn answer(
        &self,
        id: RequestId,
        response: Result<Response, Failure>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        match self.say(&InitMessage::Response { id, response }, descriptors) {
            // An answer that is longer than any frame, or that the VM lacks the memory or the descriptors for, fails
            // that request, not the VM: a guest brings such things about, and its caller must not wait for ever.
            Err(WireError::Encode(_)) => self.refuse(id, Errno::OVERFLOW),
            Err(WireError::System(errno)) if !matches!(errno, Errno::PIPE | Errno::CONNRESET) => {
                self.refuse(id, errno)
            }
            other => other,
        }
    }

    fn refuse(&self, id: RequestId, errno: Errno) -> Result<(), WireError> {
        let response = Err(Failure::System(failure("answer", "", errno)));
        self.say(&InitMessage::Response { id, response }, &[])
    }
}
