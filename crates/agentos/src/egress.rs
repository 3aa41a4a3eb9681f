//! What leaves a VM: the policy while it runs, what was refused, how much went where.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use agentos_proto::v1;
use futures_core::Stream;

use crate::convert;
use crate::error::Error;
use crate::feed::{Feed, FeedError, Opening};
use crate::policy::{EgressPolicy, EgressProtocol};
use crate::ports::PortOwner;
use crate::vm::AgentOs;

/// Something that happened in a VM's network.
///
/// What happens for the first time is an event at once, with a [`count`](Self::count) of 1. What is equal to it in
/// everything but time, the process included, is counted while it goes on, and told as one more event with the same
/// `kind`: a second later at first, then less and less often, at least every 64 seconds. So whoever waits sees each
/// different refusal when it happens, and the sum of the counts is how many there were. Of a flood, the process is found
/// for a few alone; the rest is counted with the first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkEvent {
    /// From 0 on, for events, whatever their count; those that the reader came too late for are told by
    /// [`NetworkEventKind::Missed`].
    pub sequence: u64,
    /// When it happened, or where it stands for those that were counted, when it was told.
    pub at: SystemTime,
    /// How often it happened since it was told last.
    pub count: u64,
    /// What happened.
    pub kind: NetworkEventKind,
}

/// What happened in a VM's network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkEventKind {
    /// A connection or datagram did not leave, or a connection was cut because the policy had changed.
    Refused(NetworkRefusal),
    /// A name was not asked for.
    QueryRefused {
        /// The name.
        name: String,
        /// A sentence.
        reason: String,
        /// The rule that decided, where one did.
        rule: Option<String>,
        /// The process that asked, where it was found in time.
        process: Option<PortOwner>,
    },
    /// A request was refused at the border (one for the gateway, one that could carry a secret, or plain HTTP where names
    /// matter), or was answered with a secret.
    Border {
        /// Name and port of where it went.
        destination: String,
        /// A sentence.
        reason: String,
        /// What was declared for requests that go there, where something was.
        rule: Option<String>,
        /// The process that sent it, where it was found in time.
        process: Option<PortOwner>,
    },
    /// There was no room for something that the policy may have allowed.
    LimitReached(NetworkLimit),
    /// Refusals of so many different kinds at a time that these are not told one by one: after 256 of them, two more in
    /// a second are.
    Further,
    /// The VM has no network any more; everything else of it goes on.
    Ended {
        /// A sentence.
        reason: String,
    },
    /// So many events before this one are no longer kept: the last 1,024 are.
    Missed(u64),
}

/// What a VM's network may have so much of and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetworkLimit {
    /// Connections of the VM: [`Limits::connections`](crate::Limits::connections).
    Connections,
    /// Pairs of ends that exchange datagrams; the longest idle makes room.
    DatagramFlows,
    /// Ports that ask the resolver; the longest idle makes room.
    Queries,
    /// Pings that wait for their answer.
    Pings,
    /// Sockets of all VMs together, which are as many as the sidecar has descriptors to spare.
    HostSockets,
    /// Bytes of packets that wait to be handled.
    QueuedBytes,
}

impl fmt::Display for NetworkLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::DatagramFlows => "flows of datagrams",
            Self::Queries => "ports that ask the resolver",
            Self::Pings => "pings under way",
            Self::HostSockets => "sockets of all VMs",
            Self::QueuedBytes => "bytes that wait",
        })
    }
}

/// A connection or datagram that did not leave.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkRefusal {
    /// How it would have left.
    pub protocol: EgressProtocol,
    /// Where it would have gone; a ping has port 0.
    pub destination: SocketAddr,
    /// The names that had led to the address, or that the connection said it is for.
    pub names: Vec<String>,
    /// A sentence.
    pub reason: String,
    /// The rule that decided, where one did.
    pub rule: Option<String>,
    /// The process that tried, where it was found in time.
    pub process: Option<PortOwner>,
}

