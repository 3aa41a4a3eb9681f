//! Messages over sockets: the guest protocol's frames on a `SOCK_SEQPACKET`, with what is too long for a packet in a
//! sealed memfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentos_guest_protocol as protocol;
use agentos_guest_protocol::frame::MAX_FRAME_BYTES;
use agentos_guest_protocol::launcher::BootFailure;
use agentos_guest_protocol::{Encoded, Frame};
use agentos_linux::{Errno, seqpacket};

#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the peer has hung up")]
    HungUp,
    #[error("a packet or its descriptors were truncated")]
    Truncated,
    #[error("the packet lacks a descriptor")]
    NoDescriptor,
    #[error("can't encode a message")]
    Encode(#[from] protocol::EncodeError),
    #[error("can't decode a message")]
    Decode(#[from] protocol::DecodeError),
    #[error("socket call failed")]
    System(#[from] Errno),
}

/// Sends one message with its descriptors, waiting for room.
pub(crate) fn send<T: serde::Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    match protocol::encode(message)? {
        Encoded::Whole(packet) => seqpacket::send(socket, &packet, descriptors)?,
        Encoded::Spilled { packet, body } => {
            let body = seqpacket::sealed_memfd(&body)?;
            let mut all: Vec<BorrowedFd<'_>> = descriptors.to_vec();
            all.push(body.as_fd());
            seqpacket::send(socket, &packet, &all)?;
        }
    }
    Ok(())
}

/// Receives one message. `Ok(None)` means that there is none now on a non-blocking socket.
pub(crate) fn receive<T: serde::de::DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
    buffer.resize(MAX_FRAME_BYTES, 0);
    let mut received = match seqpacket::receive(socket, buffer) {
        Err(Errno::AGAIN) => return Ok(None),
        Err(Errno::CONNRESET) => return Err(WireError::HungUp),
        other => other?,
    };
    if received.len == 0 {
        return Err(WireError::HungUp);
    }
    if received.truncated {
        return Err(WireError::Truncated);
    }
    let packet = buffer.get(..received.len).unwrap_or_default();
    let message = match protocol::decode(packet)? {
        Frame::Whole(message) => message,
        Frame::Spilled { len } => {
            let body = received.descriptors.pop().ok_or(WireError::NoDescriptor)?;
            protocol::decode_spilled(&seqpacket::read_sealed(body.as_fd(), len)?)?
        }
    };
    Ok(Some((message, received.descriptors)))
}

/// Names a failed step for the sidecar.
pub(crate) fn failure(step: &str, object: impl AsRef<[u8]>, errno: Errno) -> BootFailure {
    BootFailure {
        step: step.to_owned(),
        object: protocol::Bytes::from(object.as_ref().to_vec()),
        errno: errno.raw_os_error(),
    }
}

/// The same for a call of the standard library.
pub(crate) fn io_failure(step: &str, object: impl AsRef<[u8]>, error: &std::io::Error) -> BootFailure {
    failure(step, object, Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// A path of the host as the sidecar says it.
pub(crate) fn as_path(bytes: &[u8]) -> &std::path::Path {
    std::path::Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
}
