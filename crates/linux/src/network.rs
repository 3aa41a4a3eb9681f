//! The network namespace of the calling process.

use std::ffi::c_void;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::clone::last_errno;

/// Brings the loopback interface up.
pub fn bring_loopback_up() -> Result<(), Errno> {
    bring_up(control_socket(AddressFamily::INET)?.as_fd(), "lo")
}

/// An interface with its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface<'a> {
    /// At most 15 bytes.
    pub name: &'a str,
    pub mtu: u32,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub v6: Option<InterfaceV6>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceV6 {
    pub address: Ipv6Addr,
    pub prefix: u8,
}

/// Makes the TUN interface that belongs to `device`, an open /dev/net/tun, in the network namespace it was opened in.
/// Every packet is read and written whole, behind the ten bytes of a `struct virtio_net_hdr`, which say what the kernel
/// need not do or has not done to it: packets may be read with checksums that are not made yet.
///
/// The interface stays until its namespace goes: taking it away when the descriptor is closed would hold up whoever
/// closes it for some grace periods of the kernel, 15 to 45 ms.
pub fn attach_tun(device: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let request = Request::named(name)?.with(flags as i16);
    interface_call(device, libc::TUNSETIFF as _, &request)?;
    number_call(device, TUN_SET_OFFLOAD, TUN_F_CSUM)?;
    number_call(device, TUN_SET_PERSIST, 1)
}

/// Gives an interface its MTU, addresses and default routes, and brings it up.
pub fn configure(interface: &Interface<'_>) -> Result<(), Errno> {
    let socket = control_socket(AddressFamily::INET)?;
    let socket = socket.as_fd();
    let request = Request::named(interface.name)?;
    let mtu = libc::c_int::try_from(interface.mtu).map_err(|_| Errno::INVAL)?;
    interface_call(socket, libc::SIOCSIFMTU as _, &request.with(mtu))?;
    interface_call(socket, libc::SIOCSIFADDR as _, &request.with(internet(interface.address)))?;
    let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(interface.prefix)).unwrap_or(0));
    interface_call(socket, libc::SIOCSIFNETMASK as _, &request.with(internet(mask)))?;
    bring_up(socket, interface.name)?;
    add_default_route(socket, interface.gateway)?;
    interface.v6.map_or(Ok(()), |v6| configure_v6(socket, &request, v6))
}

fn bring_up(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    interface_call(socket, libc::SIOCSIFFLAGS as _, &Request::named(name)?.with(flags))
}

fn control_socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

/// From linux/if_tun.h, as the libc crate has them on some platforms only.
const TUN_SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUN_SET_PERSIST: libc::c_ulong = 0x4004_54cb;
const TUN_F_CSUM: libc::c_ulong = 1;

/// `struct ifreq`: a name, and a union whose largest member has 24 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Request<T> {
    name: [u8; libc::IFNAMSIZ],
    value: T,
}

/// The union without a value.
type Rest = [u8; 24];

const _: () = assert!(size_of::<Request<Rest>>() == size_of::<libc::ifreq>());

impl Request<Rest> {
    fn named(name: &str) -> Result<Self, Errno> {
        let mut request = Self { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        // The last byte stays the terminator.
        let room = request.name.get_mut(..name.len()).filter(|room| room.len() < libc::IFNAMSIZ);
        room.ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name.as_bytes());
        Ok(request)
    }

    /// The request with a value in its union.
    fn with<T: Value>(self, value: T) -> Self {
        let bytes = value.bytes();
        let mut union = [0; 24];
        for (to, from) in union.iter_mut().zip(bytes) {
            *to = from;
        }
        Self { value: union, ..self }
    }
}

/// What can stand in the union, in its bytes.
trait Value {
    fn bytes(self) -> Vec<u8>;
}

impl Value for i16 {
    fn bytes(self) -> Vec<u8> {
        self.to_ne_bytes().to_vec()
    }
}

impl Value for i32 {
    fn bytes(self) -> Vec<u8> {
        self.to_ne_bytes().to_vec()
    }
}

impl Value for [u8; 16] {
    fn bytes(self) -> Vec<u8> {
        self.to_vec()
    }
}

/// `struct sockaddr_in` with port 0.
fn internet(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

fn interface_call(fd: BorrowedFd<'_>, call: libc::c_ulong, request: &Request<Rest>) -> Result<(), Errno> {
    let mut request = *request;
    // SAFETY: each of the calls given here takes a pointer to a `struct ifreq`, reads it and may write its union;
    // `request` has that size and layout, is a live local, and its name ends with a NUL.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), call as _, (&raw mut request).cast::<c_void>()) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

fn number_call(fd: BorrowedFd<'_>, call: libc::c_ulong, number: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD and TUNSETPERSIST take a number and no pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), call as _, number) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

fn add_default_route(socket: BorrowedFd<'_>, gateway: Ipv4Addr) -> Result<(), Errno> {
    // SAFETY: all zeros is a valid `rtentry`: numbers, and pointers that may be null.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads one `struct rtentry`, which `route` is; its device pointer is null, which means any.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().skip(2).zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// The default route leads into the interface itself: a TUN device has no neighbours to look for.
fn configure_v6(socket: BorrowedFd<'_>, request: &Request<Rest>, v6: InterfaceV6) -> Result<(), Errno> {
    let mut found = *request;
    // SAFETY: SIOCGIFINDEX reads the name of a `struct ifreq`, which `found` has the layout of, and writes an int to
    // its union.
    let result = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, (&raw mut found).cast::<c_void>())
    };
    if result == -1 {
        return Err(last_errno());
    }
    let [a, b, c, d, ..] = found.value;
    let index = i32::from_ne_bytes([a, b, c, d]);
    let socket = control_socket(AddressFamily::INET6)?;
    let address = AddressV6 {
        address: libc::in6_addr { s6_addr: v6.address.octets() },
        prefix: u32::from(v6.prefix),
        index,
    };
    // SAFETY: on a socket of this family SIOCSIFADDR reads one `struct in6_ifreq`, which `AddressV6` has the layout of.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &raw const address) };
    if result == -1 {
        return Err(last_errno());
    }
    let route = RouteV6 {
        addresses: [0; 48],
        kind: 0,
        prefixes: [0; 2],
        metric: 1,
        info: 0,
        flags: u32::from(libc::RTF_UP),
        index,
    };
    // SAFETY: on a socket of this family SIOCADDRT reads one `struct in6_rtmsg`, which `RouteV6` has the layout of.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

/// `struct in6_rtmsg`.
#[repr(C)]
struct RouteV6 {
    /// Destination, source and gateway: all of them any.
    addresses: [u8; 48],
    kind: u32,
    /// Bits of destination and source.
    prefixes: [u16; 2],
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    index: libc::c_int,
}

const _: () = assert!(size_of::<RouteV6>() == size_of::<libc::in6_rtmsg>());

/// `struct in6_ifreq`.
#[repr(C)]
struct AddressV6 {
    address: libc::in6_addr,
    prefix: u32,
    index: libc::c_int,
}

/// Opens a TUN device that is still without an interface, in the calling thread's network namespace.
pub fn open_tun(path: &str) -> Result<OwnedFd, Errno> {
    let mut options = File::options();
    let options = std::os::unix::fs::OpenOptionsExt::custom_flags(
        options.read(true).write(true),
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    match options.open(path) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(crate::clone::errno_of(&error)),
    }
}
