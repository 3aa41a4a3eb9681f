//! What leaves a VM, and what does not.

use std::time::{Duration, UNIX_EPOCH};

use agentos_proto::v1::{self, network_event::Event};

use super::AnswerError;
use crate::egress::{DestinationStats, NetworkEvent, NetworkEventKind, NetworkRefusal, NetworkStats};
use crate::policy::{EgressPolicy, EgressProtocol};
use crate::ports::PortOwner;

const WATCH: &str = "WatchNetwork";
const STATS: &str = "GetNetworkStats";

pub(crate) fn set_policy_request(vm_id: &str, policy: EgressPolicy) -> v1::SetNetworkPolicyRequest {
    let policy = Some(super::policy::egress_policy(policy));
    v1::SetNetworkPolicyRequest { vm_id: vm_id.to_owned(), policy }
}

pub(crate) fn stats_request(vm_id: &str) -> v1::GetNetworkStatsRequest {
    v1::GetNetworkStatsRequest { vm_id: vm_id.to_owned() }
}

pub(crate) fn watch_request(vm_id: &str, past_only: bool) -> v1::WatchNetworkRequest {
    v1::WatchNetworkRequest { vm_id: vm_id.to_owned(), past_only }
}

pub(crate) fn event(event: v1::NetworkEvent) -> Result<NetworkEvent, AnswerError> {
    let kind = match event.event.ok_or(AnswerError::Missing { call: WATCH, field: "event" })? {
        Event::Refused(refusal) => NetworkEventKind::Refused(self::refusal(refusal)?),
        Event::QueryRefused(query) => {
            NetworkEventKind::QueryRefused { name: query.name, reason: query.reason }
        }
        Event::Border(notice) => {
            NetworkEventKind::Border { destination: notice.destination, reason: notice.reason }
        }
        Event::Ended(ended) => NetworkEventKind::Ended { reason: ended.reason },
        Event::Missed(count) => NetworkEventKind::Missed(count),
    };
    Ok(NetworkEvent { sequence: event.sequence, at: UNIX_EPOCH + Duration::from_millis(event.at_ms), kind })
}

fn refusal(refusal: v1::NetworkRefusal) -> Result<NetworkRefusal, AnswerError> {
    let protocol = match refusal.protocol() {
        v1::EgressProtocol::Tcp => EgressProtocol::Tcp,
        v1::EgressProtocol::Udp => EgressProtocol::Udp,
        v1::EgressProtocol::Icmp => EgressProtocol::Icmp,
        v1::EgressProtocol::Unspecified => {
            return Err(AnswerError::Missing { call: WATCH, field: "protocol" });
        }
    };
    let out_of_range = AnswerError::Range { call: WATCH, field: "destination" };
    Ok(NetworkRefusal {
        protocol,
        destination: refusal.destination.parse().map_err(|_| out_of_range)?,
        names: refusal.names,
        reason: refusal.reason,
        rule: Some(refusal.rule).filter(|rule| !rule.is_empty()),
        process: refusal.process.map(|process| PortOwner { pid: process.pid, command: process.command }),
    })
}

pub(crate) fn stats(reply: v1::NetworkStats) -> Result<NetworkStats, AnswerError> {
    let destinations = reply.destinations.into_iter().map(|one| {
        let address = one.address.parse();
        Ok(DestinationStats {
            address: address.map_err(|_| AnswerError::Range { call: STATS, field: "address" })?,
            name: Some(one.name).filter(|name| !name.is_empty()),
            sent_bytes: one.sent_bytes,
            received_bytes: one.received_bytes,
        })
    });
    Ok(NetworkStats {
        sent_bytes: reply.sent_bytes,
        received_bytes: reply.received_bytes,
        connections: reply.connections,
        open_connections: reply.open_connections,
        refused: reply.refused,
        dropped_packets: reply.dropped_packets,
        destinations: destinations.collect::<Result<_, _>>()?,
    })
}
