//! Which addresses are whose.
//!
//! A host's network is more than the internet: the same socket call reaches its loopback, its neighbours, and services
//! that hand out credentials to whoever asks from the right place. [`classify`] says which of these an address is, and
//! one address has many spellings: what is an IPv4 address written as IPv6 is judged by the IPv4 address.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What an address is to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressClass {
    /// The internet; the networks of documentation too, which tests and proxies use as if they were.
    Public,
    Loopback,
    /// RFC 1918, unique local and the former site-local addresses.
    Private,
    /// Carrier-grade NAT, RFC 6598; overlay networks use it as well.
    Shared,
    LinkLocal,
    /// A service of the cloud that tells a host about itself, its credentials among it.
    Metadata,
    Multicast,
    Broadcast,
    /// `0.0.0.0` and `::`, which connect to the host itself.
    Unspecified,
    /// Nobody's, or for a use that is none of a guest's.
    Reserved,
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Shared => "shared",
            Self::LinkLocal => "link-local",
            Self::Metadata => "cloud metadata",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Unspecified => "unspecified",
            Self::Reserved => "reserved",
        })
    }
}

/// What is not simply public, first match decides: single addresses stand before the networks that they are in. From
/// the IANA registries of special-purpose addresses, and the documents of the clouds.
const SPECIAL: &[(Cidr, AddressClass)] = &[
    // AWS, Google, Azure, DigitalOcean, Hetzner, OpenStack and more.
    (v4([169, 254, 169, 254], 32), AddressClass::Metadata),
    // Credentials of an AWS container task, and of a pod.
    (v4([169, 254, 170, 2], 32), AddressClass::Metadata),
    (v4([169, 254, 170, 23], 32), AddressClass::Metadata),
    // Tencent.
    (v4([169, 254, 0, 23], 32), AddressClass::Metadata),
    // Scaleway.
    (v4([169, 254, 42, 42], 32), AddressClass::Metadata),
    // Alibaba.
    (v4([100, 100, 100, 200], 32), AddressClass::Metadata),
    // Azure's platform, in the middle of public addresses.
    (v4([168, 63, 129, 16], 32), AddressClass::Metadata),
    // Oracle, classic.
    (v4([192, 0, 0, 192], 32), AddressClass::Metadata),
    // AWS, its pods, Google, Scaleway, and OpenStack over IPv6.
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), AddressClass::Metadata),
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128), AddressClass::Metadata),
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), AddressClass::Metadata),
    (v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128), AddressClass::Metadata),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128), AddressClass::Metadata),
    (v4([0, 0, 0, 0], 32), AddressClass::Unspecified),
    // "This network"; Linux takes it for a way to itself in places.
    (v4([0, 0, 0, 0], 8), AddressClass::Reserved),
    (v4([10, 0, 0, 0], 8), AddressClass::Private),
    (v4([100, 64, 0, 0], 10), AddressClass::Shared),
    (v4([127, 0, 0, 0], 8), AddressClass::Loopback),
    (v4([169, 254, 0, 0], 16), AddressClass::LinkLocal),
    (v4([172, 16, 0, 0], 12), AddressClass::Private),
    (v4([192, 0, 0, 0], 24), AddressClass::Reserved),
    // The relays of 6to4, no longer in use.
    (v4([192, 88, 99, 0], 24), AddressClass::Reserved),
    (v4([192, 168, 0, 0], 16), AddressClass::Private),
    // Benchmarks of network devices.
    (v4([198, 18, 0, 0], 15), AddressClass::Reserved),
    (v4([224, 0, 0, 0], 4), AddressClass::Multicast),
    (v4([255, 255, 255, 255], 32), AddressClass::Broadcast),
    (v4([240, 0, 0, 0], 4), AddressClass::Reserved),
    (v4([0, 0, 0, 0], 0), AddressClass::Public),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), AddressClass::Unspecified),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), AddressClass::Loopback),
    // IPv4-mapped and translated, NAT64: as public as the address inside.
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), AddressClass::Public),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), AddressClass::Public),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), AddressClass::Public),
    // NAT64 of one network, which may lead to its private addresses: RFC 8215.
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), AddressClass::Reserved),
    // Packets to be discarded: RFC 6666.
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), AddressClass::Reserved),
    // Teredo is as public as what it carries, too, in the middle of what the IETF keeps for its protocols.
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), AddressClass::Public),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), AddressClass::Reserved),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), AddressClass::Private),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), AddressClass::LinkLocal),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), AddressClass::Private),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), AddressClass::Multicast),
    // The only part of the space that is routed between networks.
    (v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3), AddressClass::Public),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 0), AddressClass::Reserved),
];

