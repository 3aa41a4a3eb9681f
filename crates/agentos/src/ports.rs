//! What listens in a VM, now and as it changes.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentos_proto::v1;
use futures_core::Stream;

use crate::convert;
use crate::convert::error::CallError;
use crate::error::Error;
use crate::feed::{Feed, FeedError, Opening};
use crate::vm::AgentOs;

/// A port that a server in the VM listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListeningPort {
    /// The VM's own address it is bound to; `0.0.0.0` and `::` stand for all of them.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// What it speaks below HTTP and the like.
    pub protocol: PortProtocol,
    /// The process that holds it; of several the one with the lowest pid. `None` where it has just gone,
    /// or where it hides its descriptors in a VM of a single user id.
    pub process: Option<PortOwner>,
}

/// The transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PortProtocol {
    /// TCP.
    Tcp,
}

/// The process behind a port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortOwner {
    /// Its pid inside the VM.
    pub pid: i32,
    /// Its command line, cut at 256 bytes. A process may write there what it likes.
    pub command: String,
}

/// A server has begun or stopped to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortEvent {
    /// It listens; connections reach it.
    Listening(ListeningPort),
    /// It listens no more.
    Closed(ListeningPort),
}

impl AgentOs {
    /// What listens in the VM now, in order of address and port.
    ///
    /// # Errors
    ///
    /// When the VM cannot be asked.
    pub async fn listening_ports(&self) -> Result<Vec<ListeningPort>, Error> {
        let request = convert::network::list_ports_request(self.id());
        let reply = self.live()?.network().list_listening_ports(request).await;
        let reply = reply.map_err(|status| self.failed(status))?.into_inner();
        Ok(convert::network::listening_ports(reply)?)
    }

    /// Servers as they begin and stop to listen. What listens already comes first, so that none is missed between a
    /// list and the events.
    ///
    /// The kernel tells nobody of such things: while the stream is read, and only then, the VM is looked at four times a
    /// second. A server that listens for less than that may be missed.
    #[must_use]
    pub fn port_events(&self) -> PortEvents {
        PortEvents { vm: self.clone(), feed: Feed::Idle }
    }

    /// Waits until a server listens on this port, at whichever address: at once where one does. How long to wait is the
    /// caller's business, with `tokio::time::timeout` for instance.
    ///
    /// # Errors
    ///
    /// When the VM ends before.
    pub async fn wait_for_port(&self, port: u16) -> Result<ListeningPort, Error> {
        let mut events = self.port_events();
        while let Some(event) = events.next().await {
            match event? {
                PortEvent::Listening(listening) if listening.port == port => return Ok(listening),
                _ => {}
            }
        }
        Err(CallError::Incomplete { call: "WatchPorts" }.into())
    }
}

/// Servers as they begin and stop to listen, made by [`AgentOs::port_events`]. Its last item is an error: how the VM
/// ended. It keeps its VM alive.
pub struct PortEvents {
    vm: AgentOs,
    feed: Feed<v1::PortEvent>,
}

impl PortEvents {
    /// The next event. Cancellation safe.
    pub async fn next(&mut self) -> Option<Result<PortEvent, Error>> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<PortEvent, Error>>> {
        let Self { vm, feed } = self;
        let event = match ready!(feed.poll_message(context, || open(vm.clone()))) {
            Some(Ok(event)) => convert::network::port_event(event).map_err(Error::from),
            Some(Err(FeedError::Open(error))) => Err(error),
            Some(Err(FeedError::Broken(status))) => Err(vm.failed(*status)),
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(event))
    }
}

fn open(vm: AgentOs) -> Opening<v1::PortEvent> {
    Box::pin(async move {
        let request = convert::network::watch_request(vm.id());
        let reply = vm.live()?.network().watch_ports(request).await;
        Ok(reply.map_err(|status| vm.failed(status))?.into_inner())
    })
}

impl Stream for PortEvents {
    type Item = Result<PortEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_event(context)
    }
}

impl fmt::Debug for PortEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortEvents").finish_non_exhaustive()
    }
}