/// What a VM's network has done since it came up. Bytes are those of payload, without headers. What goes through the
/// gateway, or through TLS that ends in the sidecar, is counted as it is outside, with the host that it goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkStats {
    /// Bytes that left.
    pub sent_bytes: u64,
    /// Bytes that came in.
    pub received_bytes: u64,
    /// TCP connections that were made.
    pub connections: u64,
    /// Those of them that live.
    pub open_connections: u64,
    /// Connections, datagrams, pings, queries and requests that were refused.
    pub refused: u64,
    /// Packets that could not be read, or came when there was no room for them.
    pub dropped_packets: u64,
    /// By address, the largest first; at most 1,024.
    pub destinations: Vec<DestinationStats>,
}

/// The traffic with one address.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationStats {
    /// The address.
    pub address: IpAddr,
    /// The name by which the VM came to it last, where by one.
    pub name: Option<String>,
    /// Bytes that left.
    pub sent_bytes: u64,
    /// Bytes that came in.
    pub received_bytes: u64,
}

impl AgentOs {
    /// Replaces the egress policy. When this returns, connections that it does not allow are cut.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a policy that makes no sense, which changes nothing; `HostUnsupported` where VMs have no
    /// network.
    pub async fn set_network_policy(&self, policy: EgressPolicy) -> Result<(), Error> {
        let request = convert::egress::set_policy_request(self.id(), policy);
        let reply = self.live()?.network().set_network_policy(request).await;
        reply.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// What the VM's network has done so far.
    ///
    /// # Errors
    ///
    /// `HostUnsupported` where VMs have no network.
    pub async fn network_stats(&self) -> Result<NetworkStats, Error> {
        let request = convert::egress::stats_request(self.id());
        let reply = self.live()?.network().get_network_stats(request).await;
        let reply = reply.map_err(|status| self.failed(status))?;
        Ok(convert::egress::stats(reply.into_inner())?)
    }

    /// Every refusal: those of the past that are kept, then those to come.
    #[must_use]
    pub fn network_events(&self) -> NetworkEvents {
        NetworkEvents { vm: self.clone(), feed: Feed::Idle, past_only: false }
    }

    /// The refusals so far; the stream ends after them.
    #[must_use]
    pub fn past_network_events(&self) -> NetworkEvents {
        NetworkEvents { vm: self.clone(), feed: Feed::Idle, past_only: true }
    }
}

/// What happens in a VM's network, made by [`AgentOs::network_events`]. It keeps its VM alive. Where it goes on to the
/// VM's end, its last item is an error: how the VM ended.
pub struct NetworkEvents {
    vm: AgentOs,
    feed: Feed<v1::NetworkEvent>,
    past_only: bool,
}

impl NetworkEvents {
    /// The next event. Cancellation safe.
    pub async fn next(&mut self) -> Option<Result<NetworkEvent, Error>> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<NetworkEvent, Error>>> {
        let Self { vm, feed, past_only } = self;
        let event = match ready!(feed.poll_message(context, || open(vm.clone(), *past_only))) {
            Some(Ok(event)) => convert::egress::event(event).map_err(Error::from),
            Some(Err(FeedError::Open(error))) => Err(error),
            Some(Err(FeedError::Broken(status))) => Err(vm.failed(*status)),
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(event))
    }
}

fn open(vm: AgentOs, past_only: bool) -> Opening<v1::NetworkEvent> {
    Box::pin(async move {
        let request = convert::egress::watch_request(vm.id(), past_only);
        let reply = vm.live()?.network().watch_network(request).await;
        Ok(reply.map_err(|status| vm.failed(status))?.into_inner())
    })
}

impl Stream for NetworkEvents {
    type Item = Result<NetworkEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_event(context)
    }
}

impl fmt::Debug for NetworkEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkEvents").finish_non_exhaustive()
    }
}
