//! Devices, addresses and routes, by rtnetlink: one request, one acknowledgement.
//!
//! Every message is a header, a fixed structure and attributes, all aligned to four bytes; numbers are the machine's
//! own order, addresses the network's. See rtnetlink(7).

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

use crate::{Address, Failure};

const HEADER_BYTES: usize = 16;

const LOCAL_ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const CREATE: u16 = LOCAL_ACK | (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// Of linux/veth.h.
const VETH_INFO_PEER: u16 = 1;

/// A socket of the namespace it was opened in.
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open() -> Result<Self, Failure> {
        // No protocol is protocol 0, NETLINK_ROUTE.
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map(Self)
            .map_err(|errno| Failure::Step("open rtnetlink", errno))
    }

    /// Makes a pair of virtual devices, one here and its peer in the other namespace.
    pub(crate) fn add_pair(
        &mut self,
        name: &str,
        peer: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> Result<(), Failure> {
        let mut of_peer = link(0, 0);
        of_peer.text(libc::IFLA_IFNAME, peer);
        of_peer.attribute(libc::IFLA_NET_NS_FD, &peer_namespace.as_raw_fd().to_ne_bytes());
        let mut data = Bytes::default();
        data.attribute(VETH_INFO_PEER, &of_peer.0);
        let mut kind = Bytes::default();
        kind.text(libc::IFLA_INFO_KIND, "veth");
        kind.attribute(libc::IFLA_INFO_DATA, &data.0);
        let mut body = link(0, 0);
        body.text(libc::IFLA_IFNAME, name);
        body.attribute(libc::IFLA_LINKINFO, &kind.0);
        self.ask("make a pair of devices", libc::RTM_NEWLINK, CREATE, &body)
    }

    pub(crate) fn bring_up(&mut self, device: &str) -> Result<(), Failure> {
        let index = self.index_of(device)?;
        let up = libc::IFF_UP as u32;
        self.ask("bring a device up", libc::RTM_SETLINK, LOCAL_ACK, &link(index, up))
    }

    pub(crate) fn index_of(&self, device: &str) -> Result<u32, Failure> {
        netdevice::name_to_index(&self.0, device).map_err(|errno| Failure::Step("find a device", errno))
    }

    pub(crate) fn add_address(&mut self, device: u32, address: Address) -> Result<(), Failure> {
        let bytes = octets(address.ip);
        // Without the search for duplicates an IPv6 address can be used at once.
        let flags = libc::IFA_F_NODAD as u8;
        let mut body = Bytes(vec![family(address.ip), address.prefix, flags, libc::RT_SCOPE_UNIVERSE]);
        body.0.extend(device.to_ne_bytes());
        body.attribute(libc::IFA_LOCAL, &bytes);
        body.attribute(libc::IFA_ADDRESS, &bytes);
        self.ask("add an address", libc::RTM_NEWADDR, CREATE, &body)
    }

    /// The other end's address is on the link itself, whatever either's looks like.
    pub(crate) fn add_route(&mut self, device: u32, to: IpAddr, source: IpAddr) -> Result<(), Failure> {
        let bytes = octets(to);
        let mut body = Bytes(vec![
            family(to),
            (bytes.len() * 8) as u8,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            if to.is_ipv4() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE },
            libc::RTN_UNICAST,
        ]);
        body.0.extend([0; 4]);
        body.attribute(libc::RTA_DST, &bytes);
        body.attribute(libc::RTA_OIF, &device.to_ne_bytes());
        body.attribute(libc::RTA_PREFSRC, &octets(source));
        self.ask("add a route", libc::RTM_NEWROUTE, CREATE, &body)
    }

    fn ask(&mut self, step: &'static str, kind: u16, flags: u16, body: &Bytes) -> Result<(), Failure> {
        let length = (HEADER_BYTES + body.0.len()) as u32;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Neither a sequence nor our own number: there is one request under way at a time.
        message.extend([0; 8]);
        message.extend(&body.0);
        self.exchange(&message).map_err(|errno| Failure::Step(step, errno))
    }

    fn exchange(&mut self, message: &[u8]) -> Result<(), Errno> {
        rustix::net::send(&self.0, message, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (length, _) = rustix::net::recv(&self.0, &mut answer, RecvFlags::empty())?;
        // An acknowledgement is an error message whose number is 0.
        let number = answer[..length].get(HEADER_BYTES..HEADER_BYTES + 4).ok_or(Errno::PROTO)?;
        match i32::from_ne_bytes(number.try_into().map_err(|_| Errno::PROTO)?) {
            0 => Ok(()),
            negative => Err(Errno::from_raw_os_error(-negative)),
        }
    }
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32) -> Bytes {
    let mut bytes = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Which of the flags are meant.
    bytes.extend(flags.to_ne_bytes());
    Bytes(bytes)
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    family as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A message in the making.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, format!("{value}\0").as_bytes());
    }
}
