//! A guest of the test's own: what the kernel of a VM would do, in the test's process.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use agentos_netstack::border::{Border, Trust};
use agentos_netstack::dns::{Resolver, Upstream};
use agentos_netstack::event::{EventLog, NetworkEvent, Owner};
use agentos_netstack::name::HostName;
use agentos_netstack::pins::Pins;
use agentos_netstack::policy::{EgressPolicy, Protocol};
use agentos_netstack::stack::{Addresses, NetworkStats, Stack, StackLimits, StackOptions};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{
    HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, IpEndpoint, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};
use tokio::net::UnixDatagram;
use tokio::sync::broadcast;

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(crate) const BORDER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const MTU: usize = 65_520;
/// The kernel's header before every packet.
const HEADER_BYTES: usize = 10;

/// Nothing in these tests takes longer unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it hangs")
}

/// What the stack has asked about processes: protocol, the guest's end, the other end.
pub(crate) type Asked = Arc<std::sync::Mutex<Vec<(Protocol, SocketAddr, SocketAddr)>>>;

/// What a stack of a test is made of.
pub(crate) struct Parts {
    pub policy: EgressPolicy,
    pub limits: StackLimits,
    pub host_ports: Vec<u16>,
    pub border: Border,
    /// Names that the resolver knows.
    pub hosts: Vec<(&'static str, IpAddr)>,
    /// Whether it is ever said whose a connection is.
    pub identifies: bool,
}

impl Parts {
    pub(crate) fn new(policy: EgressPolicy) -> Self {
        let border = Border::new(Vec::new(), Vec::new(), Trust::nobody().unwrap()).unwrap();
        let limits = StackLimits::default();
        Self { policy, limits, host_ports: Vec::new(), border, hosts: Vec::new(), identifies: true }
    }
}

/// A stack, and the wire to it.
pub(crate) struct World {
    pub stack: Stack,
    pub events: Arc<EventLog>,
    pub asked: Asked,
    wire: Arc<UnixDatagram>,
    /// Everything that the stack sends, for whoever listens.
    packets: broadcast::Sender<Vec<u8>>,
    all: tokio::sync::Mutex<broadcast::Receiver<Vec<u8>>>,
    reader: tokio::task::JoinHandle<()>,
    next_port: AtomicU16,
}

impl Drop for World {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl World {
    pub(crate) fn new(policy: EgressPolicy) -> Self {
        Self::with(policy, StackLimits::default(), &[])
    }

    pub(crate) fn with(policy: EgressPolicy, limits: StackLimits, host_ports: &[u16]) -> Self {
        Self::of(Parts { limits, host_ports: host_ports.to_vec(), ..Parts::new(policy) })
    }

    pub(crate) fn of(parts: Parts) -> Self {
        Self::made_with(parts, |_| {})
    }

