//! What must hold for a stack, whatever a guest puts on its device. Fuzz targets bring bytes that a fuzzer makes up, the
//! tests at the end theirs.
//!
//! The policy lets nothing out, so that nothing here leaves the process: what is left is the stack's own way with
//! packets, its resolver, and the gateway for secrets. Packets come one after the other:
//!
//! ```text
//! how (1 byte) · length (2 bytes, little endian) · packet
//! ```
//! `how` says what is put right in the packet first: a fuzzer seldom finds by itself which address the guest has, how
//! long its packet is, or which number a connection has come to.

#![allow(clippy::expect_used, reason = "it is called by tests, which fail by panicking")]

use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, LazyLock};

use smoltcp::wire::{Icmpv4Packet, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber, UdpPacket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use super::packet::{self, Inbound, Unreachable};
use super::{Addresses, HEADER_BYTES, PACKET_BYTES, Stack, StackLimits, StackOptions};
use crate::border::{Border, Trust};
use crate::dns::{Resolver, Upstream};
use crate::event::{EventLog, NetworkEventKind};
use crate::pins::Pins;
use crate::policy::EgressPolicy;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const BORDER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const MTU: usize = 1_500;

const FROM_GUEST: u8 = 1;
const TO_RESOLVER: u8 = 2;
const TO_BORDER: u8 = 4;
const LENGTHS: u8 = 8;
const ACKNOWLEDGE: u8 = 16;

/// More add nothing but time.
const MAX_PACKETS: usize = 48;
/// Turns of the runtime in which everything that a packet sets off is done.
const TURNS: usize = 12;
/// A packet of the guest makes so many at most: a query of a connection that is closed at once, for example, its answer
/// and two closing segments.
const MAX_ANSWERS: usize = 16;
/// Of an IPv6 header, and of what an ICMP error has before its quotation.
const ERROR_BYTES: usize = 40 + 8;
const QUOTED_BYTES: usize = 512;
/// Ports that a packet of the fuzzer would have to guess, at which a last query shows that the stack still serves.
const LAST_PORT: u16 = 61_234;

/// # Panics
///
/// If the stack ends, stops to serve, or sends what is no packet to the guest.
pub fn packets(input: &[u8]) {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(serve(input)));
}

async fn serve(input: &[u8]) {
    let (device, wire) = UnixDatagram::pair().expect("a pair of sockets");
    device.set_nonblocking(true).expect("a socket that does not block");
    wire.set_nonblocking(true).expect("a socket that does not block");
    let events = Arc::new(EventLog::default());
    let stack = Stack::start(device.into(), options(&events)).expect("a stack");
    let mut guest = Guest { wire, next_number: TcpSeqNumber(0), buffer: vec![0; PACKET_BYTES] };
    let mut rest = input;
    for _ in 0..MAX_PACKETS {
        let Some((&[how, low, high], after)) = rest.split_first_chunk() else { break };
        let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (bytes, after) = after.split_at(length);
        rest = after;
        let mut packet = bytes.to_vec();
        guest.put_right(how, &mut packet);
        check_parser(&packet);
        guest.send(&packet);
        let answers = guest.answers().await;
        assert!(answers <= MAX_ANSWERS, "{answers} packets answer one");
    }
    assert!(guest.is_served().await, "the stack serves no more");
    let ended = |kind: &NetworkEventKind| matches!(kind, NetworkEventKind::Ended { .. });
    assert!(!events.since(0).events.iter().any(|event| ended(&event.kind)));
    drop(stack);
    // What it leaves is dropped before the next.
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// The parser alone, and the answers that are made without a task.
fn check_parser(packet: &[u8]) {
    match packet::parse(packet) {
        Inbound::Tcp { key, segment } => {
            let reset = packet::reset(key, segment).expect("a reset for every segment");
            check_answer(&reset);
        }
        Inbound::Udp { key, payload } => {
            assert!(payload.len() <= packet.len());
            // Sent back, it is the same datagram from the other side.
            let back = packet::datagram(key, payload).expect("a datagram");
            let turned = packet::FlowKey { guest: key.remote, remote: key.guest };
            assert_eq!(packet::parse(&back), Inbound::Udp { key: turned, payload });
        }
        Inbound::Echo { payload, .. } => assert!(payload.len() <= packet.len()),
        Inbound::Dropped => {}
    }
    if let Some(error) = packet::unreachable(packet, Unreachable::Port) {
        assert!(error.len() <= ERROR_BYTES + QUOTED_BYTES, "{} bytes", error.len());
        check_answer(&error);
    }
}

/// Whether these bytes are a packet that a guest's kernel would read.
fn check_answer(bytes: &[u8]) {
    if bytes.first().is_some_and(|byte| byte >> 4 == 6) {
        let header = Ipv6Packet::new_checked(bytes).expect("an IPv6 header");
        assert_eq!(header.total_len(), bytes.len());
        return;
    }
    let header = Ipv4Packet::new_checked(bytes).expect("an IPv4 header");
    assert!(header.verify_checksum() && usize::from(header.total_len()) == bytes.len(), "{header}");
    match header.next_header() {
        IpProtocol::Tcp => drop(TcpPacket::new_checked(header.payload()).expect("a segment")),
        IpProtocol::Udp => drop(UdpPacket::new_checked(header.payload()).expect("a datagram")),
        IpProtocol::Icmp => {
            let message = Icmpv4Packet::new_checked(header.payload()).expect("an ICMP message");
            assert!(message.verify_checksum());
        }
        other => unreachable!("the stack says nothing in {other}"),
    }
}

/// The other end of the device.
struct Guest {
    wire: UnixDatagram,
    /// What a guest that has seen the last segment would acknowledge.
    next_number: TcpSeqNumber,
    buffer: Vec<u8>,
}

impl Guest {
    fn send(&self, packet: &[u8]) {
        // A device that is full loses packets.
        let _ = self.wire.send(&[&[0; HEADER_BYTES], packet].concat());
    }

    /// Reads and checks all that comes now; how many these were.
    async fn answers(&mut self) -> usize {
        let mut count = 0;
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
            while let Ok(length) = self.wire.recv(&mut self.buffer) {
                let packet = self.buffer.get(HEADER_BYTES..length).expect("a header before the packet");
                assert!(packet.len() <= MTU.max(4_096 + 28), "{} bytes in a packet", packet.len());
                check_answer(packet);
                let number = next_number(packet);
                self.next_number = number.unwrap_or(self.next_number);
                count += 1;
            }
        }
        count
    }

    /// Asks for a name that the resolver knows by itself, from a port of which nothing was heard yet.
    async fn is_served(&mut self) -> bool {
        let question = b"\xab\xcd\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01";
        let key = packet::FlowKey { guest: (RESOLVER, 53).into(), remote: (GUEST, LAST_PORT).into() };
        let query = packet::datagram(key, question).expect("a query");
        self.send(&query);
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
            while let Ok(length) = self.wire.recv(&mut self.buffer) {
                let packet = self.buffer.get(HEADER_BYTES..length).unwrap_or_default();
                // Turned around, it is what a guest might send.
                if let Inbound::Udp { key, payload } = packet::parse(packet)
                    && key.remote.port() == LAST_PORT
                {
                    return payload.starts_with(b"\xab\xcd");
                }
            }
        }
        false
    }

    fn put_right(&self, how: u8, bytes: &mut [u8]) {
        if bytes.len() < 20 || bytes[0] >> 4 != 4 {
            return;
        }
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        if how & FROM_GUEST != 0 {
            packet.set_src_addr(GUEST);
        }
        if how & TO_RESOLVER != 0 {
            packet.set_dst_addr(RESOLVER);
        }
        if how & TO_BORDER != 0 {
            packet.set_dst_addr(BORDER);
        }
        if how & LENGTHS != 0 {
            packet.set_total_len(length);
            packet.set_header_len(20);
            packet.clear_flags();
            packet.set_frag_offset(0);
        }
        let protocol = packet.next_header();
        let payload = packet.into_inner().get_mut(20..).unwrap_or_default();
        match protocol {
            IpProtocol::Tcp if how & ACKNOWLEDGE != 0 && payload.len() >= 20 => {
                TcpPacket::new_unchecked(payload).set_ack_number(self.next_number);
            }
            IpProtocol::Udp if how & LENGTHS != 0 && payload.len() >= 8 => {
                UdpPacket::new_unchecked(payload).set_len(length - 20);
            }
            _ => {}
        }
    }
}

