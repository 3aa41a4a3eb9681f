//! Addresses of the host that lead into a VM.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use agentos_proto::v1::PortForwarded;
use tonic::Streaming;

use crate::builder::into_future;
use crate::convert;
use crate::convert::error::RequestError;
use crate::error::Error;
use crate::vm::AgentOs;

/// Where a forwarded port listens on the host.
///
/// Made from a port, which is one of 127.0.0.1; from a [`SocketAddr`]; or from a text that is either of them, with
/// `localhost` for 127.0.0.1. Port 0 is one that the host chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddr(Wish);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    Address(SocketAddr),
    /// Read when it is needed, where it can be refused.
    Text(String),
}

impl HostAddr {
    fn resolve(self) -> Result<SocketAddr, RequestError> {
        let text = match self.0 {
            Wish::Address(address) => return Ok(address),
            Wish::Text(text) => text,
        };
        let port = text.strip_prefix("localhost:").unwrap_or(&text);
        match (text.parse(), port.parse()) {
            (Ok(address), _) => Ok(address),
            (_, Ok(port)) => Ok(loopback(port)),
            _ => Err(RequestError::HostAddr { text }),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl From<u16> for HostAddr {
    fn from(port: u16) -> Self {
        Self(Wish::Address(loopback(port)))
    }
}

impl From<SocketAddr> for HostAddr {
    fn from(address: SocketAddr) -> Self {
        Self(Wish::Address(address))
    }
}

impl From<&str> for HostAddr {
    fn from(text: &str) -> Self {
        Self(Wish::Text(text.to_owned()))
    }
}

impl From<String> for HostAddr {
    fn from(text: String) -> Self {
        Self(Wish::Text(text))
    }
}

/// A port to forward; await it for the [`PortForward`].
#[derive(Clone)]
#[must_use = "does nothing until awaited"]
pub struct ForwardPort {
    vm: AgentOs,
    port: u16,
    address: HostAddr,
    keep: bool,
}

impl AgentOs {
    /// Listens on an address of the host and leads every connection to a port of the VM, for browsers, databases and
    /// whatever else speaks TCP. The server need not listen yet; a connection that finds nobody is reset. 256
    /// connections are carried at a time, and more wait.
    ///
    /// The sidecar listens, so that a kept forward of a detached VM outlives this program. Any program of the host can
    /// connect to an address of loopback; any other address, such as `0.0.0.0:3000`, is open to the network too.
    ///
    /// # Errors
    ///
    /// `Busy` and `EADDRINUSE` for an address that somebody else listens on, `Permission` for one that this user may
    /// not have, `InvalidInput` for one that is none or not of this host.
    pub fn forward_port(&self, guest_port: u16, host_addr: impl Into<HostAddr>) -> ForwardPort {
        ForwardPort { vm: self.clone(), port: guest_port, address: host_addr.into(), keep: false }
    }
}

impl ForwardPort {
    /// Leaves the forward to the VM: it ends with that and not with its handle.
    pub fn keep(mut self) -> Self {
        self.keep = true;
        self
    }

    async fn run(self) -> Result<PortForward, Error> {
        let Self { vm, port, address, keep } = self;
        let request = convert::network::forward_request(vm.id(), port, address.resolve()?, keep);
        let failed = |status| vm.failed(status);
        let reply = vm.live()?.network().forward_port(request).await.map_err(failed)?;
        let mut end = reply.into_inner();
        let local_addr = convert::network::forwarded(end.message().await.map_err(failed)?)?;
        Ok(PortForward { vm, guest_port: port, local_addr, end })
    }
}

into_future!(ForwardPort => PortForward);

impl fmt::Debug for ForwardPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardPort")
            .field("port", &self.port)
            .field("address", &self.address)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

/// A port of a VM, at an address of the host. Dropping it ends the forward and its connections, unless it is kept; the
/// VM's end ends it in any case. It keeps its VM alive.
pub struct PortForward {
    vm: AgentOs,
    guest_port: u16,
    local_addr: SocketAddr,
    /// Open as long as the forward is ours; the sidecar ends it with the VM.
    end: Streaming<PortForwarded>,
}

impl PortForward {
    /// Where it listens on the host.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The port of the VM it leads to.
    #[must_use]
    pub fn guest_port(&self) -> u16 {
        self.guest_port
    }

    /// Waits until the VM ends, and the forward with it, and says why. Cancellation safe.
    pub async fn ended(&mut self) -> Error {
        loop {
            match self.end.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return self.vm.failed(tonic::Status::cancelled("the forward ended")),
                Err(status) => return self.vm.failed(status),
            }
        }
    }

    /// Ends the forward, also one that is kept, and returns when nobody listens at its address any more.
    ///
    /// # Errors
    ///
    /// When the sidecar could not be asked; the forward of a VM that has ended is closed already.
    pub async fn close(self) -> Result<(), Error> {
        let request = convert::network::close_forward_request(self.vm.id(), self.local_addr);
        let reply = self.vm.live()?.network().close_forward(request).await;
        reply.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }
}

impl fmt::Debug for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortForward")
            .field("local_addr", &self.local_addr)
            .field("guest_port", &self.guest_port)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_one_of_loopback() {
        let address = |wish: HostAddr| wish.resolve().map(|address| address.to_string()).ok();
        assert_eq!(address(3000.into()).unwrap(), "127.0.0.1:3000");
        assert_eq!(address("3000".into()).unwrap(), "127.0.0.1:3000");
        assert_eq!(address("localhost:0".into()).unwrap(), "127.0.0.1:0");
        assert_eq!(address("0.0.0.0:80".into()).unwrap(), "0.0.0.0:80");
        assert_eq!(address("[::1]:80".to_owned().into()).unwrap(), "[::1]:80");
        for text in ["", "host:80", "127.0.0.1", "localhost", "70000", ":80"] {
            assert_eq!(address(text.into()), None, "{text}");
        }
    }
}
