//! The kernel's tables of sockets, /proc/net/{tcp,tcp6,udp,udp6,icmp,icmp6}.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agentos_guest_protocol::network::Protocol;

/// A line has 150 bytes: this is a hundred thousand sockets.
const MAX_TABLE_BYTES: u64 = 16 * 1024 * 1024;

/// The kernel makes a table as it is read, 4 KiB at a time or as much as is asked for; each read begins with a search
/// for where the last one ended.
const READ_BYTES: usize = 64 * 1024;

const LISTEN: u8 = 0x0A;

/// One line of a table. Addresses of IPv4 in those of IPv6 are shown as what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) state: u8,
    /// Names the socket; 0 for one that no process can hold, such as one in TIME_WAIT.
    pub(super) inode: u64,
}

/// The sockets that listen. They stand before all others in their tables, of which no more is read.
pub(super) fn listeners() -> impl Iterator<Item = Socket> {
    ["tcp", "tcp6"].into_iter().flat_map(|name| table(name).take_while(|socket| socket.state == LISTEN))
}

/// The socket of a connection, or the one that sends and receives its datagrams. Sockets for pings have the identifier
/// as their port.
pub(super) fn find(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (canonical(local), canonical(remote));
    let names = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
        Protocol::Icmp => ["icmp", "icmp6"],
    };
    let sockets = names.into_iter().flat_map(table).filter(|socket| socket.inode != 0);
    match protocol {
        Protocol::Tcp => sockets.into_iter().find(|socket| (socket.local, socket.remote) == (local, remote)),
        Protocol::Udp | Protocol::Icmp => {
            let candidates = sockets.filter_map(|socket| Some((nearness(&socket, local, remote)?, socket)));
            candidates.max_by_key(|(nearness, _)| *nearness).map(|(_, socket)| socket)
        }
    }
    .map(|socket| socket.inode)
}

/// How well a socket for datagrams fits; None where it does not. The kernel prefers in the same order.
fn nearness(socket: &Socket, local: SocketAddr, remote: SocketAddr) -> Option<u8> {
    let bound = socket.local == local;
    let anywhere = socket.local.ip().is_unspecified() && socket.local.port() == local.port();
    let connected = socket.remote == remote;
    let unconnected = socket.remote.port() == 0;
    match (bound || anywhere, connected || unconnected) {
        (true, true) => Some(2 * u8::from(connected) + u8::from(bound)),
        _ => None,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A table that can't be read is empty: a kernel without IPv6 has none of it.
fn table(name: &str) -> impl Iterator<Item = Socket> + use<> {
    let file = File::open(format!("/proc/net/{name}")).ok();
    let lines = file.into_iter().flat_map(|file| {
        BufReader::with_capacity(READ_BYTES, file.take(MAX_TABLE_BYTES)).lines().map_while(Result::ok)
    });
    lines.filter_map(|line| parse(&line))
}

/// Fields: number, local, remote, state, queues, timer, retransmits, user, timeout, inode. The heading is none.
fn parse(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace();
    let local = address(fields.nth(1)?)?;
    let remote = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Socket { local, remote, state, inode })
}

/// `0100007F:0BB8`: words of 32 bits in the byte order of this machine, one or four, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words: [[u8; 4]; 4] = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str =
        "   0: 0200007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4711 1 0 100 0";

    fn words(address: Ipv6Addr) -> String {
        let octets = address.octets();
        let words = octets.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        words.map(|word| format!("{word:08X}")).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_listener_is_read_from_the_kernels_table() {
        let socket = parse(V4).unwrap();
        assert_eq!(socket.local, SocketAddr::from(([127, 0, 0, 2], 3000)));
        assert_eq!((socket.remote.port(), socket.state, socket.inode), (0, LISTEN, 4711));
    }

    #[test]
    fn addresses_of_ipv6_are_read_and_mapped_ones_are_those_of_ipv4() {
        let read = |ip: &str| address(&format!("{}:1F90", words(ip.parse().unwrap()))).unwrap().to_string();
        assert_eq!(read("::1"), "[::1]:8080");
        assert_eq!(read("2001:db8::7"), "[2001:db8::7]:8080");
        assert_eq!(read("::ffff:10.0.2.15"), "10.0.2.15:8080");
    }

    #[test]
    fn what_is_no_socket_is_left_out() {
        for line in
            ["", "garbage", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt"]
        {
            assert_eq!(parse(line), None);
        }
        for text in ["0100007F", "0100007F:xyz", "01:0BB8", "é100007F:0BB8"] {
            assert_eq!(address(text), None);
        }
    }

    #[test]
    fn a_socket_for_pings_is_found_by_its_identifier() {
        let line =
            "    4: 00000000:0309 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000 0 4711 2 0 0";
        let socket = parse(line).unwrap();
        assert_eq!(socket.inode, 4711);
        let (guest, remote) = (IpAddr::from([10, 0, 2, 15]), SocketAddr::from(([1, 1, 1, 1], 0)));
        assert!(nearness(&socket, SocketAddr::new(guest, 777), remote).is_some());
        assert_eq!(nearness(&socket, SocketAddr::new(guest, 778), remote), None);
    }

    #[test]
    fn of_sockets_for_datagrams_the_nearest_is_taken() {
        let (local, remote) = (SocketAddr::from(([10, 0, 2, 15], 40)), SocketAddr::from(([1, 1, 1, 1], 53)));
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let rank = |local_end, remote_end| {
            let socket = Socket { local: local_end, remote: remote_end, state: 7, inode: 1 };
            nearness(&socket, local, remote)
        };
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 40));
        assert!(rank(local, remote) > rank(local, any) && rank(local, any) > rank(everywhere, any));
        assert_eq!(rank(everywhere, any), Some(0));
        assert_eq!(rank(local, SocketAddr::from(([8, 8, 8, 8], 53))), None);
        assert_eq!(rank(SocketAddr::from(([10, 0, 2, 15], 41)), any), None);
    }
}