/// What an address is to the host, whatever its spelling. An IPv6 address that carries an IPv4 address is never more
/// public than that.
pub fn classify(address: IpAddr) -> AddressClass {
    let class = look_up(address);
    if !matches!(class, AddressClass::Public | AddressClass::Reserved) {
        return class;
    }
    let mut inner = carried(address).map(|inner| look_up(IpAddr::V4(inner)));
    inner.find(|inner| *inner != AddressClass::Public).unwrap_or(class)
}

fn look_up(address: IpAddr) -> AddressClass {
    let mut matches = SPECIAL.iter().filter(|(network, _)| network.holds(address));
    matches.next().map_or(AddressClass::Reserved, |(_, class)| *class)
}

/// The IPv4 addresses that an IPv6 address carries, where a machine on the way may take it for one of them.
pub(crate) fn carried(address: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
    let none: [Option<Ipv4Addr>; 2] = [None, None];
    let found = match address {
        IpAddr::V4(_) => none,
        IpAddr::V6(address) => {
            let bytes = address.octets();
            let at = |start: usize| {
                Ipv4Addr::new(bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3])
            };
            match address.segments() {
                // Teredo: the server, and the client with its bits turned over.
                [0x2001, 0, ..] => [Some(at(4)), Some(Ipv4Addr::from_bits(!at(12).to_bits()))],
                // 6to4.
                [0x2002, ..] => [Some(at(2)), None],
                // IPv4-compatible, mapped, translated, NAT64.
                [0, 0, 0, 0, 0, 0 | 0xffff, ..]
                | [0, 0, 0, 0, 0xffff, 0, ..]
                | [0x64, 0xff9b, 0, 0, 0, 0, ..] => [Some(at(12)), None],
                _ => none,
            }
        }
    };
    found.into_iter().flatten()
}

/// One form for the addresses that lead to one host: IPv4 written as IPv6, mapped or for NAT64, is IPv4.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
                IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32))
            }
            _ => address,
        },
        IpAddr::V4(_) => address,
    }
}

/// The addresses of the host's own interfaces. A connection there ends at a server of the host, as one to its loopback
/// does, though the address may be public.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostAddresses(HashSet<IpAddr>);

impl HostAddresses {
    /// Whether the address, in any spelling, is one of the host's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&canonical(address))
            || carried(address).any(|inner| self.0.contains(&IpAddr::V4(inner)))
    }
}

impl FromIterator<IpAddr> for HostAddresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        Self(addresses.into_iter().map(canonical).collect())
    }
}

/// A network, or a single address: `10.0.0.0/8`, `2001:db8::/32`, `192.0.2.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix_bits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CidrError {
    #[error("it is no address and no network such as 10.0.0.0/8")]
    Address,
    #[error("the number after the slash must be from 0 to {longest}")]
    Prefix { longest: u8 },
    /// Whether the one address or its network was meant can't be known.
    #[error("it has bits set beyond its prefix: the network is {network}, the address alone {address}")]
    HostBits { network: Cidr, address: IpAddr },
}

impl Cidr {
    /// # Errors
    ///
    /// The prefix is too long for the address, or the address has bits beyond it.
    pub fn new(address: IpAddr, prefix_bits: u8) -> Result<Self, CidrError> {
        let longest = longest_prefix(address);
        if prefix_bits > longest {
            return Err(CidrError::Prefix { longest });
        }
        let cut = bits(address) & mask(prefix_bits);
        if cut != bits(address) {
            let network = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits((cut >> 96) as u32)),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(cut)),
            };
            return Err(CidrError::HostBits { network: Self { network, prefix_bits }, address });
        }
        // A network of mapped addresses is the IPv4 network: connections to either are the same.
        match (address, canonical(address)) {
            (IpAddr::V6(v6), network @ IpAddr::V4(_))
                if v6.to_ipv4_mapped().is_some() && prefix_bits >= 96 =>
            {
                Ok(Self { network, prefix_bits: prefix_bits - 96 })
            }
            _ => Ok(Self { network: address, prefix_bits }),
        }
    }

    /// Whether the address is in the network. A mapped address is IPv4 and nothing else, for the host's sockets too; one
    /// for NAT64 is both what it is and what it leads to.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.holds(address.to_canonical()) || self.holds(canonical(address))
    }

    /// Whether the network holds any form of the address, or an IPv4 address that it carries.
    pub fn touches(&self, address: IpAddr) -> bool {
        self.contains(address) || carried(address).any(|inner| self.holds(IpAddr::V4(inner)))
    }

    pub fn is_single(&self) -> bool {
        self.prefix_bits == longest_prefix(self.network)
    }

    /// Whether all of the network is special in this one way: `192.168.7.0/24` is all private, `0.0.0.0/0` holds
    /// private addresses but isn't about them. Metadata addresses are told apart from their neighbours, so that only
    /// one alone is all metadata.
    pub fn is_all(&self, class: AddressClass) -> bool {
        self.is_single() && classify(self.network) == class
            // The ends of the table are about nothing in particular.
            || SPECIAL.iter().any(|(block, of)| *of == class && block.prefix_bits > 0 && block.covers(self))
    }

    fn covers(&self, other: &Self) -> bool {
        self.prefix_bits <= other.prefix_bits && self.holds(other.network)
    }

    /// As written, without a look at what the address may carry.
    fn holds(&self, address: IpAddr) -> bool {
        self.network.is_ipv4() == address.is_ipv4()
            && (bits(self.network) ^ bits(address)) & mask(self.prefix_bits) == 0
    }
}

