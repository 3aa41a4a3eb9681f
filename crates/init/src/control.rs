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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_sent_is_a_refusal_and_no_silence() {
        let (ours, theirs) = agentos_linux::seqpacket::pair().unwrap();
        let control = Control::new(ours.try_clone().unwrap());
        // More descriptors than a packet takes: the kernel says the same where too many are under way.
        let descriptors = [ours.as_fd(); 17];
        control.answer(RequestId(7), Ok(Response::Done), &descriptors).unwrap();
        let (said, _) = wire::receive::<InitMessage>(theirs.as_fd(), &mut Vec::new()).unwrap().unwrap();
        let InitMessage::Response { id: RequestId(7), response: Err(Failure::System(refusal)) } = said else {
            panic!("{said:?}");
        };
        assert_eq!(refusal.errno, Errno::TOOMANYREFS.raw_os_error());
        drop(theirs);
        assert!(control.answer(RequestId(8), Ok(Response::Done), &[]).is_err(), "nobody is there to be told");
    }
}
