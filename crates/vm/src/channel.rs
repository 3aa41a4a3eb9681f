//! A `SOCK_SEQPACKET` socket that carries frames, for both peers of this crate: the launcher and one VM's init.
//!
//! Sending is split in two, so that the owner of a socket never waits in it: [`Outgoing`] is a message ready to go,
//! [`Outbox`] holds those the kernel had no room for. Receiving parses a packet once; whatever is wrong with it is a
//! [`ReceiveError`], after which nothing the peer says can be understood.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use agentos_guest_protocol::frame::{self, MAX_DESCRIPTORS, MAX_FRAME_BYTES};
use agentos_guest_protocol::{DecodeError, EncodeError, Encoded, Frame};
use agentos_linux::seqpacket;
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::pipe;

const _: () = assert!(MAX_DESCRIPTORS <= seqpacket::MAX_DESCRIPTORS);

thread_local! {
    /// One receive buffer per thread instead of one per VM. A byte longer than the longest frame, so that a longer
    /// packet is seen as such.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_FRAME_BYTES + 1].into_boxed_slice());
}

#[derive(Debug)]
pub(crate) struct Channel {
    /// Watched for what there is to read alone: a peer that reads makes room, and would wake this process every time.
    socket: AsyncFd<OwnedFd>,
    /// The same socket, watched for room since there was none for the first time.
    room: OnceLock<AsyncFd<OwnedFd>>,
}

/// A parsed packet.
#[derive(Debug)]
pub(crate) struct Packet<T> {
    pub(crate) message: T,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// The kernel dropped descriptors of this packet, because this process can have no more: a trouble of ours, not a
    /// lie of the peer's.
    pub(crate) lost_descriptors: bool,
}

/// Why nothing more is to be had from a peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("peer has hung up")]
    HungUp,
    #[error("packet can't be received")]
    Receive(#[source] io::Error),
    #[error("packet or its descriptors were truncated")]
    Truncated,
    #[error("packet can't be understood")]
    Decode(#[from] DecodeError),
    #[error("descriptor of a spilled body is missing")]
    BodyMissing,
    #[error("spilled body was lost: the sidecar has too many open files")]
    BodyLost,
    #[error("spilled body can't be read")]
    Body(#[source] Errno),
}

/// Why a message can't be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("body can't be spilled")]
    Spill(#[source] Errno),
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: pipe::register(socket, Interest::READABLE)?, room: OnceLock::new() })
    }

    /// The next message. Dropping the future loses nothing.
    pub(crate) async fn receive<T: DeserializeOwned>(&self) -> Result<Packet<T>, ReceiveError> {
        loop {
            let mut ready = self.socket.readable().await.map_err(ReceiveError::Receive)?;
            match ready.try_io(|socket| Ok(receive_now(socket.as_fd()))) {
                Ok(Ok(Ok(Some(packet)))) => return Ok(packet),
                Ok(Ok(Ok(None))) => ready.clear_ready(),
                Ok(Ok(Err(error))) => return Err(error),
                Ok(Err(error)) => return Err(ReceiveError::Receive(error)),
                Err(_would_block) => {}
            }
        }
    }

    /// Resolves when a message that found no room may find some.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        // The readiness is cleared by the send that finds no room, not here. Watching begins with what is the case.
        self.room()?.writable().await.map(|mut ready| ready.retain_ready())
    }

    fn room(&self) -> io::Result<&AsyncFd<OwnedFd>> {
        if let Some(room) = self.room.get() {
            return Ok(room);
        }
        let socket = rustix::io::fcntl_dupfd_cloexec(self.socket.get_ref(), 0)?;
        let room = pipe::register(socket, Interest::WRITABLE)?;
        Ok(self.room.get_or_init(|| room))
    }

    fn try_send(&self, outgoing: &Outgoing) -> Result<Sent, Errno> {
        let descriptors: Vec<BorrowedFd<'_>> = outgoing.descriptors.iter().map(AsFd::as_fd).collect();
        let send = |socket: &OwnedFd| seqpacket::send(socket.as_fd(), &outgoing.packet, &descriptors);
        // Straight to the kernel: the runtime learns of readiness only after it has been to epoll.
        match send(self.socket.get_ref()) {
            Err(Errno::AGAIN) => {}
            sent => return sent.map(|()| Sent::Whole),
        }
        let Some(room) = self.room.get() else { return Ok(Sent::NoRoom) };
        // Once more through the runtime, so that it forgets the readiness and `writable` waits.
        match room.try_io(Interest::WRITABLE, |socket| send(socket).map_err(io::Error::from)) {
            Ok(()) => Ok(Sent::Whole),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::NoRoom),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
}

enum Sent {
    Whole,
    NoRoom,
}

/// None where the socket has nothing now.
fn receive_now<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<Option<Packet<T>>, ReceiveError> {
    BUFFER.with_borrow_mut(|buffer| {
        let received = match seqpacket::receive(socket, buffer) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(None),
            // A unix socket that was closed with unread packets resets its peer.
            Err(Errno::CONNRESET) => return Err(ReceiveError::HungUp),
            Err(errno) => return Err(ReceiveError::Receive(errno.into())),
        };
        // Neither the packet nor the list of descriptors is longer than the room for them: then what was cut off is
        // what did not fit into this process's table.
        let fits = received.len < buffer.len() && received.descriptors.len() < MAX_DESCRIPTORS;
        if received.truncated && !fits {
            return Err(ReceiveError::Truncated);
        }
        if received.len == 0 {
            return Err(ReceiveError::HungUp);
        }
        let packet = buffer.get(..received.len).unwrap_or_default();
        parse(packet, received.descriptors, received.truncated).map(Some)
    })
}

