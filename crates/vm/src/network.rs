//! Sockets of a VM. Init makes them inside and passes them out, so that nothing of the VM's network stands on the host;
//! and it knows which the VM's processes have made.

mod uplink;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use agentos_guest_protocol::init::{Failure, Request, Response};
use agentos_guest_protocol::launcher::BootFailure;
use agentos_guest_protocol::network::{self as guest, NetworkRequest};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream};

use crate::command::{Answer, CallFailure, ProtocolError};
use crate::vm::{Unavailable, Vm};

pub use agentos_guest_protocol::network::{BORDER as GATEWAY, Protocol};
pub use agentos_netstack::border::{
    BorderError, Destination, HeaderScheme, Route, RouteError, Secret, SecretError, TrustError,
};
pub use agentos_netstack::event::{EventLog, Events, Limit, NetworkEvent, NetworkEventKind, Owner};
pub use agentos_netstack::stack::{DestinationStats, NetworkStats, StackLimits};
pub(crate) use uplink::{HostNetwork, Link, Seed, Uplink};
pub use uplink::{Missing, NetworkOptions};

/// A command line is cut here; an honest init has cut it before.
const MAX_COMMAND_BYTES: usize = 256;

/// Look-ups of sockets at a time; the next wait. Init has threads for a few such things only, and a guest that has a
/// thousand connections looked up must not keep its VM from being asked anything else.
pub(crate) const MAX_LOOKUPS: usize = 4;

/// An address that a server in the VM listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListeningPort {
    pub address: IpAddr,
    pub port: u16,
    /// None where it was not asked for, or where no process holds the socket any more.
    pub owner: Option<SocketOwner>,
}

/// A process of the VM that holds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOwner {
    pub pid: i32,
    /// The beginning of its command line. The guest's own word.
    pub command: String,
}

impl From<guest::ListenerEntry> for ListeningPort {
    fn from(entry: guest::ListenerEntry) -> Self {
        let owner = entry.owner.map(SocketOwner::from);
        Self { address: entry.address.ip(), port: entry.address.port(), owner }
    }
}

impl From<guest::SocketOwner> for SocketOwner {
    fn from(owner: guest::SocketOwner) -> Self {
        let command = owner.command.get(..MAX_COMMAND_BYTES).unwrap_or(&owner.command);
        Self { pid: owner.pid, command: crate::path::lossy(command).into_owned() }
    }
}

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
    #[error("{}, listen on {address}", describe(.source))]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

fn describe(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), crate::errno::text)
}

impl NetworkError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Failed(failure) => Some(failure.errno),
            Self::TimedOut { .. } => Some(Errno::TIMEDOUT.raw_os_error()),
            Self::TooManyStuck => Some(Errno::BUSY.raw_os_error()),
            Self::Socket(source) | Self::Listen { source, .. } => source.raw_os_error(),
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
        let stream = TcpStream::from_std(nonblocking(socket)?).map_err(NetworkError::Socket)?;
        // What is written here has been gathered on its way already: to wait for more only delays it.
        stream.set_nodelay(true).map_err(NetworkError::Socket)?;
        Ok(stream)
    }

    /// A listener in the VM; whoever accepts stands outside.
    pub async fn listen(&self, address: SocketAddr) -> Result<TcpListener, NetworkError> {
        let request = Request::Network(NetworkRequest::Listen { address });
        let socket = self.call(request, Vec::new(), parse_socket).await?;
        TcpListener::from_std(nonblocking(socket)?).map_err(NetworkError::Socket)
    }

    /// The TCP addresses that the VM's processes listen on, each once, in order; at most 4,096. Looking for `owners`
    /// costs as much as the VM has descriptors.
    pub async fn listening_ports(&self, owners: bool) -> Result<Vec<ListeningPort>, NetworkError> {
        self.look_up(NetworkRequest::Listeners { owners }, parse_listeners).await
    }

    /// The process that holds this connection, or sends and receives its datagrams. `local` is the VM's end.
    pub async fn owner(
        &self,
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Option<SocketOwner>, NetworkError> {
        self.look_up(NetworkRequest::Owner { protocol, local, remote }, parse_owner).await
    }

    async fn look_up<T: Send + 'static>(
        &self,
        request: NetworkRequest,
        parse: fn(Answer) -> Result<T, ProtocolError>,
    ) -> Result<T, NetworkError> {
        // Never closed; and without a permit the call is only one too many.
        let _permit = self.shared().lookups.acquire().await.ok();
        Ok(self.call(Request::Network(request), Vec::new(), parse).await?)
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

fn parse_listeners(answer: Answer) -> Result<Vec<ListeningPort>, ProtocolError> {
    answer.without_descriptors()?;
    match answer.response {
        Response::Listeners(listeners) => Ok(listeners.into_iter().map(ListeningPort::from).collect()),
        _ => Err(ProtocolError::WrongAnswer("a request for what listens")),
    }
}

fn parse_owner(answer: Answer) -> Result<Option<SocketOwner>, ProtocolError> {
    answer.without_descriptors()?;
    match answer.response {
        Response::Owner(owner) => Ok(owner.map(SocketOwner::from)),
        _ => Err(ProtocolError::WrongAnswer("a request for a socket's owner")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn only_tcp_sockets_are_taken_for_one() {
        let answer =
            |descriptor: OwnedFd| Answer { response: Response::Socket, descriptors: vec![descriptor] };
        let (unix, _) = agentos_linux::seqpacket::pair().unwrap();
        assert!(matches!(parse_socket(answer(unix)), Err(ProtocolError::DescriptorKind(_))));
        let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(parse_socket(answer(tcp.into())).is_ok());
    }

    #[test]
    fn a_command_line_is_cut_and_made_text() {
        let owner = SocketOwner::from(guest::SocketOwner {
            pid: 7,
            command: [&[0xff][..], &[b'x'; 9000]].concat().into(),
        });
        assert!(owner.command.starts_with("\u{fffd}xxx") && owner.command.len() < 1000, "{}", owner.command);
    }

    #[test]
    fn another_answer_than_the_one_asked_for_is_refused() {
        let answer = || Answer { response: Response::Done, descriptors: Vec::new() };
        assert!(matches!(parse_listeners(answer()), Err(ProtocolError::WrongAnswer(_))));
        assert!(matches!(parse_owner(answer()), Err(ProtocolError::WrongAnswer(_))));
    }
}
