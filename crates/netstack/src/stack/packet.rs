//! Packets of the guest, read once; and the few that are made by hand.
//!
//! Checksums of TCP and UDP are not looked at: between a VM and its stack is memory, and the VM's kernel leaves them out
//! where it may. Fragments are dropped: the largest packet has room for the largest datagram that is in use.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr,
    Icmpv6DstUnreachable, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

/// Of the packet that it answers, an ICMP error quotes as much as programs need to find their socket: RFC 1812, 4.3.2.3.
const QUOTED_BYTES: usize = 512;

const HOP_LIMIT: u8 = 64;

/// From whom and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
}

/// What a packet of the guest is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inbound<'a> {
    Tcp {
        key: FlowKey,
        segment: Segment,
    },
    Udp {
        key: FlowKey,
        payload: &'a [u8],
    },
    Echo {
        guest: IpAddr,
        remote: IpAddr,
        identifier: u16,
        sequence: u16,
        payload: &'a [u8],
    },
    /// Nothing that anybody out there could make use of.
    Dropped,
}

/// What is decided by, of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub opens: bool,
    pub resets: bool,
    /// What a reset must carry to be believed.
    pub sequence: TcpSeqNumber,
    pub acknowledged: Option<TcpSeqNumber>,
    /// Sequence numbers that the segment takes up.
    pub length: usize,
}

/// Reads a packet. Whatever it isn't sure of is dropped.
pub(super) fn parse(packet: &[u8]) -> Inbound<'_> {
    let parsed = match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        _ => None,
    };
    parsed.unwrap_or(Inbound::Dropped)
}

fn parse_v4(packet: &[u8]) -> Option<Inbound<'_>> {
    let header = Ipv4Packet::new_checked(packet).ok()?;
    if header.more_frags() || header.frag_offset() != 0 {
        return None;
    }
    let (guest, remote) = (IpAddr::V4(header.src_addr()), IpAddr::V4(header.dst_addr()));
    let payload = packet.get(usize::from(header.header_len())..usize::from(header.total_len()))?;
    match header.next_header() {
        IpProtocol::Icmp => {
            let echo = Icmpv4Packet::new_checked(payload).ok()?;
            let request = echo.msg_type() == Icmpv4Message::EchoRequest && echo.msg_code() == 0;
            request.then_some(())?;
            let (identifier, sequence) = (echo.echo_ident(), echo.echo_seq_no());
            Some(Inbound::Echo { guest, remote, identifier, sequence, payload: payload.get(8..)? })
        }
        protocol => transport(protocol, guest, remote, payload),
    }
}

fn parse_v6(packet: &[u8]) -> Option<Inbound<'_>> {
    let header = Ipv6Packet::new_checked(packet).ok()?;
    let (guest, remote) = (IpAddr::V6(header.src_addr()), IpAddr::V6(header.dst_addr()));
    let payload = packet.get(header.header_len()..header.total_len())?;
    match header.next_header() {
        IpProtocol::Icmpv6 => {
            let echo = Icmpv6Packet::new_checked(payload).ok()?;
            let request = echo.msg_type() == Icmpv6Message::EchoRequest && echo.msg_code() == 0;
            request.then_some(())?;
            let (identifier, sequence) = (echo.echo_ident(), echo.echo_seq_no());
            Some(Inbound::Echo { guest, remote, identifier, sequence, payload: payload.get(8..)? })
        }
        protocol => transport(protocol, guest, remote, payload),
    }
}

fn transport(protocol: IpProtocol, guest: IpAddr, remote: IpAddr, payload: &[u8]) -> Option<Inbound<'_>> {
    match protocol {
        // A connection is between two, and the stack takes nothing else for an address.
        IpProtocol::Tcp if remote.is_multicast() || remote.is_unspecified() || is_broadcast(remote) => None,
        IpProtocol::Tcp => {
            let segment = TcpPacket::new_checked(payload).ok()?;
            let key = flow(guest, segment.src_port(), remote, segment.dst_port())?;
            let segment = Segment {
                opens: segment.syn() && !segment.ack() && !segment.rst() && !segment.fin(),
                resets: segment.rst(),
                sequence: segment.seq_number(),
                acknowledged: segment.ack().then(|| segment.ack_number()),
                length: segment.segment_len(),
            };
            Some(Inbound::Tcp { key, segment })
        }
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(payload).ok()?;
            let key = flow(guest, datagram.src_port(), remote, datagram.dst_port())?;
            Some(Inbound::Udp { key, payload: payload.get(8..usize::from(datagram.len()))? })
        }
        _ => None,
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// Nobody is port 0.
fn flow(guest: IpAddr, guest_port: u16, remote: IpAddr, remote_port: u16) -> Option<FlowKey> {
    (guest_port != 0 && remote_port != 0).then(|| FlowKey {
        guest: SocketAddr::new(guest, guest_port),
        remote: SocketAddr::new(remote, remote_port),
    })
}

