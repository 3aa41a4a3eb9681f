//! Sockets of a VM. Init makes them inside and passes them out, so that nothing of the VM's network stands on the host.

mod uplink;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use agentos_guest_protocol::init::{Failure, Request, Response};
use agentos_guest_protocol::launcher::BootFailure;
use agentos_guest_protocol::network::NetworkRequest;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::command::{Answer, CallFailure, ProtocolError};
use crate::vm::{Unavailable, Vm};

pub use agentos_netstack::border::{BorderError, TrustError};
pub use agentos_netstack::event::{EventLog, Events, NetworkEvent, NetworkEventKind, Owner};
pub use agentos_netstack::stack::{DestinationStats, NetworkStats, StackLimits};
pub use agentos_netstack::{name, policy};
pub(crate) use uplink::{HostNetwork, Link, Seed, Uplink};
pub use uplink::{Missing, NetworkOptions};

/// Connections of one forwarded port at a time; the next wait in the listener's backlog.
const MAX_FORWARDED: usize = 256;

/// When the sidecar has no descriptor left for another connection, it tries again after this.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error("{}", crate::errno::describe(.0))]
    Failed(BootFailure),
    #[error("ETIMEDOUT: VM does not answer, {call}")]
    TimedOut { call: String },
    #[error("EBUSY: too many calls wait for the VM")]
    TooManyStuck,
    #[error("socket of the VM can't be used")]
    Socket(#[source] std::io::Error),
    /// The VM has no way out.
    #[error(transparent)]
    Missing(Missing),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl NetworkError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Failed(failure) => Some(failure.errno),
            Self::TimedOut { .. } => Some(Errno::TIMEDOUT.raw_os_error()),
            Self::TooManyStuck => Some(Errno::BUSY.raw_os_error()),
            Self::Socket(error) => error.raw_os_error(),
            Self::Missing(_) | Self::Unavailable(_) => None,
        }
    }
}

impl From<CallFailure> for NetworkError {
    fn from(failure: CallFailure) -> Self {
        let failed =
            |errno: i32| BootFailure { step: "socket".to_owned(), object: Default::default(), errno };
        match failure {
            CallFailure::Init(Failure::System(failure)) => Self::Failed(failure),
            CallFailure::Init(Failure::TimedOut { call }) => Self::TimedOut { call },
            CallFailure::Init(Failure::TooManyStuck) => Self::TooManyStuck,
            CallFailure::Init(Failure::Spawn(failure)) => Self::Failed(failed(failure.errno)),
            CallFailure::Init(Failure::File(failure)) => Self::Failed(failed(failure.errno)),
            CallFailure::Local(errno) => Self::Failed(failed(errno.raw_os_error())),
            CallFailure::Unavailable(unavailable) => Self::Unavailable(unavailable),
        }
    }
}

impl Vm {
    /// A connection to a server in the VM, on whichever of its addresses it listens.
    pub async fn connect(&self, port: u16) -> Result<TcpStream, NetworkError> {
        let request = Request::Network(NetworkRequest::Connect { port });
        let socket = self.call(request, Vec::new(), parse_socket).await?;
        TcpStream::from_std(nonblocking(socket)?).map_err(NetworkError::Socket)
    }

    /// A listener in the VM; whoever accepts stands outside.
    pub async fn listen(&self, address: SocketAddr) -> Result<TcpListener, NetworkError> {
        let request = Request::Network(NetworkRequest::Listen { address });
        let socket = self.call(request, Vec::new(), parse_socket).await?;
        TcpListener::from_std(nonblocking(socket)?).map_err(NetworkError::Socket)
    }
}

fn nonblocking<S: From<OwnedFd>>(socket: OwnedFd) -> Result<S, NetworkError> {
    rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| NetworkError::Socket(errno.into()))?;
    Ok(S::from(socket))
}

/// A hostile init could pass any descriptor; only a TCP socket is taken.
fn parse_socket(answer: Answer) -> Result<OwnedFd, ProtocolError> {
    if !matches!(answer.response, Response::Socket) {
        return Err(ProtocolError::WrongAnswer("a request for a socket"));
    }
    let socket = answer.descriptor()?;
    let tcp = matches!(sockopt::socket_domain(&socket), Ok(AddressFamily::INET | AddressFamily::INET6))
        && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if tcp { Ok(socket) } else { Err(ProtocolError::DescriptorKind("a TCP socket")) }
}

/// Carries connections from a listener in the VM to this port of the host's loopback. Runs until it is aborted, and
/// its connections with it.
pub(crate) async fn forward(listener: TcpListener, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_FORWARDED {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((guest, _)) => drop(connections.spawn(carry(guest, port))),
                Err(error) => {
                    tracing::debug!(port, %error, "loopback port can't accept");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn carry(mut guest: TcpStream, port: u16) {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        // Ends when both directions have: one half may close long before the other.
        Ok(mut host) => drop(tokio::io::copy_bidirectional(&mut guest, &mut host).await),
        // The guest has been accepted already: a reset is the nearest to "connection refused" there still is.
        Err(_) => drop(sockopt::set_socket_linger(&guest, Some(Duration::ZERO))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn loopback() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn a_forwarded_connection_closes_one_half_at_a_time() {
        let ((inside, inside_port), (outside, outside_port)) = (loopback().await, loopback().await);
        let forwarder = tokio::spawn(forward(inside, outside_port));
        let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, inside_port)).await.unwrap();
        let (mut host, _) = outside.accept().await.unwrap();
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        let mut question = String::new();
        host.read_to_string(&mut question).await.unwrap();
        host.write_all(b"answer").await.unwrap();
        drop(host);
        let mut answer = String::new();
        guest.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        forwarder.abort();
    }

    #[tokio::test]
    async fn where_nobody_listens_outside_the_guest_is_reset() {
        let ((inside, inside_port), (outside, outside_port)) = (loopback().await, loopback().await);
        drop(outside);
        let forwarder = tokio::spawn(forward(inside, outside_port));
        let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, inside_port)).await.unwrap();
        let error = guest.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        forwarder.abort();
    }

    #[test]
    fn only_tcp_sockets_are_taken_for_one() {
        let answer =
            |descriptor: OwnedFd| Answer { response: Response::Socket, descriptors: vec![descriptor] };
        let (unix, _) = agentos_linux::seqpacket::pair().unwrap();
        assert!(matches!(parse_socket(answer(unix)), Err(ProtocolError::DescriptorKind(_))));
        let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(parse_socket(answer(tcp.into())).is_ok());
    }
}