const fn v4(octets: [u8; 4], prefix_bits: u8) -> Cidr {
    let [a, b, c, d] = octets;
    Cidr { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix_bits }
}

const fn v6(segments: [u16; 8], prefix_bits: u8) -> Cidr {
    let [a, b, c, d, e, f, g, h] = segments;
    Cidr { network: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix_bits }
}

fn longest_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address from the highest bit on, so that one mask serves both families.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn mask(prefix_bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_bits)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::Address)?;
        let longest = longest_prefix(address);
        let prefix = match prefix {
            None => longest,
            // No sign, and no leading zero that could be meant as octal.
            Some(digits) if digits.starts_with('+') || (digits.len() > 1 && digits.starts_with('0')) => {
                return Err(CidrError::Prefix { longest });
            }
            Some(digits) => digits.parse().map_err(|_| CidrError::Prefix { longest })?,
        };
        Self::new(address, prefix)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            return self.network.fmt(f);
        }
        write!(f, "{}/{}", self.network, self.prefix_bits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(text: &str) -> AddressClass {
        classify(text.parse().unwrap())
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn the_internet_is_public() {
        for text in ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.32.0.0", "2606:4700::1111"] {
            assert_eq!(class(text), AddressClass::Public, "{text}");
        }
        // Networks of documentation serve in tests.
        for text in ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"] {
            assert_eq!(class(text), AddressClass::Public, "{text}");
        }
    }

    #[test]
    fn what_is_not_the_internet_has_a_class() {
        for (text, expected) in [
            ("127.0.0.1", AddressClass::Loopback),
            ("127.255.255.254", AddressClass::Loopback),
            ("::1", AddressClass::Loopback),
            ("10.1.2.3", AddressClass::Private),
            ("172.16.0.1", AddressClass::Private),
            ("172.31.255.255", AddressClass::Private),
            ("192.168.0.1", AddressClass::Private),
            ("fd12::1", AddressClass::Private),
            ("fec0::1", AddressClass::Private),
            ("100.64.0.1", AddressClass::Shared),
            ("169.254.1.1", AddressClass::LinkLocal),
            ("fe80::1", AddressClass::LinkLocal),
            ("224.0.0.251", AddressClass::Multicast),
            ("ff02::fb", AddressClass::Multicast),
            ("255.255.255.255", AddressClass::Broadcast),
            ("0.0.0.0", AddressClass::Unspecified),
            ("::", AddressClass::Unspecified),
            ("0.1.2.3", AddressClass::Reserved),
            ("192.0.0.8", AddressClass::Reserved),
            ("198.19.0.1", AddressClass::Reserved),
            ("240.0.0.1", AddressClass::Reserved),
            ("100::1", AddressClass::Reserved),
            ("2001:20::1", AddressClass::Reserved),
            ("64:ff9b:1::1", AddressClass::Reserved),
            ("4000::1", AddressClass::Reserved),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    #[test]
    fn services_that_hand_out_credentials_are_metadata() {
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fe80::a9fe:a9fe",
        ] {
            assert_eq!(class(text), AddressClass::Metadata, "{text}");
        }
    }

    #[test]
    fn ipv4_inside_of_ipv6_is_judged_by_what_is_inside() {
        for (text, expected) in [
            ("::ffff:127.0.0.1", AddressClass::Loopback),
            ("::ffff:0.0.0.0", AddressClass::Unspecified),
            ("::ffff:0:10.0.0.1", AddressClass::Private),
            ("::127.0.0.1", AddressClass::Loopback),
            ("64:ff9b::10.0.0.1", AddressClass::Private),
            ("2002:a00:1::", AddressClass::Private),
            ("2002:7f00:1::", AddressClass::Loopback),
            // Teredo with a private server, and with a private client.
            ("2001:0:a00:1::f7f7:f7f7", AddressClass::Private),
            ("2001:0:808:808::f5ff:fffe", AddressClass::Private),
            ("::ffff:8.8.8.8", AddressClass::Public),
            ("64:ff9b::8.8.8.8", AddressClass::Public),
            ("2002:808:808::", AddressClass::Public),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    #[test]
    fn the_table_holds_networks_only() {
        for (network, _) in SPECIAL {
            let cut = bits(network.network) & mask(network.prefix_bits);
            assert_eq!(cut, bits(network.network), "{network}");
        }
    }

    #[test]
    fn networks_are_read_and_written() {
        assert_eq!(cidr("10.0.0.0/8").to_string(), "10.0.0.0/8");
        assert_eq!(cidr("192.0.2.7").to_string(), "192.0.2.7");
        assert_eq!(cidr("2001:db8::/32").to_string(), "2001:db8::/32");
        assert_eq!(cidr("::ffff:10.0.0.0/104"), cidr("10.0.0.0/8"));
        assert!(cidr("0.0.0.0/0").contains("203.0.113.1".parse().unwrap()));
        assert!(!cidr("0.0.0.0/0").contains("2001:db8::1".parse().unwrap()));
        assert!(cidr("::/0").contains("2001:db8::1".parse().unwrap()));
        assert!(cidr("10.0.0.0/8").contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!cidr("10.0.0.0/8").contains("11.0.0.0".parse().unwrap()));
        assert!(!cidr("::/0").contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(cidr("::/0").contains("64:ff9b::10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_right_one() {
        let error = |text: &str| text.parse::<Cidr>().unwrap_err();
        assert_eq!(error("example.com"), CidrError::Address);
        assert_eq!(error("010.0.0.0/8"), CidrError::Address);
        assert_eq!(error("10.0.0.0/33"), CidrError::Prefix { longest: 32 });
        assert_eq!(error("10.0.0.0/+8"), CidrError::Prefix { longest: 32 });
        assert_eq!(error("10.0.0.0/08"), CidrError::Prefix { longest: 32 });
        assert_eq!(error("::/129"), CidrError::Prefix { longest: 128 });
        let text = error("10.1.2.3/8").to_string();
        assert!(text.contains("10.0.0.0/8") && text.contains("alone 10.1.2.3"), "{text}");
        let text = error("2001:db8::1/32").to_string();
        assert!(text.contains("2001:db8::/32"), "{text}");
    }

    #[test]
    fn a_network_is_about_a_class_only_if_all_of_it_is() {
        assert!(cidr("192.168.7.0/24").is_all(AddressClass::Private));
        assert!(cidr("169.254.0.0/16").is_all(AddressClass::LinkLocal));
        assert!(!cidr("169.254.0.0/16").is_all(AddressClass::Metadata));
        assert!(cidr("169.254.169.254").is_all(AddressClass::Metadata));
        assert!(!cidr("0.0.0.0/0").is_all(AddressClass::Private));
        assert!(!cidr("192.160.0.0/11").is_all(AddressClass::Private));
        assert!(cidr("64:ff9b:1::/48").is_all(AddressClass::Reserved));
        assert!(!cidr("::/0").is_all(AddressClass::Reserved));
    }

    #[test]
    fn the_hosts_addresses_are_known_in_every_spelling() {
        let own: HostAddresses = ["203.0.113.9".parse().unwrap()].into_iter().collect();
        for text in ["203.0.113.9", "::ffff:203.0.113.9", "64:ff9b::203.0.113.9", "2002:cb00:7109::"] {
            assert!(own.contains(text.parse().unwrap()), "{text}");
        }
        assert!(!own.contains("203.0.113.10".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn mapping_an_address_never_changes_its_class(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(classify(v4.to_ipv6_mapped().into()), classify(v4.into()));
        }

        #[test]
        fn a_carrier_is_never_more_public_than_what_it_carries(bits: u32) {
            let inside = classify(Ipv4Addr::from_bits(bits).into());
            let (high, low) = ((bits >> 16) as u16, bits as u16);
            for carrier in [
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
                Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0xf7f7, 0xf7f7),
            ] {
                if inside != AddressClass::Public {
                    prop_assert_eq!(classify(carrier.into()), inside, "{}", carrier);
                }
            }
        }

        #[test]
        fn a_network_reads_back_as_it_was_written(bits: u128, prefix in 0..=128_u8, v4: bool) {
            let prefix = if v4 { prefix.min(32) } else { prefix };
            let cut = bits & mask(prefix);
            let network = if v4 {
                IpAddr::V4(Ipv4Addr::from_bits((cut >> 96) as u32))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(cut))
            };
            let cidr = Cidr::new(network, prefix).unwrap();
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
            prop_assert!(cidr.contains(network));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-f.:/+]{0,24}") {
            let _ = text.parse::<Cidr>();
        }
    }
}
