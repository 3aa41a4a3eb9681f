//! The witness: every packet that came to or left the machine, on any of its devices.
//!
//! That nothing was sent is a statement about the past: [`Capture::settle`] sends a packet of its own and reads until it
//! comes by, and the packet socket keeps the order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::Lab;

/// Larger than any packet, even those that a device would still split.
const MAX_PACKET_BYTES: usize = 128 * 1024;

const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
const MARKER: &str = "the capture's own marker";
/// Nobody listens there.
const MARKER_TO: &str = "127.0.0.1:9";

pub(crate) struct Capture<'a> {
    lab: &'a Lab,
    socket: OwnedFd,
    packets: Mutex<Vec<Packet>>,
    marker: std::net::UdpSocket,
    /// How often there was a marker: each differs from those before.
    settled: Mutex<u32>,
}

/// One packet of IP. The ports are 0 where the protocol has none.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: u8,
    /// What follows the headers of IP, the transport's header included.
    pub(crate) body: Vec<u8>,
}

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

impl<'a> Capture<'a> {
    pub(super) fn new(lab: &'a Lab, socket: OwnedFd) -> Self {
        Self {
            marker: lab.udp("machine", "127.0.0.1:0").into_std().unwrap(),
            lab,
            socket,
            packets: Mutex::default(),
            settled: Mutex::default(),
        }
    }

    /// All that was seen from the beginning to this moment, its own marker excepted.
    pub(crate) fn settle(&self) -> Seen {
        let number = {
            let mut settled = self.settled.lock().unwrap();
            *settled += 1;
            *settled
        };
        let marker = format!("{MARKER} {number}");
        self.marker.send_to(marker.as_bytes(), MARKER_TO).unwrap();
        self.read_until(marker.as_bytes());
        assert_eq!(self.lab.missed_by_capture(), "0", "packets that the capture missed");
        let packets = self.packets.lock().unwrap();
        // The marker itself, and what the kernel says to its sender.
        let is_own = |packet: &&Packet| holds(packet, MARKER.as_bytes());
        Seen(packets.iter().filter(|packet| !is_own(packet)).cloned().collect())
    }

    /// Sending over loopback puts the packet into the socket's queue at once, so nothing else of the test waits here.
    fn read_until(&self, marker: &[u8]) {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        loop {
            let length = match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => {
                    let ready =
                        rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&PATIENCE));
                    assert_eq!(ready, Ok(1), "the marker doesn't come by");
                    continue;
                }
                Err(errno) => panic!("the capture: {errno}"),
            };
            let Some(packet) = parse(&buffer[..length]) else { continue };
            let found = packet.body.ends_with(marker);
            self.packets.lock().unwrap().push(packet);
            if found {
                return;
            }
        }
    }
}

/// What a capture has seen.
#[derive(Debug)]
pub(crate) struct Seen(Vec<Packet>);

impl Seen {
    /// Packets to the address, of whatever protocol and port.
    pub(crate) fn to(&self, address: &str) -> Vec<&Packet> {
        let address: IpAddr = address.parse().unwrap();
        self.0.iter().filter(|packet| packet.destination.ip() == address).collect()
    }

    /// Packets of the protocol to the address and port.
    pub(crate) fn to_port(&self, protocol: u8, address: &str) -> Vec<&Packet> {
        let address: SocketAddr = address.parse().unwrap();
        let is = |packet: &&Packet| packet.protocol == protocol && packet.destination == address;
        self.0.iter().filter(is).collect()
    }

    /// Packets that left the machine, or went to itself, and hold the bytes.
    pub(crate) fn holding(&self, bytes: &[u8]) -> Vec<&Packet> {
        self.0.iter().filter(|packet| holds(packet, bytes)).collect()
    }

    /// Fails with what did go there.
    #[track_caller]
    pub(crate) fn nothing_to(&self, address: &str) {
        let packets = self.to(address);
        assert!(packets.is_empty(), "packets to {address}: {packets:#?}");
    }

    #[track_caller]
    pub(crate) fn something_to(&self, address: &str) {
        assert!(!self.to(address).is_empty(), "no packet to {address}");
    }

    #[track_caller]
    pub(crate) fn nothing_holding(&self, bytes: &[u8]) {
        let packets = self.holding(bytes);
        assert!(packets.is_empty(), "packets with {:?}: {packets:#?}", String::from_utf8_lossy(bytes));
    }
}

fn holds(packet: &Packet, bytes: &[u8]) -> bool {
    packet.body.windows(bytes.len()).any(|window| window == bytes)
}

/// None for what is not IP: a link has packets of its own.
fn parse(bytes: &[u8]) -> Option<Packet> {
    match bytes.first()? >> 4 {
        4 => {
            let header = usize::from(bytes[0] & 0x0f) * 4;
            let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
            packet(
                (Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into()),
                bytes[9],
                bytes.get(header..)?,
            )
        }
        6 => {
            let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
            packet(
                (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into()),
                bytes[6],
                bytes.get(40..)?,
            )
        }
        _ => None,
    }
}

fn packet((source, destination): (IpAddr, IpAddr), protocol: u8, body: &[u8]) -> Option<Packet> {
    let port = |at: usize| match protocol {
        TCP | UDP => Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?)),
        _ => Some(0),
    };
    Some(Packet {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        protocol,
        body: body.to_vec(),
    })
}