/// Checksums that whoever reads the packet verifies: the stack vouches for those of TCP and UDP in the header that goes
/// before the packet.
pub(super) fn checksums() -> ChecksumCapabilities {
    let mut checksums = ChecksumCapabilities::ignored();
    checksums.ipv4 = smoltcp::phy::Checksum::Tx;
    checksums.icmpv4 = smoltcp::phy::Checksum::Tx;
    checksums.icmpv6 = smoltcp::phy::Checksum::Tx;
    checksums
}

/// An IP packet from `source` to `destination`, its payload filled in by `emit`.
fn build(
    (source, destination): (IpAddr, IpAddr),
    protocol: IpProtocol,
    length: usize,
    emit: impl FnOnce(&mut [u8]),
) -> Option<Vec<u8>> {
    let mut packet;
    let header = match (source, destination) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let header = Ipv4Repr {
                src_addr,
                dst_addr,
                next_header: protocol,
                payload_len: length,
                hop_limit: HOP_LIMIT,
            };
            packet = vec![0; header.buffer_len() + length];
            header.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &checksums());
            header.buffer_len()
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let header = Ipv6Repr {
                src_addr,
                dst_addr,
                next_header: protocol,
                payload_len: length,
                hop_limit: HOP_LIMIT,
            };
            packet = vec![0; header.buffer_len() + length];
            header.emit(&mut Ipv6Packet::new_unchecked(&mut packet));
            header.buffer_len()
        }
        _ => return None,
    };
    emit(packet.get_mut(header..)?);
    Some(packet)
}

/// A datagram to the guest.
pub(super) fn datagram(key: FlowKey, payload: &[u8]) -> Option<Vec<u8>> {
    let repr = UdpRepr { src_port: key.remote.port(), dst_port: key.guest.port() };
    let (from, to) = (key.remote.ip(), key.guest.ip());
    build((from, to), IpProtocol::Udp, 8 + payload.len(), |buffer| {
        let mut packet = UdpPacket::new_unchecked(buffer);
        let fill = |buffer: &mut [u8]| buffer.copy_from_slice(payload);
        repr.emit(&mut packet, &from.into(), &to.into(), payload.len(), fill, &checksums());
        // Over IPv6 a datagram without a checksum is dropped, whatever the device vouches for: RFC 8200, section 8.1.
        if from.is_ipv6() {
            packet.fill_checksum(&from.into(), &to.into());
        }
    })
}

/// The answer to an echo request.
pub(super) fn echo_reply(
    (guest, remote): (IpAddr, IpAddr),
    (ident, seq_no): (u16, u16),
    data: &[u8],
) -> Option<Vec<u8>> {
    match (remote, guest) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
            build((remote, guest), IpProtocol::Icmp, reply.buffer_len(), |buffer| {
                reply.emit(&mut Icmpv4Packet::new_unchecked(buffer), &checksums());
            })
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
            build((remote, guest), IpProtocol::Icmpv6, reply.buffer_len(), |buffer| {
                reply.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(buffer), &checksums());
            })
        }
        _ => None,
    }
}

/// Why a packet did not get where it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// The policy says no: EHOSTUNREACH in a program that connects.
    Prohibited,
    Network,
    Host,
    Port,
}

/// As much of a packet as [`unreachable`] makes use of.
pub(super) fn quoted(packet: &[u8]) -> &[u8] {
    packet.get(..QUOTED_BYTES).unwrap_or(packet)
}

/// The ICMP error that answers a packet of the guest, which need not be whole.
pub(super) fn unreachable(packet: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let quoted = quoted(packet);
    match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER_LEN => {
            let header = Ipv4Packet::new_unchecked(packet);
            let reason = match why {
                Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                Unreachable::Network => Icmpv4DstUnreachable::NetUnreachable,
                Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
                Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
            };
            let mut message = vec![0; 8];
            message.extend_from_slice(quoted);
            let (guest, remote) = (header.src_addr(), header.dst_addr());
            build((remote.into(), guest.into()), IpProtocol::Icmp, message.len(), |buffer| {
                buffer.copy_from_slice(&message);
                let mut error = Icmpv4Packet::new_unchecked(buffer);
                error.set_msg_type(Icmpv4Message::DstUnreachable);
                error.set_msg_code(reason.into());
                error.fill_checksum();
            })
        }
        6 if packet.len() >= IPV6_HEADER_LEN => {
            let header = Ipv6Packet::new_unchecked(packet);
            let reason = match why {
                Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                Unreachable::Network => Icmpv6DstUnreachable::NoRoute,
                Unreachable::Host => Icmpv6DstUnreachable::AddrUnreachable,
                Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
            };
            let mut message = vec![0; 8];
            message.extend_from_slice(quoted);
            let (guest, remote) = (header.src_addr(), header.dst_addr());
            build((remote.into(), guest.into()), IpProtocol::Icmpv6, message.len(), |buffer| {
                buffer.copy_from_slice(&message);
                let mut error = Icmpv6Packet::new_unchecked(buffer);
                error.set_msg_type(Icmpv6Message::DstUnreachable);
                error.set_msg_code(reason.into());
                error.fill_checksum(&remote, &guest);
            })
        }
        _ => None,
    }
}

