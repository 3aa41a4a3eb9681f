//! Sockets of a VM: those that init makes inside and hands out, and what the VM's kernel knows of all of them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::Bytes;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum NetworkRequest {
    /// Connect to a server in the VM that listens on this port, on whichever local address it is bound to. Answered by
    /// [`crate::init::Response::Socket`].
    Connect { port: u16 },
    /// Listen inside the VM; whoever accepts stands outside. Answered by [`crate::init::Response::Socket`].
    Listen { address: SocketAddr },
    /// The TCP addresses that processes of the VM listen on; not those of [`NetworkRequest::Listen`]. Looking for the
    /// owners costs a walk through all descriptors of the VM. Answered by [`crate::init::Response::Listeners`].
    Listeners { owners: bool },
    /// Whose socket this is. `local` is the VM's end; of a ping, its port is the identifier. Answered by [`crate::init::Response::Owner`].
    Owner { protocol: Protocol, local: SocketAddr, remote: SocketAddr },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// An address that somebody listens on, each once, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerEntry {
    pub address: SocketAddr,
    /// None where it was not asked for, where no process holds the socket any more, or where the one that
    /// does is not dumpable and the VM has but one id: its descriptors are shown to nobody then.
    pub owner: Option<SocketOwner>,
}

/// A process that holds a socket; of several the one with the lowest pid, which is the parent of the others as a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOwner {
    pub pid: i32,
    /// The beginning of its command line, a space between arguments. A process may write there what it likes.
    pub command: Bytes,
}

/// The way out of a VM: an interface whose packets the sidecar reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// With IPv6 beside IPv4.
    pub v6: bool,
}

/// Bytes of the largest packet. Local programs exchange as much as they can in one piece; nothing of it ever crosses
/// a wire in this form.
pub const MTU: u32 = 65_520;

/// The addresses of every VM: each has a network of its own, so they can all be the same.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub const PREFIX: u8 = 24;
/// Stands for the host.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Answers names.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Takes requests that need a secret.
pub const BORDER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
/// A unique local address, to which clients prefer IPv4 where both lead to a server.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd61, 0x6765, 0x6e74, 0x6f73, 0, 0, 0, 0x15);
pub const PREFIX_V6: u8 = 64;
