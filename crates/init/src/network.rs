//! The VM's network namespace: its [`uplink`], the sockets that PID 1 makes and hands out, and whose the others are.
//!
//! Making one takes microseconds and is done by the event loop. Looking through the kernel's tables ([`sockets`]) and
//! through every process's descriptors ([`owners`]) is an errand.

mod owners;
mod sockets;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentos_guest_protocol::init::Failure;
use agentos_guest_protocol::network::{ListenerEntry, Protocol, SocketOwner};
use agentos_linux::Errno;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

pub(crate) use uplink::Device;

use crate::wire::failure;

/// A loaded machine may handle the answer on another CPU; no server is waited for any longer.
const ANSWER_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Connections that wait to be accepted from outside.
const BACKLOG: i32 = 128;

/// Addresses of one port that a connection is tried at beside the well-known ones.
const MAX_TRIED: usize = 16;

/// Addresses in one list; a VM with more servers has most of them listed.
const MAX_LISTED: usize = 4096;

/// Listeners that were made for the sidecar, by the number of their socket. They are nobody's in the VM and no servers
/// of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnListeners {
    /// Held for one look or one insertion. Grows with what the sidecar asks for alone, which is a few per VM.
    inodes: Arc<Mutex<BTreeSet<u64>>>,
}

impl OwnListeners {
    pub(crate) fn listen(&self, address: SocketAddr) -> Result<OwnedFd, Failure> {
        let failed = |errno| Failure::System(failure("listen", address.to_string(), errno));
        let socket = bind(address).map_err(failed)?;
        let inode = rustix::fs::fstat(&socket).map_err(failed)?.st_ino;
        // Before it shows in the kernel's table.
        self.inodes().insert(inode);
        rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
        Ok(socket)
    }

    /// The addresses that processes of the VM listen on.
    pub(crate) fn others(&self, owners: bool) -> Vec<ListenerEntry> {
        let mut inodes: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for listener in sockets::listeners() {
            if inodes.len() >= MAX_LISTED {
                break;
            }
            if !self.inodes().contains(&listener.inode) {
                // Several sockets may share an address; the first stands for all.
                inodes.entry(listener.local).or_insert(listener.inode);
            }
        }
        let wanted = if owners { inodes.values().copied().collect() } else { BTreeSet::new() };
        let owners = owners::find(wanted);
        let entry = |(address, inode)| ListenerEntry { address, owner: owners.get(&inode).cloned() };
        inodes.into_iter().map(entry).collect()
    }

    fn inodes(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The process behind one end of a connection.
pub(crate) fn owner(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> Option<SocketOwner> {
    let inode = sockets::find(protocol, local, remote)?;
    owners::find(BTreeSet::from([inode])).remove(&inode)
}

pub(crate) fn connect(port: u16) -> Result<OwnedFd, Failure> {
    connect_anywhere(port).map_err(|errno| Failure::System(failure("connect", format!("port {port}"), errno)))
}

/// Connects to whoever listens on the port. A wildcard or loopback server is found at the loopback addresses; one that
/// is bound to another local address is found by what /proc/net says.
fn connect_anywhere(port: u16) -> Result<OwnedFd, Errno> {
    let mut answer = Errno::CONNREFUSED;
    let well_known = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    // Only if nobody is there: the kernel's list takes milliseconds, as it walks the connections of the whole host.
    let others = std::iter::once_with(|| listening_addresses(port)).flatten();
    for address in well_known.into_iter().chain(others) {
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

fn bind(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = stream_socket(address)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

fn stream_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
}

/// Other local addresses with a listener on the port.
fn listening_addresses(port: u16) -> Vec<IpAddr> {
    let ours = sockets::listeners().map(|listener| listener.local).filter(|local| local.port() == port);
    ours.map(|local| local.ip()).filter(|address| !address.is_unspecified()).take(MAX_TRIED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(own: &OwnListeners) -> (OwnedFd, SocketAddr) {
        let server = own.listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).unwrap();
        let address = rustix::net::getsockname(&server).unwrap().try_into().unwrap();
        (server, address)
    }

    #[test]
    fn connecting_finds_a_server_and_refuses_where_there_is_none() {
        let (server, address) = server(&OwnListeners::default());
        assert!(connect_anywhere(address.port()).is_ok());
        drop(server);
        assert_eq!(connect_anywhere(address.port()).unwrap_err(), Errno::CONNREFUSED);
    }

    #[test]
    fn a_server_at_another_local_address_is_found() {
        let (_server, address) = {
            let own = OwnListeners::default();
            let server = own.listen(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
            let address: SocketAddr = rustix::net::getsockname(&server).unwrap().try_into().unwrap();
            (server, address)
        };
        assert!(connect_anywhere(address.port()).is_ok());
    }

    #[test]
    fn listeners_are_listed_once_with_their_process_and_not_those_of_the_sidecar() {
        let own = OwnListeners::default();
        let (_ours, our_address) = server(&own);
        let (_theirs, their_address) = server(&OwnListeners::default());
        let listed = own.others(true);
        assert!(listed.iter().all(|entry| entry.address != our_address), "{listed:?}");
        let found: Vec<_> = listed.iter().filter(|entry| entry.address == their_address).collect();
        let [ListenerEntry { owner: Some(owner), .. }] = found[..] else { panic!("{found:?}") };
        assert_eq!(owner.pid, std::process::id() as i32);
        assert!(!owner.command.is_empty());
        assert!(own.others(false).iter().all(|entry| entry.owner.is_none()));
    }

    #[test]
    fn each_end_of_a_connection_has_an_owner_and_a_stranger_none() {
        let (_server, address) = server(&OwnListeners::default());
        let client = std::net::TcpStream::connect(address).unwrap();
        let local = client.local_addr().unwrap();
        let found = owner(Protocol::Tcp, local, address).unwrap();
        assert_eq!(found.pid, std::process::id() as i32);
        assert_eq!(owner(Protocol::Tcp, local, SocketAddr::from(([127, 0, 0, 9], 9))), None);
        assert_eq!(owner(Protocol::Udp, local, address), None);
    }

    #[test]
    fn datagrams_are_traced_to_sockets_that_are_bound_to_every_address() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let local = SocketAddr::from(([127, 0, 0, 1], socket.local_addr().unwrap().port()));
        let found = owner(Protocol::Udp, local, SocketAddr::from(([127, 0, 0, 1], 9)));
        assert_eq!(found.unwrap().pid, std::process::id() as i32);
    }
}
