//! What is known without asking anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::message::Reply;
use crate::name::HostName;

/// Names under it are ours alone. The rest of `.internal` belongs to whoever runs the network of the host.
const OUR_ZONE: &str = "agentos.internal";

const LOCALHOST: &str = "localhost";

/// Short, because the hosts of a VM may change while it runs.
const TTL: u32 = 60;

/// The names of one VM.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) hosts: Vec<(HostName, IpAddr)>,
    pub(super) ipv6: bool,
}

impl Local {
    /// Whether this name means something within the VM and nothing outside.
    pub(super) fn owns(&self, name: &HostName) -> bool {
        is_localhost(name) || within(name, OUR_ZONE) || self.hosts.iter().any(|(host, _)| host == name)
    }

    /// The answer, if the name is ours to answer for.
    pub(super) fn reply(&self, name: &HostName, question: &Query) -> Option<Reply> {
        if self.owns(name) {
            let addresses = self.addresses(name);
            // The name of a zone exists without having addresses.
            if addresses.is_empty() && name.as_str() != OUR_ZONE {
                return Some(Reply::code(ResponseCode::NXDomain));
            }
            let reachable = addresses.into_iter().filter(|address| self.ipv6 || address.is_ipv4());
            return Some(Reply::records(records(question, reachable)));
        }
        let address = reverse(question.name())?;
        let names = self.names(address);
        if names.is_empty() {
            return is_private(address).then(|| Reply::code(ResponseCode::NXDomain));
        }
        if question.query_type() != RecordType::PTR {
            return Some(Reply::default());
        }
        let pointers = names.into_iter().map(|name| RData::PTR(PTR(name)));
        let owner = question.name();
        Some(Reply::records(pointers.map(|data| Record::from_rdata(owner.clone(), TTL, data)).collect()))
    }

    /// Loopback comes first and can't be given another address: what listens there trusts whoever comes.
    fn addresses(&self, name: &HostName) -> Vec<IpAddr> {
        if is_localhost(name) {
            return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        }
        self.hosts.iter().filter(|(host, _)| host == name).map(|(_, address)| *address).collect()
    }

    fn names(&self, address: IpAddr) -> Vec<Name> {
        if address.is_loopback() {
            return Name::from_ascii("localhost.").into_iter().collect();
        }
        let hosts = self.hosts.iter().filter(|(_, of_host)| *of_host == address);
        hosts.filter_map(|(host, _)| Name::from_ascii(format!("{host}.")).ok()).collect()
    }
}

/// `localhost` and all names under it are loopback: RFC 6761, section 6.3.
pub(super) fn is_localhost(name: &HostName) -> bool {
    within(name, LOCALHOST)
}

/// The answer from a line of the host's own table. A name without any address that others could reach is one that is
/// meant for the host itself, or is blocked there; neither is a VM's to have.
pub(super) fn of_host_file(question: &Query, addresses: &[IpAddr]) -> Reply {
    if addresses.is_empty() {
        return Reply::code(ResponseCode::NXDomain);
    }
    Reply::records(records(question, addresses.iter().copied()))
}

/// The addresses of the family that was asked for.
fn records(question: &Query, addresses: impl Iterator<Item = IpAddr>) -> Vec<Record> {
    let asked = addresses.map(RData::from).filter(|data| data.record_type() == question.query_type());
    asked.map(|data| Record::from_rdata(question.name().clone(), TTL, data)).collect()
}

fn within(name: &HostName, zone: &str) -> bool {
    name.as_str().strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The whole address that a name stands for in the tree of reverse look-ups.
fn reverse(name: &Name) -> Option<IpAddr> {
    let network = name.parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

/// Addresses about which servers of the public network know nothing, and those of the host's network would tell what
/// is none of a VM's business: RFC 6303.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let carrier = address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64;
            let this_network = address.octets()[0] == 0;
            carrier
                || this_network
                || address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_broadcast()
                || address.is_documentation()
        }
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_unique_local()
                || address.is_unicast_link_local()
        }
    }
}