fn next_number(packet: &[u8]) -> Option<TcpSeqNumber> {
    let header =
        Ipv4Packet::new_checked(packet).ok().filter(|header| header.next_header() == IpProtocol::Tcp)?;
    let segment = TcpPacket::new_checked(header.payload()).ok()?;
    Some(segment.seq_number() + segment.segment_len())
}

fn options(events: &Arc<EventLog>) -> StackOptions {
    static TRUST: LazyLock<Trust> = LazyLock::new(|| Trust::nobody().expect("trust in nobody"));
    let pins = Arc::new(Pins::default());
    StackOptions {
        addresses: Addresses {
            guest: GUEST,
            guest_v6: None,
            gateway: GATEWAY,
            resolver: RESOLVER,
            border: BORDER,
            mtu: MTU,
        },
        policy: EgressPolicy::none(),
        host_ports: [].into(),
        resolver: Resolver::new(Upstream::servers(&[]), Vec::new(), Arc::clone(&pins)),
        pins,
        border: Arc::new(Border::new(Vec::new(), Vec::new(), TRUST.clone()).expect("an empty border")),
        limits: StackLimits { connections: 8, datagram_flows: 64, bandwidth_bytes: None },
        sockets: Arc::new(Semaphore::new(100)),
        events: Arc::clone(events),
        identify: Arc::new(|_, _, _| Box::pin(std::future::ready(None))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet of some protocol with any bytes behind its header.
    fn any_packet() -> impl Strategy<Value = Vec<u8>> {
        let protocol = prop::sample::select([1_u8, 6, 17, 58, 99].as_slice());
        let port = prop::sample::select([0_u16, 53, 80, 443].as_slice());
        let tcp_flags = prop::sample::select([0x02_u8, 0x10, 0x11, 0x14, 0x18, 0x12, 0xff].as_slice());
        let payload = prop::collection::vec(any::<u8>(), 0..64);
        (any::<u8>(), protocol, port, tcp_flags, payload).prop_map(|(how, protocol, port, flags, payload)| {
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 3];
            packet.extend(40_000_u16.to_be_bytes());
            packet.extend(port.to_be_bytes());
            // A TCP header of 20 bytes; to others it is part of their message.
            packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0x40, 0, 0, 0, 0, 0]);
            packet.extend(payload);
            let length = u16::try_from(packet.len()).unwrap().to_le_bytes();
            [&[how | LENGTHS, length[0], length[1]], packet.as_slice()].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_stack_outlives_whatever_it_is_sent(packets in prop::collection::vec(any_packet(), 0..10)) {
            super::packets(&packets.concat());
        }

        #[test]
        fn a_stack_outlives_noise(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            super::packets(&bytes);
        }
    }
}
