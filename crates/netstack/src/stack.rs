//! The stack of one VM: from packets to connections.
//!
//! ```text
//!            ┌─ tcp   one task per connection: a TCP stack of its own ◄─► socket of the host, resolver, border
//! tun ──► stack ─ udp   one task per pair of ends ◄─► socket of the host, resolver
//!            └─ echo  one task per ping ◄─► socket of the host
//! ```
//! One task reads the device and hands each packet to the task of its flow; those write their answers by themselves. A
//! flow whose task can't keep up loses packets, as on any network. The number of flows is bounded; the next one is
//! refused as a busy host refuses it.
//!
//! A panic in any of these tasks ends this VM's network: it is told with its reason, and from then on every packet is
//! answered as unreachable. Other VMs have a stack of their own.

mod budget;
mod carry;
mod connection;
mod echo;
mod egress;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod inside;
mod packet;
mod stats;
mod tcp;
mod tell;
mod throttle;
mod tun;
mod udp;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinSet};

use self::budget::Queued;
use self::connection::QUEUED_PACKETS;
use self::egress::{Facts, Shared};
use self::packet::{FlowKey, Inbound, Segment};
use self::tun::{HEADER_BYTES, Tun};
use crate::border::Border;
use crate::dns::Resolver;
use crate::event::{EventLog, Limit, NetworkEventKind, Owner};
use crate::pins::Pins;
use crate::policy::{EgressPolicy, Protocol};

pub use stats::{DestinationStats, NetworkStats};

/// The largest packet there can be, with its header.
const PACKET_BYTES: usize = HEADER_BYTES + u16::MAX as usize;

/// Packets that are read before others get a turn.
const BATCH: usize = 64;

/// Above this a packet keeps the buffer it was read into; below it is copied out.
const COPIED_BYTES: usize = 16 * 1024;

/// Policy changes that wait for the stack.
const QUEUED_COMMANDS: usize = 8;

/// Datagrams that wait for the task of their flow.
const QUEUED_DATAGRAMS: usize = 32;

/// Addresses in the VM.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub guest: Ipv4Addr,
    pub guest_v6: Option<Ipv6Addr>,
    /// Stands for the host.
    pub gateway: Ipv4Addr,
    pub resolver: Ipv4Addr,
    pub border: Ipv4Addr,
    /// Bytes of the largest packet.
    pub mtu: usize,
}

/// What a VM may use at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackLimits {
    pub connections: usize,
    /// Pairs of ends that exchange datagrams, and pings.
    pub datagram_flows: usize,
    /// Bytes of payload in a second, in each direction. None is as much as there is.
    pub bandwidth_bytes: Option<u64>,
}

impl Default for StackLimits {
    fn default() -> Self {
        Self { connections: 2_048, datagram_flows: 1_024, bandwidth_bytes: None }
    }
}

/// Finds the process of a flow: protocol, the guest's end, the other end.
pub type Identify = Arc<
    dyn Fn(Protocol, SocketAddr, SocketAddr) -> Pin<Box<dyn Future<Output = Option<Owner>> + Send>>
        + Send
        + Sync,
>;

/// What a stack is made of.
pub struct StackOptions {
    pub addresses: Addresses,
    pub policy: EgressPolicy,
    /// Ports of the host's loopback that the gateway's address leads to.
    pub host_ports: BTreeSet<u16>,
    pub resolver: Resolver,
    pub pins: Arc<Pins>,
    pub border: Arc<Border>,
    pub limits: StackLimits,
    /// One permit for each socket that all stacks together may have open.
    pub sockets: Arc<Semaphore>,
    pub events: Arc<EventLog>,
    pub identify: Identify,
}

impl std::fmt::Debug for StackOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StackOptions").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// A running stack. Dropped, it ends, and the guest's connections with it.
#[derive(Debug)]
pub struct Stack {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Recheck>,
    task: AbortHandle,
}

/// Cut what the policy no longer allows, and say when that is done.
type Recheck = oneshot::Sender<()>;