/// The reset that answers a segment: RFC 9293, section 3.5.2.
pub(super) fn reset(key: FlowKey, segment: Segment) -> Option<Vec<u8>> {
    let (seq_number, ack_number) = match segment.acknowledged {
        Some(acknowledged) => (acknowledged, None),
        None => (TcpSeqNumber(0), Some(segment.sequence + segment.length)),
    };
    let repr = TcpRepr {
        src_port: key.remote.port(),
        dst_port: key.guest.port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None, None, None],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = (key.remote.ip(), key.guest.ip());
    build((from, to), IpProtocol::Tcp, repr.buffer_len(), |buffer| {
        repr.emit(&mut TcpPacket::new_unchecked(buffer), &from.into(), &to.into(), &checksums());
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> FlowKey {
        FlowKey { guest: "10.0.2.15:40000".parse().unwrap(), remote: "203.0.113.7:443".parse().unwrap() }
    }

    fn key_v6() -> FlowKey {
        FlowKey { guest: "[fd00::15]:40000".parse().unwrap(), remote: "[2001:db8::7]:53".parse().unwrap() }
    }

    /// The same datagram as if the guest had sent it.
    fn outbound(key: FlowKey, payload: &[u8]) -> Vec<u8> {
        datagram(FlowKey { guest: key.remote, remote: key.guest }, payload).unwrap()
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written() {
        for key in [key(), key_v6()] {
            let packet = outbound(key, b"question");
            assert_eq!(parse(&packet), Inbound::Udp { key, payload: b"question" });
        }
    }

    #[test]
    fn a_packet_in_pieces_is_dropped() {
        let mut packet = outbound(key(), b"question");
        Ipv4Packet::new_unchecked(&mut packet).set_more_frags(true);
        assert_eq!(parse(&packet), Inbound::Dropped);
        Ipv4Packet::new_unchecked(&mut packet).set_more_frags(false);
        Ipv4Packet::new_unchecked(&mut packet).set_frag_offset(8);
        assert_eq!(parse(&packet), Inbound::Dropped);
    }

    #[test]
    fn an_error_quotes_what_it_answers() {
        for key in [key(), key_v6()] {
            let packet = outbound(key, &[7; 2_000]);
            let error = unreachable(&packet, Unreachable::Prohibited).unwrap();
            assert_eq!(unreachable(quoted(&packet), Unreachable::Prohibited), Some(error.clone()));
            let quoted = &packet[..QUOTED_BYTES];
            assert!(error.ends_with(quoted));
            assert!(error.len() <= 40 + 8 + QUOTED_BYTES);
        }
    }

    #[test]
    fn a_reset_answers_a_first_packet_in_the_numbers_it_expects() {
        let segment = Segment {
            opens: true,
            resets: false,
            sequence: TcpSeqNumber(1_000),
            acknowledged: None,
            length: 1,
        };
        let packet = reset(key(), segment).unwrap();
        let answer = TcpPacket::new_checked(&packet[20..]).unwrap();
        assert!(answer.rst() && answer.ack());
        assert_eq!(answer.ack_number(), TcpSeqNumber(1_001));
        assert_eq!((answer.src_port(), answer.dst_port()), (443, 40_000));
    }

    proptest! {
        #[test]
        fn whatever_a_guest_sends_is_read_without_harm(mut packet in proptest::collection::vec(any::<u8>(), 0..200), version in 0u8..8) {
            if let Some(first) = packet.first_mut() {
                // Mostly what is looked at further.
                *first = match version { 0..4 => 0x45, 4..7 => 0x60, _ => *first };
            }
            let read = parse(&packet);
            if let Inbound::Tcp { key, segment } = read {
                prop_assert!(reset(key, segment).is_some());
            }
            // Never longer than the headers and what is quoted.
            let error = unreachable(&packet, Unreachable::Port);
            prop_assert!(error.is_none_or(|error| error.len() <= 40 + 8 + QUOTED_BYTES));
        }

        #[test]
        fn a_datagram_with_any_byte_changed_is_still_read_or_dropped(at in 0usize..36, byte: u8) {
            let mut packet = outbound(key(), b"question");
            if let Some(changed) = packet.get_mut(at) {
                *changed = byte;
            }
            match parse(&packet) {
                Inbound::Udp { payload, .. } => prop_assert!(payload.len() <= packet.len()),
                Inbound::Tcp { .. } | Inbound::Echo { .. } | Inbound::Dropped => {}
            }
        }
    }
}
