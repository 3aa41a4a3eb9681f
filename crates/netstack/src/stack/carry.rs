//! Bytes between the guest's connection and whoever it talks to.
//!
//! Each direction ends by itself: an end of file on one side is a FIN on the other, while the other direction goes on.
//! An error on one side is a reset on the other. What can't be passed on stays in the stack's buffer, whose window then
//! closes: nothing is kept anywhere else.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use smoltcp::socket::tcp::State;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::budget::MAX_BUFFER_BYTES;
use super::connection::Connection;
use super::stats::Counter;
use super::tcp::FIRST_WORDS;
use super::throttle::{Direction, Throttle};
use crate::policy::{Reason, Refusal};
use crate::sniff::MAX_SNIFF_BYTES;

/// Whoever the guest talks to.
pub(super) enum Peer {
    Host(TcpStream),
    /// A server of our own.
    Inside(DuplexStream),
}

impl Peer {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Host(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Inside(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Host(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Inside(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Host(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Inside(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    /// Lets the other side see a reset when this is dropped.
    fn reset(&self) {
        if let Self::Host(stream) = self {
            // A socket that is closed already has no use for it.
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO));
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both directions were closed.
    Closed,
    GuestReset,
    PeerReset,
    /// By what the guest said first.
    Refused(Refusal),
    /// The guest speaks plain HTTP, none of which has been passed on.
    Http,
}

/// Looks at the first bytes of the guest, all of them from the beginning. None: it needs more.
pub(super) type GateKeeper = Box<dyn Fn(&[u8]) -> Option<Result<Passage, Refusal>> + Send>;

/// How what may leave goes on.
pub(super) enum Passage {
    AsItIs,
    /// Each request is looked at: see [`End::Http`].
    Http,
}

/// Carries until both directions are closed or one side resets. Dropped, the connection is left as it is.
pub(super) struct Carry<'a> {
    connection: &'a mut Connection,
    peer: &'a mut Peer,
    /// None where nothing leaves by this way.
    counter: Option<&'a Counter>,
    throttle: &'a Throttle,
    /// Until it has let the guest's first bytes pass.
    gate: Option<GateKeeper>,
    /// When the first bytes must have become a greeting; from the first one on.
    greeted_by: Option<Instant>,
    /// The peer has said all it has to say.
    peer_done: bool,
    /// The guest has, and the peer knows.
    guest_done: bool,
    /// The guest has said that it is through.
    guest_ended: bool,
    /// The peer takes nothing more. What it has said before is still owed to the guest.
    deaf: bool,
    /// The peer is gone. What it has said is passed on before the guest is reset.
    broken: bool,
    /// Nothing is left to be told to the peer.
    finished: bool,
    /// When the bandwidth has room again.
    resume: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// What ends a connection at once.
enum Break {
    Refused(Refusal),
    Http,
}

/// A connection that did not end well outside must not look as if it had.
impl Drop for Carry<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.peer.reset();
        }
    }
}

impl<'a> Carry<'a> {
    pub(super) fn new(
        connection: &'a mut Connection,
        peer: &'a mut Peer,
        counter: Option<&'a Counter>,
        throttle: &'a Throttle,
        gate: Option<GateKeeper>,
    ) -> Self {
        let timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        Self {
            connection,
            peer,
            counter,
            throttle,
            gate,
            greeted_by: None,
            peer_done: false,
            guest_done: false,
            guest_ended: false,
            deaf: false,
            broken: false,
            finished: false,
            resume: None,
            timer,
        }
    }
}

impl Future for Carry<'_> {
    type Output = End;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        // Each turn may make room for the next; the runtime's budget ends it for the sake of others.
        loop {
            let _ = this.connection.poll_packets(context);
            let gone = this.connection.is_gone();
            this.guest_ended |= !gone && this.connection.has_ended();
            // Both have closed; what the guest said last may still have to be passed on.
            let closing = gone && this.guest_ended && this.peer_done && !this.broken;
            if gone && !closing {
                this.pass_last_words(context);
                return Poll::Ready(End::GuestReset);
            }
            this.resume = None;
            let passed =
                this.pass_outward(context).and_then(|outward| Ok(this.pass_inward(context)? || outward));
            let progress = match passed {
                Ok(progress) => progress,
                Err(Break::Refused(refusal)) => return Poll::Ready(End::Refused(refusal)),
                Err(Break::Http) => {
                    this.finished = true;
                    return Poll::Ready(End::Http);
                }
            };
            this.connection.exchange();
            if this.broken && this.connection.socket().send_queue() == 0 {
                this.connection.abort();
                return Poll::Ready(End::PeerReset);
            }
            if this.is_over() {
                this.finished = true;
                return Poll::Ready(End::Closed);
            }
            // The stack gives a guest up that answers nothing any more, and wants not to be called again.
            let given_up = !gone && this.connection.is_gone();
            if !progress && !given_up {
                return this.wait(context);
            }
        }
    }
}

impl Carry<'_> {
    /// Both have closed, and the guest has been told.
    fn is_over(&mut self) -> bool {
        let state = self.connection.socket().state();
        self.guest_done && self.peer_done && matches!(state, State::Closed | State::TimeWait)
    }