impl Stack {
    /// Serves a TUN device whose packets have a `virtio_net_hdr`. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// Where the descriptor can't be waited for.
    pub fn start(device: OwnedFd, options: StackOptions) -> io::Result<Self> {
        let tun = Arc::new(Tun::new(device)?);
        let shared = Arc::new(Shared::new(Arc::clone(&tun), options));
        let (commands, queue) = mpsc::channel(QUEUED_COMMANDS);
        let served = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            let events = Arc::clone(&served.events);
            let teller = Arc::clone(&served);
            tasks.spawn(async move { teller.tell_repeats().await });
            tasks.spawn(Flows::new(served, queue).serve());
            let reason = match tasks.join_next().await {
                Some(Ok(reason)) => reason,
                Some(Err(fault)) => format!("fault in the VM's network stack: {fault}"),
                None => return,
            };
            // Nobody else reads the device from now on.
            tasks.shutdown().await;
            tracing::warn!(reason, "network of a VM has ended");
            events.push(NetworkEventKind::Ended { reason });
            answer_nothing(&tun).await;
        });
        Ok(Self { shared, commands, task: task.abort_handle() })
    }

    /// Replaces the policy. When this returns, connections that it doesn't allow are cut.
    pub async fn set_policy(&self, policy: EgressPolicy) {
        self.shared.set_policy(policy);
        let (done, cut) = oneshot::channel();
        if self.commands.send(done).await.is_ok() {
            // A network that has ended has no connections.
            let _ = cut.await;
        }
    }

    pub fn stats(&self) -> NetworkStats {
        self.shared.stats.snapshot()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.tell_rest();
    }
}

/// All that is left of a stack with a fault: an answer to everything, so that nothing in the VM waits.
async fn answer_nothing(tun: &Tun) {
    let mut buffer = vec![0; PACKET_BYTES];
    while let Ok(mut ready) = tun.readable().await {
        while let Some(read) = ready.try_read(&mut buffer) {
            // A device that can't be read has nothing more to say.
            let Ok(length) = read else { return };
            let packet = buffer.get(HEADER_BYTES..length).unwrap_or_default();
            if let Some(answer) = packet::unreachable(packet, packet::Unreachable::Network) {
                tun.write_packet(&answer);
            }
        }
        tokio::task::yield_now().await;
    }
}

/// The flows of a VM, and the one task that knows them all.
struct Flows {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Recheck>,
    connections: HashMap<FlowKey, Connected>,
    datagrams: HashMap<FlowKey, Datagrams>,
    /// How many of each kind there are, in the order of [`Kind`].
    counts: [usize; 3],
    next_number: u64,
    /// Flows that had to make room, each until nothing of it leaves any more.
    ending: Vec<oneshot::Receiver<()>>,
    tasks: JoinSet<Done>,
    buffer: Vec<u8>,
}

struct Connected {
    packets: mpsc::Sender<Queued>,
    facts: Arc<Facts>,
    cut: Option<oneshot::Sender<Cut>>,
}

struct Datagrams {
    payloads: mpsc::Sender<Queued>,
    kind: Kind,
    facts: Arc<Facts>,
    cut: Option<oneshot::Sender<Cut>>,
    /// Which of several flows of the same ends, one after the other.
    number: u64,
}

/// The word to end a flow; answered when nothing of it leaves any more.
type Cut = oneshot::Sender<()>;

/// What is counted apart: many queries must not keep datagrams from leaving, nor the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Query,
    Datagram,
    Ping,
}

impl Kind {
    fn limit(self) -> Limit {
        match self {
            Self::Query => Limit::Queries,
            Self::Datagram => Limit::DatagramFlows,
            Self::Ping => Limit::Pings,
        }
    }
}

/// A flow that is over.
enum Done {
    Connection(FlowKey),
    Datagrams(FlowKey, u64),
    Ping,
}

enum Wake {
    Packets(io::Result<()>),
    Recheck(Recheck),
    Done(Result<Done, JoinError>),
}

