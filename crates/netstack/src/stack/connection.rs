//! The guest's end of one TCP connection: a TCP stack that has nothing but this connection.
//!
//! An interface of its own for each makes a packet's way independent of how many others there are, and leaves nothing
//! for one connection to do to another.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::budget::{Queued, Share};
use super::egress::Shared;
use super::packet::{self, FlowKey};
use super::tun::{HEADER_BYTES, Tun};

/// A guest's kernel forgets a connection whose process has gone, and says so only when it is asked.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A guest that answers nothing for so long is not there any more. Its kernel answers also while its programs are stopped,
/// or don't read.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Packets that wait for their connection's task. A sender fills its window with fewer; the rest of a flood is lost.
pub(super) const QUEUED_PACKETS: usize = 64;

pub(super) struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    device: Wire,
    packets: mpsc::Receiver<Queued>,
    epoch: Instant,
    share: Share,
}

impl Connection {
    /// A connection that has not answered the guest's first packet, which is `opening`.
    pub(super) fn new(
        key: FlowKey,
        shared: &Shared,
        opening: Vec<u8>,
        packets: mpsc::Receiver<Queued>,
    ) -> Self {
        let epoch = Instant::now();
        let (tun, mtu) = (Arc::clone(&shared.tun), shared.addresses.mtu);
        let mut device = Wire { inbound: Some(opening), outbound: Vec::new(), tun, mtu };
        let mut config = Config::new(HardwareAddress::Ip);
        // Initial sequence numbers come from it; who could guess them is the guest alone, about its own connection.
        config.random_seed = seed();
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        let address = IpAddress::from(key.remote.ip());
        interface.update_ip_addrs(|addresses| {
            let bits = if key.remote.is_ipv4() { 32 } else { 128 };
            // There is room for two.
            let _ = addresses.push(IpCidr::new(address, bits));
        });
        let route = |interface: &mut Interface| match key.remote.ip() {
            IpAddr::V4(address) => interface.routes_mut().add_default_ipv4_route(address).is_ok(),
            IpAddr::V6(address) => interface.routes_mut().add_default_ipv6_route(address).is_ok(),
        };
        // The table is empty, and has room.
        let _ = route(&mut interface);
        let share = shared.budget.share();
        let buffer = || SocketBuffer::new(vec![0; share.buffer_bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(TIMEOUT));
        socket.set_ack_delay(None);
        let endpoint = IpEndpoint::new(address, key.remote.port());
        if let Err(error) = socket.listen(endpoint) {
            // Only port 0 and a socket in use are refused.
            tracing::debug!(%error, "connection of a guest can't be taken");
        }
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, device, packets, epoch, share }
    }

    /// What there may be between this and a server of our own, in each direction.
    pub(super) fn pipe_bytes(&self) -> usize {
        self.share.pipe_bytes()
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes in what has come from the guest. Pending when there is nothing more now.
    pub(super) fn poll_packets(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.device.inbound.is_some() {
                let now = self.now();
                self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets);
            }
            // The sender is with the stack, which outlives this.
            match ready!(self.packets.poll_recv(context)) {
                Some(packet) => self.device.inbound = Some(packet.bytes),
                None => return Poll::Pending,
            }
        }
    }

    /// Lets the stack do what is due: acknowledge, send, send again. One acknowledgement does for all that was taken in
    /// since the last call, and tells of the room that passing it on has made.
    pub(super) fn exchange(&mut self) {
        let now = self.now();
        while self.interface.poll_egress(now, &mut self.device, &mut self.sockets)
            == PollResult::SocketStateChanged
        {}
    }

    /// When the stack wants to be called without a packet.
    pub(super) fn next_call(&mut self) -> Option<Instant> {
        let now = self.now();
        let at = self.interface.poll_at(now, &self.sockets)?;
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        Some(self.epoch + std::time::Duration::from_micros(micros))
    }

    /// Answers the guest with a reset.
    pub(super) fn abort(&mut self) {
        self.socket().abort();
        self.exchange();
    }

    /// Whether the guest has taken the connection back, or never had it.
    pub(super) fn is_gone(&mut self) -> bool {
        // A reset before the connection stood makes the socket listen again.
        matches!(self.socket().state(), State::Closed | State::Listen)
    }

    /// Whether the guest has said that it is through. What it said before may still be there to be read.
    pub(super) fn has_ended(&mut self) -> bool {
        matches!(
            self.socket().state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        )
    }

    /// Waits for bytes of the guest beyond the first `known`. False: there will be no more.
    pub(super) fn poll_more(&mut self, known: usize, context: &mut Context<'_>) -> Poll<bool> {
        let _ = self.poll_packets(context);
        self.exchange();
        if self.socket().recv_queue() > known {
            return Poll::Ready(true);
        }
        // A connection that is still being made may receive, but not yet.
        let open = matches!(
            self.socket().state(),
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2
        );
        if open { Poll::Pending } else { Poll::Ready(false) }
    }

    fn now(&self) -> StackInstant {
        let micros = i64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(i64::MAX);
        StackInstant::from_micros(micros)
    }
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers, early in a boot, the seed is what the stack would have had without this.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bytes)
}

/// One packet in, any number out.
struct Wire {
    inbound: Option<Vec<u8>>,
    /// Kept, so that sending needs no memory of its own each time.
    outbound: Vec<u8>,
    tun: Arc<Tun>,
    mtu: usize,
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: StackInstant) -> Option<(Received, Sending<'_>)> {
        let packet = self.inbound.take()?;
        Some((Received(packet), Sending { buffer: &mut self.outbound, tun: &self.tun }))
    }

    fn transmit(&mut self, _now: StackInstant) -> Option<Sending<'_>> {
        Some(Sending { buffer: &mut self.outbound, tun: &self.tun })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = packet::checksums();
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sending<'a> {
    buffer: &'a mut Vec<u8>,
    tun: &'a Tun,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        // What was in there is written over: the stack fills what it asked for.
        self.buffer.resize(HEADER_BYTES + len, 0);
        let (_, packet) = self.buffer.split_at_mut(HEADER_BYTES);
        let result = fill(packet);
        self.tun.write(self.buffer);
        result
    }
}