fn parse<T: DeserializeOwned>(
    packet: &[u8],
    mut descriptors: Vec<OwnedFd>,
    lost_descriptors: bool,
) -> Result<Packet<T>, ReceiveError> {
    let message = match frame::decode(packet)? {
        Frame::Whole(message) => message,
        Frame::Spilled { .. } if lost_descriptors => return Err(ReceiveError::BodyLost),
        Frame::Spilled { len } => {
            let memfd = descriptors.pop().ok_or(ReceiveError::BodyMissing)?;
            let body = seqpacket::read_sealed(memfd.as_fd(), len).map_err(ReceiveError::Body)?;
            frame::decode_spilled(&body)?
        }
    };
    Ok(Packet { message, descriptors, lost_descriptors })
}

/// A message as the kernel takes it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    packet: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Outgoing {
    pub(crate) fn prepare<T: Serialize>(
        message: &T,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Self, PrepareError> {
        match frame::encode(message)? {
            Encoded::Whole(packet) => Ok(Self { packet, descriptors }),
            Encoded::Spilled { packet, body } => {
                descriptors.push(seqpacket::sealed_memfd(&body).map_err(PrepareError::Spill)?);
                Ok(Self { packet, descriptors })
            }
        }
    }
}

/// What waits for room, in order. Its owner takes no new work while it is not empty, which bounds it.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Outgoing>,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets what waits: it can't be sent, and its sender is told so.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Sends at once where nothing waits before it.
    pub(crate) fn send(&mut self, channel: &Channel, outgoing: Outgoing) -> Result<(), Errno> {
        self.waiting.push_back(outgoing);
        self.flush(channel)
    }

    /// Sends until the kernel has no more room.
    pub(crate) fn flush(&mut self, channel: &Channel) -> Result<(), Errno> {
        while let Some(next) = self.waiting.front() {
            match channel.try_send(next)? {
                Sent::Whole => drop(self.waiting.pop_front()),
                Sent::NoRoom => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use agentos_guest_protocol::init::{InitMessage, Request, RequestId};

    use super::*;

    fn channels() -> (Channel, OwnedFd) {
        let (ours, theirs) = seqpacket::pair().unwrap();
        (Channel::new(ours).unwrap(), theirs)
    }

    async fn error_after(packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> ReceiveError {
        let (channel, peer) = channels();
        seqpacket::send(peer.as_fd(), packet, descriptors).unwrap();
        channel.receive::<InitMessage>().await.unwrap_err()
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_is_an_end_and_no_message() {
        let (channel, peer) = channels();
        drop(peer);
        assert!(matches!(channel.receive::<InitMessage>().await, Err(ReceiveError::HungUp)));
    }

    #[tokio::test]
    async fn packets_that_are_too_long_or_forged_are_refused() {
        assert!(matches!(error_after(&vec![1; MAX_FRAME_BYTES + 1], &[]).await, ReceiveError::Decode(_)));
        assert!(matches!(error_after(&vec![1; MAX_FRAME_BYTES * 2], &[]).await, ReceiveError::Truncated));
        assert!(matches!(error_after(&[9, 0, 0], &[]).await, ReceiveError::Decode(DecodeError::Version(9))));
        assert!(matches!(error_after(&[1], &[]).await, ReceiveError::Decode(DecodeError::TooShort { .. })));
    }

    #[tokio::test]
    async fn a_spilled_body_needs_its_descriptor_its_seals_and_its_size() {
        let spilled = |len: u32| [&[1, 1][..], &len.to_le_bytes()].concat();
        assert!(matches!(error_after(&spilled(4), &[]).await, ReceiveError::BodyMissing));
        let pipe = rustix::pipe::pipe().unwrap();
        assert!(matches!(error_after(&spilled(4), &[pipe.0.as_fd()]).await, ReceiveError::Body(_)));
        let memfd = seqpacket::sealed_memfd(b"four").unwrap();
        assert!(matches!(error_after(&spilled(5), &[memfd.as_fd()]).await, ReceiveError::Body(_)));
    }

    #[tokio::test]
    async fn messages_that_find_no_room_wait_in_order() {
        let (channel, peer) = channels();
        let mut outbox = Outbox::default();
        let message = |id| Request::Signal {
            pid: id,
            signal: 9,
            scope: agentos_guest_protocol::process::SignalScope::Process,
        };
        for id in 0..2000 {
            outbox.send(&channel, Outgoing::prepare(&message(id), Vec::new()).unwrap()).unwrap();
        }
        assert!(!outbox.is_empty(), "the kernel never queues 2,000 packets");
        let reader = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 256];
            for expected in 0..2000 {
                let received = seqpacket::receive(peer.as_fd(), &mut buffer).unwrap();
                let Ok(Frame::Whole(Request::Signal { pid, .. })) = frame::decode(&buffer[..received.len])
                else {
                    panic!("not a signal");
                };
                assert_eq!(pid, expected);
            }
        });
        while !outbox.is_empty() {
            channel.writable().await.unwrap();
            outbox.flush(&channel).unwrap();
        }
        reader.await.unwrap();
    }

    #[tokio::test]
    async fn a_long_message_travels_in_a_sealed_body() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let (left, right) = (Channel::new(ours).unwrap(), Channel::new(theirs).unwrap());
        let body = vec![7_u8; 200_000];
        let outgoing = Outgoing::prepare(&(RequestId(3), body.clone()), Vec::new()).unwrap();
        Outbox::default().send(&left, outgoing).unwrap();
        let packet = right.receive::<(RequestId, Vec<u8>)>().await.unwrap();
        assert_eq!(packet.message, (RequestId(3), body));
        assert!(packet.descriptors.is_empty());
    }
}