impl Flows {
    fn new(shared: Arc<Shared>, commands: mpsc::Receiver<Recheck>) -> Self {
        Self {
            shared,
            commands,
            connections: HashMap::new(),
            datagrams: HashMap::new(),
            counts: [0; 3],
            next_number: 0,
            ending: Vec::new(),
            tasks: JoinSet::new(),
            buffer: Vec::new(),
        }
    }

    /// Serves until the device or a flow fails; the reason.
    async fn serve(mut self) -> String {
        loop {
            let shared = Arc::clone(&self.shared);
            let wake = tokio::select! {
                ready = shared.tun.readable() => Wake::Packets(ready.and_then(|ready| self.packets(ready))),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => Wake::Done(done),
                Some(recheck) = self.commands.recv() => Wake::Recheck(recheck),
            };
            match wake {
                Wake::Packets(Ok(())) => {}
                Wake::Packets(Err(error)) => return format!("the VM's network device failed: {error}"),
                Wake::Done(done) => {
                    if let Err(fault) = self.forget_ended(done) {
                        return format!("fault in the VM's network stack: {fault}");
                    }
                }
                Wake::Recheck(done) => self.recheck(done),
            }
        }
    }

    /// Handles packets that are there, a bounded number at a time.
    fn packets(&mut self, mut ready: tun::Ready<'_>) -> io::Result<()> {
        for _ in 0..BATCH {
            // Given away with the packet that was in it; otherwise as it was.
            self.buffer.resize(PACKET_BYTES, 0);
            let Some(read) = ready.try_read(&mut self.buffer) else { break };
            let packet = self.take(read?);
            self.packet(packet);
        }
        if self.connections.is_empty() {
            // An idle VM costs as little as it can.
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// The packet in the buffer, without its header.
    fn take(&mut self, length: usize) -> Vec<u8> {
        if length <= COPIED_BYTES {
            return self.buffer.get(HEADER_BYTES..length).unwrap_or_default().to_vec();
        }
        let mut packet = std::mem::take(&mut self.buffer);
        packet.truncate(length);
        packet.drain(..HEADER_BYTES);
        packet
    }

    fn packet(&mut self, packet: Vec<u8>) {
        match packet::parse(&packet) {
            Inbound::Tcp { key, segment } if self.shared.is_guest(key.guest.ip()) => {
                self.segment(key, segment, packet);
            }
            Inbound::Udp { key, payload } if self.shared.is_guest(key.guest.ip()) => {
                if let Some(payload) = self.shared.queued_datagram(payload.to_vec()) {
                    self.datagram(key, payload, packet::quoted(&packet));
                }
            }
            Inbound::Echo { guest, remote, identifier, sequence, payload } if self.shared.is_guest(guest) => {
                if let Some(payload) = self.shared.queued_datagram(payload.to_vec()) {
                    let request = echo::Request { guest, remote, identifier, sequence, payload };
                    self.ping(request, packet::quoted(&packet));
                }
            }
            _ => self.shared.stats.dropped(),
        }
    }

    fn segment(&mut self, key: FlowKey, segment: Segment, packet: Vec<u8>) {
        let packet = match self.connections.get(&key) {
            Some(flow) => {
                let Some(packet) = self.shared.queued_segment(packet) else { return };
                match flow.packets.try_send(packet) {
                    Ok(()) => return,
                    Err(mpsc::error::TrySendError::Full(_)) => return self.shared.stats.dropped(),
                    // Its task has ended, and is about to be forgotten.
                    Err(mpsc::error::TrySendError::Closed(packet)) => packet.bytes,
                }
            }
            None => packet,
        };
        let socket = if segment.opens { self.room_for_connection() } else { None };
        if let Some(socket) = socket {
            // It may bring data along.
            let Some(packet) = self.shared.queued_segment(packet) else { return };
            let (packets, queue) = mpsc::channel(QUEUED_PACKETS);
            let (cut, wait) = oneshot::channel();
            let facts = Arc::new(Facts::new(Protocol::Tcp, key));
            let flow = tcp::Flow::new(Arc::clone(&self.shared), Arc::clone(&facts), packet, queue);
            self.tasks.spawn(async move {
                flow.serve(wait).await;
                drop(socket);
                Done::Connection(key)
            });
            self.connections.insert(key, Connected { packets, facts, cut: Some(cut) });
        } else if !segment.resets {
            if segment.opens {
                self.shared.stats.dropped();
            }
            if let Some(reset) = packet::reset(key, segment) {
                self.shared.tun.write_packet(&reset);
            }
        }
    }

    fn datagram(&mut self, key: FlowKey, payload: Queued, quoted: &[u8]) {
        let payload = match self.datagrams.get(&key) {
            Some(flow) => match flow.payloads.try_send(payload) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => return self.shared.stats.dropped(),
                // Its task has ended, and is about to be forgotten.
                Err(mpsc::error::TrySendError::Closed(payload)) => payload,
            },
            None => payload,
        };
        let resolver = key.remote.ip() == IpAddr::V4(self.shared.addresses.resolver);
        let kind = if resolver { Kind::Query } else { Kind::Datagram };
        self.forget_datagrams(key);
        let Some((number, socket)) = self.begin(kind, quoted) else { return };
        let (payloads, queue) = mpsc::channel(QUEUED_DATAGRAMS);
        let (cut, wait) = oneshot::channel::<Cut>();
        let facts = Arc::new(Facts::new(Protocol::Udp, key));
        let flow = udp::Flow::new(Arc::clone(&self.shared), Arc::clone(&facts), quoted.to_vec(), queue);
        self.tasks.spawn(async move {
            let cut = tokio::select! {
                biased;
                cut = wait => cut.ok(),
                () = flow.serve(payload) => None,
            };
            // Whoever has changed the policy may have gone.
            let _ = cut.map(|done| done.send(()));
            drop(socket);
            Done::Datagrams(key, number)
        });
        self.datagrams.insert(key, Datagrams { payloads, kind, facts, cut: Some(cut), number });
    }

    fn ping(&mut self, request: echo::Request, quoted: &[u8]) {
        let Some((_, socket)) = self.begin(Kind::Ping, quoted) else { return };
        let (shared, quoted) = (Arc::clone(&self.shared), quoted.to_vec());
        self.tasks.spawn(async move {
            echo::serve(shared, request, quoted).await;
            drop(socket);
            Done::Ping
        });
    }

    /// Makes room for a flow that begins with this packet, or tells the guest that there is none.
    fn begin(&mut self, kind: Kind, packet: &[u8]) -> Option<(u64, OwnedSemaphorePermit)> {
        let limit = self.shared.limits.datagram_flows;
        let is_full = |flows: &Self| flows.counts.get(kind as usize).is_none_or(|count| *count >= limit);
        if is_full(self) {
            self.shared.limit_reached(kind.limit());
            self.evict(kind);
        }
        let room = !is_full(self);
        let socket = room.then(|| self.socket()).flatten();
        let (Some(count), Some(socket)) = (self.counts.get_mut(kind as usize), socket) else {
            self.shared.stats.dropped();
            if let Some(error) = packet::unreachable(packet, packet::Unreachable::Host) {
                self.shared.tun.write_packet(&error);
            }
            return None;
        };
        *count += 1;
        self.next_number += 1;
        Some((self.next_number, socket))
    }

    /// Ends the longest idle of these flows, if there is one.
    fn evict(&mut self, kind: Kind) {
        let flows = self.datagrams.iter().filter(|(_, flow)| flow.kind == kind);
        let idle = flows.min_by_key(|(_, flow)| flow.facts.last_active()).map(|(key, _)| *key);
        if let Some(key) = idle {
            self.forget_datagrams(key);
        }
    }

    /// Ends the flow of these ends, if there is one, and makes room for another.
    fn forget_datagrams(&mut self, key: FlowKey) {
        let Some(mut flow) = self.datagrams.remove(&key) else { return };
        self.uncount(flow.kind);
        if let Some(cut) = flow.cut.take() {
            let (said, heard) = oneshot::channel();
            // It may have ended already.
            let _ = cut.send(said);
            self.ending.retain_mut(|ending| matches!(ending.try_recv(), Err(TryRecvError::Empty)));
            self.ending.push(heard);
        }
    }

    fn uncount(&mut self, kind: Kind) {
        if let Some(count) = self.counts.get_mut(kind as usize) {
            *count = count.saturating_sub(1);
        }
    }

    /// Leave to open a socket, of which all VMs together have as many as the sidecar has descriptors to spare.
    fn socket(&self) -> Option<OwnedSemaphorePermit> {
        let socket = Arc::clone(&self.shared.sockets).try_acquire_owned().ok();
        if socket.is_none() {
            self.shared.limit_reached(Limit::HostSockets);
        }
        socket
    }

    fn room_for_connection(&self) -> Option<OwnedSemaphorePermit> {
        if self.connections.len() >= self.shared.limits.connections {
            self.shared.limit_reached(Limit::Connections);
            return None;
        }
        self.socket()
    }

    /// Forgets this flow, and those that have ended with it: packets come many at a time, too.
    fn forget_ended(&mut self, done: Result<Done, JoinError>) -> Result<(), JoinError> {
        let mut next = Some(done);
        while let Some(done) = next {
            match done {
                Ok(done) => self.forget(done),
                Err(fault) if fault.is_panic() => return Err(fault),
                Err(_) => {}
            }
            next = self.tasks.try_join_next();
        }
        Ok(())
    }

    fn forget(&mut self, done: Done) {
        match done {
            Done::Connection(key) => {
                // A connection that ended may have been followed by another of the same ends.
                if self.connections.get(&key).is_some_and(|flow| flow.packets.is_closed()) {
                    self.connections.remove(&key);
                }
            }
            Done::Datagrams(key, number) => {
                // One that had to make room is forgotten already.
                if self.datagrams.get(&key).is_some_and(|flow| flow.number == number) {
                    self.forget_datagrams(key);
                }
            }
            Done::Ping => self.uncount(Kind::Ping),
        }
    }

    /// Ends every flow that the policy no longer allows.
    fn recheck(&mut self, done: Recheck) {
        let connections = self.connections.values_mut().map(|flow| (&flow.facts, &mut flow.cut));
        let datagrams = self.datagrams.values_mut().map(|flow| (&flow.facts, &mut flow.cut));
        let mut ends = std::mem::take(&mut self.ending);
        for (facts, cut) in connections.chain(datagrams) {
            if !self.shared.still_allows(facts)
                && let Some(cut) = cut.take()
            {
                let (said, heard) = oneshot::channel();
                // A flow that has just ended is cut.
                let _ = cut.send(said);
                ends.push(heard);
            }
        }
        tokio::spawn(async move {
            for end in ends {
                let _ = end.await;
            }
            // Whoever asked may have gone.
            let _ = done.send(());
        });
    }
}

impl Shared {
    /// Room for a packet to wait for its connection's task. None: it is lost.
    fn queued_segment(&self, packet: Vec<u8>) -> Option<Queued> {
        self.room_or_lost(self.budget.segment(packet))
    }

    /// The same for a datagram, whichever way it goes.
    fn queued_datagram(&self, payload: Vec<u8>) -> Option<Queued> {
        self.room_or_lost(self.budget.datagram(payload))
    }

    fn room_or_lost(&self, queued: Option<Queued>) -> Option<Queued> {
        if queued.is_none() {
            self.stats.dropped();
            self.limit_reached(Limit::QueuedBytes);
        }
        queued
    }

    fn is_guest(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.addresses.guest,
            IpAddr::V6(address) => Some(address) == self.addresses.guest_v6,
        }
    }
}
