//! Sockets that stay in the namespace they were made in, whoever holds them.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, sockopt};

use crate::Failure;
use crate::namespace::Namespace;

/// Room for all that a test sends, so that a reader that is late misses nothing.
const CAPTURE_BYTES: usize = 64 * 1024 * 1024;

pub(crate) fn listen(namespace: &Namespace, address: SocketAddr, backlog: i32) -> Result<OwnedFd, Failure> {
    let socket = bound(namespace, address, SocketType::STREAM)?;
    rustix::net::listen(&socket, backlog).map_err(|errno| Failure::Step("listen", errno))?;
    Ok(socket)
}

pub(crate) fn bind(namespace: &Namespace, address: SocketAddr) -> Result<OwnedFd, Failure> {
    bound(namespace, address, SocketType::DGRAM)
}

fn bound(namespace: &Namespace, address: SocketAddr, kind: SocketType) -> Result<OwnedFd, Failure> {
    namespace.enter()?;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let make = || -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        // A server that a test ends and starts again finds its port still taken by connections that are over.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        Ok(socket)
    };
    make().map_err(|errno| Failure::Step("bind", errno))
}

/// Sees what comes and goes on every device of the namespace, loopback too, from the moment it is there.
pub(crate) fn capture(namespace: &Namespace) -> Result<OwnedFd, Failure> {
    namespace.enter()?;
    let make = || -> Result<OwnedFd, Errno> {
        let every = (libc::ETH_P_ALL as u16).to_be();
        let protocol = Protocol::from_raw(u32::from(every).try_into().map_err(|_| Errno::INVAL)?);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(protocol))?;
        sockopt::set_socket_recv_buffer_size_force(&socket, CAPTURE_BYTES)?;
        Ok(socket)
    };
    make().map_err(|errno| Failure::Step("open a packet socket", errno))
}

/// Packets that a capture had no room for since the last time it was asked.
pub(crate) fn missed(capture: BorrowedFd<'_>) -> Result<u32, Failure> {
    let mut statistics = [0u32; 2];
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of the live local, which has the layout of `struct
    // tpacket_stats` (two unsigned integers), and the length back to a live local.
    let result = unsafe {
        libc::getsockopt(
            capture.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(statistics[1])
    } else {
        Err(Failure::Io("read a capture's statistics", std::io::Error::last_os_error()))
    }
}