    /// With the options changed before the stack starts.
    pub(crate) fn made_with(parts: Parts, change: impl FnOnce(&mut StackOptions)) -> Self {
        let (device, wire) = std::os::unix::net::UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        let wire = Arc::new(UnixDatagram::from_std(wire).unwrap());
        let events = Arc::new(EventLog::default());
        let pins = Arc::new(Pins::default());
        let hosts = parts.hosts.iter().map(|(name, address)| (HostName::parse(name).unwrap(), *address));
        let (asked, identifies) = (Asked::default(), parts.identifies);
        let log = Arc::clone(&asked);
        let mut options = StackOptions {
            addresses: Addresses {
                guest: GUEST,
                guest_v6: None,
                gateway: GATEWAY,
                resolver: RESOLVER,
                border: BORDER,
                mtu: MTU,
            },
            policy: parts.policy,
            host_ports: parts.host_ports.into_iter().collect(),
            resolver: Resolver::new(Upstream::servers(&[]), hosts.collect(), Arc::clone(&pins)),
            pins,
            border: Arc::new(parts.border),
            limits: parts.limits,
            sockets: Arc::new(tokio::sync::Semaphore::new(1_000)),
            events: Arc::clone(&events),
            identify: Arc::new(move |protocol, local, remote| {
                log.lock().unwrap().push((protocol, local, remote));
                Box::pin(async move {
                    if !identifies {
                        std::future::pending::<()>().await;
                    }
                    Some(Owner { pid: 42, command: "client".to_owned() })
                })
            }),
        };
        change(&mut options);
        let stack = Stack::start(device.into(), options).unwrap();
        let (packets, all) = broadcast::channel(16_384);
        let (from, to) = (Arc::clone(&wire), packets.clone());
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; HEADER_BYTES + MTU];
            while let Ok(length) = from.recv(&mut buffer).await {
                // Nobody may be listening now.
                let _ = to.send(buffer[HEADER_BYTES..length].to_vec());
            }
        });
        let all = tokio::sync::Mutex::new(all);
        Self { stack, events, asked, wire, packets, all, reader, next_port: AtomicU16::new(40_000) }
    }

    pub(crate) async fn send_raw(&self, packet: &[u8]) {
        let mut framed = vec![0; HEADER_BYTES];
        framed.extend_from_slice(packet);
        soon(self.wire.send(&framed)).await.unwrap();
    }

    pub(crate) async fn send_datagram(&self, remote: SocketAddr, payload: &[u8]) {
        let repr = UdpRepr { src_port: 5_000, dst_port: remote.port() };
        let packet = to(remote, IpProtocol::Udp, 8 + payload.len(), |buffer, from, to| {
            let mut packet = UdpPacket::new_unchecked(buffer);
            let fill = |room: &mut [u8]| room.copy_from_slice(payload);
            repr.emit(&mut packet, &from, &to, payload.len(), fill, &ChecksumCapabilities::default());
        });
        self.send_raw(&packet).await;
    }

    /// One echo request.
    pub(crate) async fn send_ping(&self, remote: IpAddr, identifier: u16, payload: &[u8]) {
        let repr = Icmpv4Repr::EchoRequest { ident: identifier, seq_no: 1, data: payload };
        let packet = to(SocketAddr::new(remote, 0), IpProtocol::Icmp, repr.buffer_len(), |buffer, _, _| {
            repr.emit(&mut Icmpv4Packet::new_unchecked(buffer), &ChecksumCapabilities::default());
        });
        self.send_raw(&packet).await;
    }

    /// Waits for any ICMP.
    pub(crate) async fn icmp(&self) {
        while Ipv4Packet::new_checked(&self.next().await).unwrap().next_header() != IpProtocol::Icmp {}
    }

    /// Waits until these events are there, and gives all that are.
    pub(crate) async fn events_until(
        &self,
        mut wanted: impl FnMut(&[Arc<NetworkEvent>]) -> bool,
    ) -> Vec<Arc<NetworkEvent>> {
        soon(async {
            loop {
                let events = self.events.since(0).events;
                if wanted(&events) {
                    return events;
                }
                self.events.reached(events.len() as u64).await;
            }
        })
        .await
    }

    /// The next datagram from this address.
    pub(crate) async fn datagram(&self, remote: SocketAddr) -> Vec<u8> {
        loop {
            let packet = self.next().await;
            let header = Ipv4Packet::new_checked(&packet).unwrap();
            if header.next_header() == IpProtocol::Udp {
                let datagram = UdpPacket::new_checked(header.payload()).unwrap();
                if datagram.src_port() == remote.port() {
                    return datagram.payload().to_vec();
                }
            }
        }
    }

    /// The first packet of a connection, and nothing after it.
    pub(crate) async fn send_first_packet(&self, port: u16, remote: SocketAddr) {
        let repr = TcpRepr {
            src_port: port,
            dst_port: remote.port(),
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(1),
            ack_number: None,
            window_len: 64_000,
            window_scale: None,
            max_seg_size: Some(1_400),
            sack_permitted: false,
            sack_ranges: [None, None, None],
            timestamp: None,
            payload: &[],
        };
        let packet = to(remote, IpProtocol::Tcp, repr.buffer_len(), |buffer, from, to| {
            repr.emit(&mut TcpPacket::new_unchecked(buffer), &from, &to, &ChecksumCapabilities::default());
        });
        self.send_raw(&packet).await;
    }

    /// Waits for so many resets.
    pub(crate) async fn resets(&self, wanted: usize) -> usize {
        let mut found = 0;
        while found < wanted {
            let packet = self.next().await;
            let header = Ipv4Packet::new_checked(&packet).unwrap();
            if header.next_header() == IpProtocol::Tcp {
                found += usize::from(TcpPacket::new_checked(header.payload()).unwrap().rst());
            }
        }
        found
    }

    /// What came so far is of no interest.
    pub(crate) async fn forget_packets(&self) {
        let mut all = self.all.lock().await;
        *all = all.resubscribe();
    }

    /// Answers the next segment of this port as a kernel does that knows nothing of its connection.
    pub(crate) async fn disown(&self, port: u16) {
        loop {
            let packet = self.next().await;
            let header = Ipv4Packet::new_checked(&packet).unwrap();
            if header.next_header() != IpProtocol::Tcp {
                continue;
            }
            let segment = TcpPacket::new_checked(header.payload()).unwrap();
            if segment.dst_port() != port {
                continue;
            }
            let remote = SocketAddr::from((header.src_addr(), segment.src_port()));
            self.send_reset(port, remote, segment.ack_number()).await;
            return;
        }
    }

    async fn send_reset(&self, port: u16, remote: SocketAddr, seq_number: TcpSeqNumber) {
        let repr = TcpRepr {
            src_port: port,
            dst_port: remote.port(),
            control: TcpControl::Rst,
            seq_number,
            ack_number: None,
            window_len: 0,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None, None, None],
            timestamp: None,
            payload: &[],
        };
        let packet = to(remote, IpProtocol::Tcp, repr.buffer_len(), |buffer, from, to| {
            repr.emit(&mut TcpPacket::new_unchecked(buffer), &from, &to, &ChecksumCapabilities::default());
        });
        self.send_raw(&packet).await;
    }

    /// Waits until the stack's figures are as wanted.
    pub(crate) async fn until(&self, mut wanted: impl FnMut(&NetworkStats) -> bool) {
        soon(async {
            while !wanted(&self.stack.stats()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn next(&self) -> Vec<u8> {
        soon(self.all.lock().await.recv()).await.unwrap()
    }
}

fn to(
    remote: SocketAddr,
    next_header: IpProtocol,
    payload_len: usize,
    emit: impl FnOnce(&mut [u8], IpAddress, IpAddress),
) -> Vec<u8> {
    let IpAddr::V4(dst_addr) = remote.ip() else { panic!("{remote} is not of this test") };
    let header = Ipv4Repr { src_addr: GUEST, dst_addr, next_header, payload_len, hop_limit: 64 };
    let mut packet = vec![0; 20 + payload_len];
    header.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &ChecksumCapabilities::default());
    emit(&mut packet[20..], GUEST.into(), dst_addr.into());
    packet
}

/// One connection of the guest.
pub(crate) struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
    packets: broadcast::Receiver<Vec<u8>>,
    epoch: std::time::Instant,
    /// What came that was no TCP.
    icmp: Option<(u8, u8)>,
    port: u16,
}

impl Guest {
    /// Begins to connect.
    pub(crate) fn connect(world: &World, remote: SocketAddr) -> Self {
        let packets = world.packets.subscribe();
        let mut wire = Wire { inbound: VecDeque::new(), wire: Arc::clone(&world.wire) };
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let buffer = || SocketBuffer::new(vec![0; 256 * 1024]);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(Socket::new(buffer(), buffer()));
        let port = world.next_port.fetch_add(1, Ordering::Relaxed);
        let target = IpEndpoint::new(remote.ip().into(), remote.port());
        let socket = sockets.get_mut::<Socket<'_>>(handle);
        // What a test sends is on its way when the call returns.
        socket.set_nagle_enabled(false);
        socket.connect(interface.context(), target, port).unwrap();
        let epoch = std::time::Instant::now();
        let mut guest = Self { interface, sockets, handle, wire, packets, epoch, icmp: None, port };
        guest.poll();
        guest
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        self.drive(|guest| {
            let socket = guest.socket();
            if socket.can_send() {
                rest = &rest[socket.send_slice(rest).unwrap()..];
            }
            rest.is_empty().then_some(())
        })
        .await;
    }

    /// Says that there is nothing more to come.
    pub(crate) async fn close(&mut self) {
        self.socket().close();
        self.poll();
    }

    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.drive(|guest| {
            take(guest.socket(), &mut bytes);
            (!guest.socket().may_recv()).then_some(())
        })
        .await;
        bytes
    }

    /// Sends everything and reads all that comes meanwhile and afterwards.
    pub(crate) async fn exchange(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (mut rest, mut received) = (bytes, Vec::new());
        self.drive(|guest| {
            let socket = guest.socket();
            if socket.can_send() {
                rest = &rest[socket.send_slice(rest).unwrap()..];
                if rest.is_empty() {
                    socket.close();
                }
            }
            take(socket, &mut received);
            let established = !matches!(socket.state(), State::SynSent | State::SynReceived);
            (established && rest.is_empty() && !socket.may_recv()).then_some(())
        })
        .await;
        received
    }

    /// Takes the connection back.
    pub(crate) async fn abort(&mut self) {
        self.socket().abort();
        self.poll();
    }

    /// Reads so many bytes.
    pub(crate) async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.drive(|guest| {
            take(guest.socket(), &mut bytes);
            (bytes.len() >= count).then_some(())
        })
        .await;
        bytes
    }

    /// Keeps its side of the connection up while something else goes on.
    pub(crate) async fn drive_until<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::select! {
            result = done => result,
            () = self.drive(|_| None) => unreachable!("it is driven without end"),
        }
    }

    /// Answers all that is on its way to it.
    pub(crate) async fn settle(&mut self) {
        for _ in 0..100 {
            while let Ok(packet) = self.packets.try_recv() {
                self.take(packet);
                self.poll();
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn is_open(&mut self) -> bool {
        self.socket().state() == State::Established
    }

    /// All that comes before the connection is reset.
    pub(crate) async fn read_until_reset(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.drive(|guest| {
            take(guest.socket(), &mut bytes);
            (guest.socket().state() == State::Closed).then_some(())
        })
        .await;
        bytes
    }

    /// Waits for the reset.
    pub(crate) async fn is_refused(&mut self) -> bool {
        self.drive(|guest| (guest.socket().state() == State::Closed).then_some(true)).await
    }

    /// Waits for an ICMP error about this connection; type and code.
    pub(crate) async fn icmp(&mut self) -> (u8, u8) {
        self.drive(|guest| guest.icmp).await
    }

    async fn drive<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            self.poll();
            if let Some(result) = done(self) {
                self.poll();
                return result;
            }
            self.poll();
            let now = self.now();
            let delay = self.interface.poll_delay(now, &self.sockets).map(Duration::from);
            let wake = tokio::time::Instant::now() + delay.unwrap_or(DEADLINE);
            assert!(tokio::time::Instant::now() < deadline, "it hangs in {}", self.socket().state());
            tokio::select! {
                packet = self.packets.recv() => self.take(packet.unwrap()),
                () = tokio::time::sleep_until(wake.min(deadline)) => {}
            }
        }
    }

    /// Keeps what is for this connection.
    fn take(&mut self, packet: Vec<u8>) {
        let header = Ipv4Packet::new_checked(&packet).unwrap();
        match header.next_header() {
            IpProtocol::Tcp if TcpPacket::new_checked(header.payload()).unwrap().dst_port() == self.port => {
                self.wire.inbound.push_back(packet);
            }
            IpProtocol::Icmp => {
                let message = header.payload();
                // The quoted packet's source port.
                let quoted = u16::from_be_bytes([message[28], message[29]]);
                if quoted == self.port {
                    self.icmp = Some((message[0], message[1]));
                }
            }
            _ => {}
        }
    }

    fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.epoch.elapsed().as_micros() as i64)
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

fn take(socket: &mut Socket<'_>, bytes: &mut Vec<u8>) {
    while socket.can_recv() {
        socket
            .recv(|found| {
                bytes.extend_from_slice(found);
                (found.len(), ())
            })
            .unwrap();
    }
}

struct Wire {
    inbound: VecDeque<Vec<u8>>,
    wire: Arc<UnixDatagram>,
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sending)> {
        let packet = self.inbound.pop_front()?;
        Some((Received(packet), Sending(Arc::clone(&self.wire))))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending> {
        Some(Sending(Arc::clone(&self.wire)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // As a VM's kernel, which makes and looks at none of a packet that never leaves the machine.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = smoltcp::phy::Checksum::Both;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sending(Arc<UnixDatagram>);

impl TxToken for Sending {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut framed = vec![0; HEADER_BYTES + len];
        let result = fill(&mut framed[HEADER_BYTES..]);
        // A full wire loses packets, and TCP sends them again. The runtime is not asked: it may not know yet that there
        // is room.
        let _ = rustix::net::send(&*self.0, &framed, rustix::net::SendFlags::empty());
        result
    }
}