    /// Sleeps until the stack wants to be called. Returns only where it is called for now.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<End> {
        let greeting = self.greeted_by.filter(|_| self.gate.is_some());
        let times = self.connection.next_call().into_iter().chain(self.resume).chain(greeting);
        let Some(at) = times.min() else { return Poll::Pending };
        self.timer.as_mut().reset(at);
        if self.timer.as_mut().poll(context).is_ready() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// How much may go now; None: nothing, until `resume`.
    fn allowance(&mut self, direction: Direction) -> Option<usize> {
        match self.throttle.allowance(direction, MAX_BUFFER_BYTES, Instant::now()) {
            Ok(bytes) => Some(bytes),
            Err(again) => {
                self.resume = Some(self.resume.map_or(again, |earlier| earlier.min(again)));
                None
            }
        }
    }

    /// False: nothing of the guest's passes yet.
    fn pass_gate(&mut self) -> Result<bool, Break> {
        let Some(gate) = &self.gate else { return Ok(true) };
        let socket = self.connection.socket();
        let full = socket.recv_queue() >= MAX_SNIFF_BYTES;
        let bytes = socket.peek(MAX_SNIFF_BYTES).unwrap_or_default();
        let bytes_empty = bytes.is_empty();
        match gate(bytes) {
            None if bytes_empty && !self.connection.has_ended() => return Ok(false),
            None if !full && !self.connection.has_ended() && !self.is_overdue() => return Ok(false),
            // Half a greeting is none: what it would have named is not known.
            None if !bytes_empty => {
                return Err(Break::Refused(Refusal { reason: Reason::NoName, rule: None }));
            }
            None | Some(Ok(Passage::AsItIs)) => {}
            Some(Ok(Passage::Http)) => return Err(Break::Http),
            Some(Err(refusal)) => return Err(Break::Refused(refusal)),
        }
        self.gate = None;
        Ok(true)
    }

    /// Whether the guest has begun to say something long ago, and not gone on: it waits for an answer to that.
    fn is_overdue(&mut self) -> bool {
        let now = Instant::now();
        *self.greeted_by.get_or_insert(now + FIRST_WORDS) <= now
    }

    /// Guest to peer. True when something was passed on.
    fn pass_outward(&mut self, context: &mut Context<'_>) -> Result<bool, Break> {
        let mut progress = false;
        if !self.pass_gate()? {
            return Ok(false);
        }
        while !self.deaf && self.connection.socket().can_recv() {
            let Some(allowed) = self.allowance(Direction::Out) else { return Ok(progress) };
            let peer = &mut *self.peer;
            let passed = self.connection.socket().recv(|bytes| {
                let first = bytes.len().min(allowed);
                match peer.poll_write(context, bytes.get(..first).unwrap_or_default()) {
                    Poll::Ready(Ok(0)) => (0, Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => (written, Ok(Some(written))),
                    Poll::Ready(Err(error)) => (0, Err(error)),
                    Poll::Pending => (0, Ok(None)),
                }
            });
            match passed.unwrap_or(Ok(None)) {
                Ok(Some(written)) => {
                    self.counter.inspect(|counter| counter.sent(written));
                    self.throttle.take(Direction::Out, written);
                }
                Ok(None) => return Ok(progress),
                Err(error) => {
                    tracing::trace!(%error, "connection of a guest, outward");
                    (self.deaf, self.guest_done) = (true, true);
                }
            }
            progress = true;
        }
        if !self.guest_done && self.connection.has_ended() {
            match self.peer.poll_shutdown(context) {
                Poll::Ready(result) => {
                    // A peer that is gone has no use for the end of the stream; its own error tells.
                    drop(result);
                    self.guest_done = true;
                    progress = true;
                }
                Poll::Pending => {}
            }
        }
        Ok(progress)
    }

    /// What the guest said before it broke the connection goes on as far as the peer has room, as it would on a wire.
    fn pass_last_words(&mut self, context: &mut Context<'_>) {
        if self.gate.is_none() {
            // No end follows these words, but a reset.
            self.guest_done = true;
            // Without a gate nothing is refused.
            let _ = self.pass_outward(context);
        }
    }

    /// Peer to guest. True when something was passed on.
    fn pass_inward(&mut self, context: &mut Context<'_>) -> Result<bool, Break> {
        let mut progress = false;
        while !self.peer_done && self.connection.socket().can_send() {
            let Some(allowed) = self.allowance(Direction::In) else { return Ok(progress) };
            let peer = &mut *self.peer;
            let passed = self.connection.socket().send(|room| {
                let length = room.len().min(allowed);
                let mut buffer = ReadBuf::new(room.get_mut(..length).unwrap_or_default());
                match peer.poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) => (buffer.filled().len(), Ok(Some(buffer.filled().len()))),
                    Poll::Ready(Err(error)) => (0, Err(error)),
                    Poll::Pending => (0, Ok(None)),
                }
            });
            match passed.unwrap_or(Ok(None)) {
                Ok(Some(0)) if !self.deaf => {
                    self.peer_done = true;
                    self.connection.socket().close();
                }
                Ok(Some(read)) if read > 0 => {
                    self.counter.inspect(|counter| counter.received(read));
                    self.throttle.take(Direction::In, read);
                }
                Ok(None) => return Ok(progress),
                ended => {
                    tracing::trace!(?ended, "connection of a guest, inward");
                    (self.peer_done, self.broken) = (true, true);
                }
            }
            progress = true;
        }
        Ok(progress)
    }
}
