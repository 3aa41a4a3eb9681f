//! Sockets of a VM.
use std::net::SocketAddr;

use agentos_guest_protocol::launcher::BootFailure;
use tokio::net::{TcpListener, TcpStream};

use crate::vm::{Unavailable, Vm};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error("{}", crate::errno::describe(.0))]
    Failed(BootFailure),
    #[error("ETIMEDOUT: VM does not answer, {call}")]
    TimedOut { call: String },
    #[error("EBUSY: too many calls are waiting")]
    TooManyStuck,
    #[error("socket of the VM can't be used")]
    Socket(#[source] std::io::Error),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Vm {
    /// A connection to a server in the VM.
    pub async fn connect(&self, _port: u16) -> Result<TcpStream, NetworkError> {
        todo!()
    }
    /// A listener in the VM, accepted from outside.
    pub async fn listen(&self, _address: SocketAddr) -> Result<TcpListener, NetworkError> {
        todo!()
    }
}
