//! Packets and descriptors over `SOCK_SEQPACKET` unix sockets, and sealed memfds for what is too long for a packet.
//!
//! The peer may be hostile: a truncated packet or truncated descriptors are reported, never passed on, and received
//! descriptors are close-on-exec from the first moment.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::clone::last_errno;

/// Descriptors beside one packet. The kernel's own limit is 253.
pub const MAX_DESCRIPTORS: usize = 16;

/// What one packet brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes in the caller's buffer; 0 means the peer has hung up.
    pub len: usize,
    pub descriptors: Vec<OwnedFd>,
    /// The packet or its descriptors were longer than the room for them. What is here is not to be trusted.
    pub truncated: bool,
}

/// A connected pair, both ends close-on-exec and blocking.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one packet. Never raises SIGPIPE: a peer that is gone is `EPIPE`. Waits for room unless the socket is
/// non-blocking, then `EAGAIN`.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::TOOMANYREFS);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOMANYREFS);
    }
    let sent =
        retry(|| rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL))?;
    // A packet goes whole or not at all.
    if sent == packet.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Receives one packet into `buffer`. Waits for one unless the socket is non-blocking, then `EAGAIN`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received { len: message.bytes, descriptors, truncated })
}

/// The pid of the process that made this end's peer, as this PID namespace shows it; 0 where it shows it not.
pub fn peer_process(socket: BorrowedFd<'_>) -> Result<i32, Errno> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the live local of the type that this option has, and
    // the length back to a live local; any integers make a ucred.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(peer.pid) } else { Err(last_errno()) }
}

/// A memfd that holds `body` and can never change again.
pub fn sealed_memfd(body: &[u8]) -> Result<OwnedFd, Errno> {
    let memfd = rustix::fs::memfd_create("agentos-body", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = body;
    while !rest.is_empty() {
        let written = retry(|| rustix::io::write(&memfd, rest))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    rustix::fs::fcntl_add_seals(&memfd, SEALS)?;
    Ok(memfd)
}

/// Reads `len` bytes from a sealed memfd of exactly that size. One that could still change, or has another size, is
/// `EPERM`: its sender is lying.
pub fn read_sealed(memfd: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>, Errno> {
    // Only memfds have seals: on anything else, a FIFO or a FUSE file that would make us wait, this is EINVAL.
    let seals = rustix::fs::fcntl_get_seals(memfd)?;
    let size = rustix::fs::fstat(memfd)?.st_size;
    if !seals.contains(SEALS) || u64::try_from(size) != Ok(len as u64) {
        return Err(Errno::PERM);
    }
    let mut body = vec![0; len];
    let mut filled = 0;
    while let Some(rest) = body.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match retry(|| rustix::io::pread(memfd, &mut *rest, filled as u64))? {
            0 => return Err(Errno::IO),
            read => filled += read,
        }
    }
    Ok(body)
}

const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors() {
        let (left, right) = pair().unwrap();
        let (pipe_read, pipe_write) = rustix::pipe::pipe().unwrap();
        send(left.as_fd(), b"hello", &[pipe_write.as_fd()]).unwrap();
        let mut buffer = [0; 64];
        let received = receive(right.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..received.len], received.truncated), (&b"hello"[..], false));
        rustix::io::write(&received.descriptors[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&pipe_read, &mut buffer).unwrap(), 1);
    }

    #[test]
    fn a_packet_longer_than_the_buffer_is_reported_as_truncated() {
        let (left, right) = pair().unwrap();
        send(left.as_fd(), &[7; 100], &[]).unwrap();
        assert!(receive(right.as_fd(), &mut [0; 10]).unwrap().truncated);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_end_for_the_reader_and_epipe_for_the_writer() {
        let (left, right) = pair().unwrap();
        drop(left);
        assert_eq!(receive(right.as_fd(), &mut [0; 10]).unwrap().len, 0);
        assert_eq!(send(right.as_fd(), b"x", &[]), Err(Errno::PIPE));
    }

    #[test]
    fn a_sealed_body_is_read_back() {
        let body = vec![42; 300_000];
        let memfd = sealed_memfd(&body).unwrap();
        assert_eq!(read_sealed(memfd.as_fd(), body.len()).unwrap(), body);
    }

    #[test]
    fn a_body_of_another_size_or_without_seals_is_refused() {
        let memfd = sealed_memfd(b"abc").unwrap();
        assert_eq!(read_sealed(memfd.as_fd(), 4), Err(Errno::PERM));
        let open = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&open, b"abc").unwrap();
        assert_eq!(read_sealed(open.as_fd(), 3), Err(Errno::PERM));
        let (pipe_read, _pipe_write) = rustix::pipe::pipe().unwrap();
        assert_eq!(read_sealed(pipe_read.as_fd(), 3), Err(Errno::INVAL));
    }
}
