//! Sockets that init makes inside the VM and hands out. Answered by [`crate::init::Response::Socket`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum NetworkRequest {
    /// Connect to a server in the VM that listens on this port, on whichever local address it is bound to.
    Connect { port: u16 },
    /// Listen inside the VM; whoever accepts stands outside.
    Listen { address: SocketAddr },
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
