//! What leaves a VM, and what does not.

use std::time::{Duration, UNIX_EPOCH};

use agentos_proto::v1::{self, network_event::Event};
use agentos_vm::network::{Limit, NetworkEvent, NetworkEventKind, NetworkStats, Owner};
use agentos_vm::policy::Protocol;

pub(crate) fn event(event: &NetworkEvent) -> v1::NetworkEvent {
    let since = event.at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let kind = match &event.kind {
        NetworkEventKind::Refused { protocol, destination, names, reason, rule, process } => {
            let protocol = match protocol {
                Protocol::Tcp => v1::EgressProtocol::Tcp,
                Protocol::Udp => v1::EgressProtocol::Udp,
                Protocol::Icmp => v1::EgressProtocol::Icmp,
            };
            Event::Refused(v1::NetworkRefusal {
                protocol: protocol.into(),
                destination: destination.to_string(),
                names: names.iter().map(ToString::to_string).collect(),
                reason: reason.clone(),
                rule: rule.clone().unwrap_or_default(),
                process: process.as_ref().map(owner),
            })
        }
        NetworkEventKind::QueryRefused { name, reason, rule, process } => {
            Event::QueryRefused(v1::QueryRefusal {
                name: name.to_string(),
                reason: reason.clone(),
                rule: rule.clone().unwrap_or_default(),
                process: process.as_ref().map(owner),
            })
        }
        NetworkEventKind::Border { destination, reason, rule, process } => Event::Border(v1::BorderNotice {
            destination: destination.clone(),
            reason: reason.clone(),
            rule: rule.clone().unwrap_or_default(),
            process: process.as_ref().map(owner),
        }),
        NetworkEventKind::LimitReached { limit } => {
            Event::LimitReached(v1::NetworkLimitReached { limit: self::limit(*limit).into() })
        }
        NetworkEventKind::Further => Event::Further(v1::FurtherRefusals {}),
        NetworkEventKind::Ended { reason } => Event::Ended(v1::NetworkEnded { reason: reason.clone() }),
    };
    v1::NetworkEvent {
        sequence: event.sequence,
        at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        event: Some(kind),
        count: event.count,
    }
}

fn owner(owner: &Owner) -> v1::PortOwner {
    v1::PortOwner { pid: owner.pid, command: owner.command.clone() }
}

fn limit(limit: Limit) -> v1::NetworkLimit {
    match limit {
        Limit::Connections => v1::NetworkLimit::Connections,
        Limit::DatagramFlows => v1::NetworkLimit::DatagramFlows,
        Limit::Queries => v1::NetworkLimit::Queries,
        Limit::Pings => v1::NetworkLimit::Pings,
        Limit::HostSockets => v1::NetworkLimit::HostSockets,
        Limit::QueuedBytes => v1::NetworkLimit::QueuedBytes,
    }
}

/// So many events before this one, the first that is kept, are lost to this reader.
pub(crate) fn missed(count: u64, first: &NetworkEvent) -> v1::NetworkEvent {
    v1::NetworkEvent { event: Some(Event::Missed(count)), count: 1, ..event(first) }
}

pub(crate) fn stats(stats: NetworkStats) -> v1::NetworkStats {
    let destinations = stats.destinations.into_iter().map(|one| v1::DestinationStats {
        address: one.address.to_string(),
        name: one.name.unwrap_or_default(),
        sent_bytes: one.sent_bytes,
        received_bytes: one.received_bytes,
    });
    v1::NetworkStats {
        sent_bytes: stats.sent_bytes,
        received_bytes: stats.received_bytes,
        connections: stats.connections,
        open_connections: stats.open_connections,
        refused: stats.refused,
        dropped_packets: stats.dropped_packets,
        destinations: destinations.collect(),
    }
}
