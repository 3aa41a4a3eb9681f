//! Sockets that init makes inside the VM and hands out. Answered by [`crate::init::Response::Socket`].

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum NetworkRequest {
    /// Connect to a server in the VM that listens on this port, on whichever local address it is bound to.
    Connect { port: u16 },
    /// Listen inside the VM; whoever accepts stands outside.
    Listen { address: SocketAddr },
}
