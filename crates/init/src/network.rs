//! The VM's network namespace: its uplink and its sockets, made by PID 1 and handed out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::init::Failure;
use agentos_guest_protocol::launcher::{BootFailure, IdRange};
use agentos_guest_protocol::network::{self, NetworkRequest, Uplink};
use agentos_linux::{Errno, network as linux};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::launcher;
use crate::wire::failure;

/// A loaded machine may handle the answer on another CPU; no server is waited for any longer.
const ANSWER_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Connections that wait to be accepted from outside.
const BACKLOG: i32 = 128;

/// The name that images and scripts expect.
const INTERFACE: &str = "eth0";

/// The uplink while it is nothing but an open device, or the reason why it isn't.
#[derive(Debug)]
pub(crate) struct Device {
    opened: Result<OwnedFd, BootFailure>,
    uplink: Uplink,
}

impl Device {
    pub(crate) fn open(ids: IdRange, uplink: Uplink) -> Self {
        let path = launcher::tun(ids);
        Self { opened: linux::open_tun(path).map_err(|errno| failure("open", path, errno)), uplink }
    }

    /// Makes the interface. A VM whose interface can't be made is whole in everything else, so that the sidecar decides.
    pub(crate) fn connect(self) -> (Result<(), BootFailure>, Option<OwnedFd>) {
        let interface = linux::Interface {
            name: INTERFACE,
            mtu: network::MTU,
            address: network::GUEST,
            prefix: network::PREFIX,
            gateway: network::GATEWAY,
            v6: self
                .uplink
                .v6
                .then_some(linux::InterfaceV6 { address: network::GUEST_V6, prefix: network::PREFIX_V6 }),
        };
        let connected = self.opened.and_then(|device| {
            linux::attach_tun(device.as_fd(), INTERFACE)
                .map_err(|errno| failure("make TUN interface", INTERFACE, errno))?;
            linux::configure(&interface).map_err(|errno| failure("configure interface", INTERFACE, errno))?;
            Ok(device)
        });
        match connected {
            Ok(device) => (Ok(()), Some(device)),
            Err(failure) => (Err(failure), None),
        }
    }
}

pub(crate) fn handle(request: &NetworkRequest) -> Result<OwnedFd, Failure> {
    match request {
        NetworkRequest::Connect { port } => {
            connect(*port).map_err(|errno| Failure::System(failure("connect", format!("port {port}"), errno)))
        }
        NetworkRequest::Listen { address } => {
            listen(*address).map_err(|errno| Failure::System(failure("listen", address.to_string(), errno)))
        }
    }
}

/// Connects to whoever listens on the port. A wildcard or loopback server is found at the loopback addresses; one that
/// is bound to another local address of 127/8 is found by what /proc/net says.
fn connect(port: u16) -> Result<OwnedFd, Errno> {
    let mut answer = Errno::CONNREFUSED;
    let well_known = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for address in well_known.into_iter().chain(listening_addresses(port)) {
        match connect_to(SocketAddr::new(address, port)) {
            Ok(socket) => return Ok(socket),
            // An address family that this VM lacks says nothing about the other one.
            Err(Errno::CONNREFUSED | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::NETUNREACH) => {}
            Err(errno) => answer = errno,
        }
    }
    Err(answer)
}

/// The connection stays inside this kernel, which handles the answer as soon as the call lets go of the socket: a
/// refusal is there within microseconds, and must be seen here so that the next address is tried. A server with a full
/// backlog leaves the connection in progress, and the caller's writes then wait for it.
fn connect_to(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = stream_socket(address)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(socket),
        Err(Errno::INPROGRESS) => {
            let mut polled = [PollFd::new(&socket, PollFlags::OUT)];
            rustix::event::poll(&mut polled, Some(&ANSWER_TIMEOUT))?;
            rustix::net::sockopt::socket_error(&socket)??;
            Ok(socket)
        }
        Err(errno) => Err(errno),
    }
}

fn listen(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = stream_socket(address)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn stream_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
}

/// Other local addresses with a listener on the port.
fn listening_addresses(port: u16) -> Vec<IpAddr> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().skip(1).filter_map(|line| listener(line, port)).take(16).collect()
}

/// One line of /proc/net/tcp: the local address in hexadecimal, in the byte order of this machine.
fn listener(line: &str, port: u16) -> Option<IpAddr> {
    let mut fields = line.split_whitespace();
    let (address, local_port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let matches = u16::from_str_radix(local_port, 16) == Ok(port) && state == LISTEN;
    let address = u32::from_str_radix(address, 16).ok().filter(|_| matches)?;
    Some(IpAddr::V4(Ipv4Addr::from(address.to_ne_bytes())))
}

const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_read_from_the_kernels_table() {
        let line =
            "   0: 0200007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 1 1 0 100 0";
        assert_eq!(listener(line, 3000), Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))));
        assert_eq!(listener(line, 3001), None);
        assert_eq!(listener(&line.replace(" 0A ", " 01 "), 3000), None);
        assert_eq!(listener("garbage", 3000), None);
    }

    #[test]
    fn connecting_finds_a_server_and_refuses_where_there_is_none() {
        let server = listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).unwrap();
        let address: SocketAddr = rustix::net::getsockname(&server).unwrap().try_into().unwrap();
        assert!(connect(address.port()).is_ok());
        drop(server);
        assert_eq!(connect(address.port()).unwrap_err(), Errno::CONNREFUSED);
    }
}
