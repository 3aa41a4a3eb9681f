//! `agentos net`: what a kept VM was refused, how much went where, and another policy for it.

use std::time::{SystemTime, UNIX_EPOCH};

use agentos::{AgentOs, EgressProtocol, NetworkEvent, NetworkEventKind, NetworkStats, PortOwner};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::failure::Failure;
use crate::net::NetArgs;
use crate::signals::Signals;
use crate::terminal::{harmless_line, json_line, print, table};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  agentos net log --vm box --follow
  agentos net stats --vm box
  agentos net set --vm box --net none")]
pub(crate) struct NetCommandArgs {
    #[command(subcommand)]
    command: NetCommand,
}

#[derive(Debug, Subcommand)]
enum NetCommand {
    /// Show what did not leave the VM, when (UTC), by which rule, and which process tried
    #[command(after_help = "Examples:
  agentos net log --vm box
  agentos net log --vm box --follow --json")]
    Log {
        /// The name of a kept VM
        #[arg(long, value_name = "NAME")]
        vm: String,
        /// Go on until interrupted, or the VM ends
        #[arg(long, short)]
        follow: bool,
        /// One JSON object per event and line
        #[arg(long)]
        json: bool,
    },
    /// Show how much went where
    #[command(after_help = "Examples:
  agentos net stats --vm box
  agentos net stats --vm box --json")]
    Stats {
        /// The name of a kept VM
        #[arg(long, value_name = "NAME")]
        vm: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give the VM another policy; connections that it doesn't allow are cut
    #[command(after_help = "Examples:
  agentos net set --vm box --net none
  agentos net set --vm box --net public --allow 10.1.2.3:5432")]
    Set {
        /// The name of a kept VM
        #[arg(long, value_name = "NAME")]
        vm: String,
        #[command(flatten)]
        net: NetArgs,
    },
}

pub(crate) async fn run(args: NetCommandArgs) -> Result<u8, Failure> {
    match args.command {
        NetCommand::Log { vm, follow, json } => log(&vm, follow, json).await,
        NetCommand::Stats { vm, json } => {
            let stats = AgentOs::attach(&vm).await?.network_stats().await?;
            print(&if json { json_line(&stats_json(&stats)) } else { stats_table(&stats) })?;
            Ok(0)
        }
        NetCommand::Set { vm, net } => {
            // Here `--allow` alone would read like an addition to what the VM has, and take away the rest.
            let policy = net.net.is_some().then(|| net.policy()).flatten().ok_or(Failure::NoPolicy)?;
            AgentOs::attach(&vm).await?.set_network_policy(policy).await?;
            Ok(0)
        }
    }
}

async fn log(name: &str, follow: bool, json: bool) -> Result<u8, Failure> {
    let mut signals = Signals::watch()?;
    let vm = AgentOs::attach(name).await?;
    let mut events = if follow { vm.network_events() } else { vm.past_network_events() };
    loop {
        let event = tokio::select! {
            signal = signals.next() => return Err(Failure::Interrupted { signal }),
            event = events.next() => event,
        };
        let Some(event) = event else { return Ok(0) };
        let event = event?;
        let text = if json {
            json_line(&event_json(&event))
        } else {
            format!("{} {}\n", time(event.at), line(&event))
        };
        print(&text)?;
    }
}

/// As docker's logs have it, to the millisecond: `2026-11-23T03:08:11.123Z`.
pub(crate) fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // A time that no calendar has shows as its beginning.
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// One event for people.
fn line(event: &NetworkEvent) -> String {
    let text = match &event.kind {
        NetworkEventKind::Refused(refusal) => {
            let names = if refusal.names.is_empty() {
                String::new()
            } else {
                format!(" ({})", refusal.names.join(", "))
            };
            let protocol = protocol(refusal.protocol);
            let why = why(&refusal.reason, refusal.rule.as_deref(), refusal.process.as_ref());
            format!("refused {protocol} {}{names}: {why}", refusal.destination)
        }
        NetworkEventKind::QueryRefused { name, reason, rule, process } => {
            format!("refused query for {name}: {}", why(reason, rule.as_deref(), process.as_ref()))
        }
        NetworkEventKind::Border { destination, reason, rule, process } => {
            format!("border {destination}: {}", why(reason, rule.as_deref(), process.as_ref()))
        }
        NetworkEventKind::LimitReached(limit) => format!("limit reached: {limit}"),
        NetworkEventKind::Further => "further refusals, too many different ones to tell".to_owned(),
        NetworkEventKind::Ended { reason } => format!("network ended: {reason}"),
        NetworkEventKind::Missed(count) => format!("{count} earlier events are no longer kept"),
        other => format!("{other:?}"),
    };
    let times = if event.count > 1 { format!(", {} times more", event.count) } else { String::new() };
    harmless_line(&(text + &times))
}

fn why(reason: &str, rule: Option<&str>, process: Option<&PortOwner>) -> String {
    let rule = rule.map(|rule| format!(" ({rule})")).unwrap_or_default();
    let process = process.map(|process| format!(", by {} [{}]", process.command, process.pid));
    format!("{reason}{rule}{}", process.unwrap_or_default())
}

fn event_json(event: &NetworkEvent) -> Value {
    let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (kind, detail) = match &event.kind {
        NetworkEventKind::Refused(refusal) => {
            let process = refusal.process.as_ref();
            let detail = json!({
                "protocol": protocol(refusal.protocol),
                "destination": refusal.destination.to_string(),
                "names": refusal.names,
                "reason": refusal.reason,
                "rule": refusal.rule,
                "pid": process.map(|process| process.pid),
                "command": process.map(|process| &process.command),
            });
            ("refused", detail)
        }
        NetworkEventKind::QueryRefused { name, reason, rule, process } => {
            let process = process.as_ref();
            let detail = json!({
                "name": name,
                "reason": reason,
                "rule": rule,
                "pid": process.map(|process| process.pid),
                "command": process.map(|process| &process.command),
            });
            ("query_refused", detail)
        }
        NetworkEventKind::Border { destination, reason, rule, process } => {
            let process = process.as_ref();
            let detail = json!({
                "destination": destination,
                "reason": reason,
                "rule": rule,
                "pid": process.map(|process| process.pid),
                "command": process.map(|process| &process.command),
            });
            ("border", detail)
        }
        NetworkEventKind::LimitReached(limit) => ("limit_reached", json!({ "limit": limit.to_string() })),
        NetworkEventKind::Further => ("further", Value::Null),
        NetworkEventKind::Ended { reason } => ("ended", json!({ "reason": reason })),
        NetworkEventKind::Missed(count) => ("missed", json!({ "count": count })),
        _ => ("unknown", Value::Null),
    };
    let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    json!({ "sequence": event.sequence, "at_ms": at_ms, "count": event.count, "event": kind, "detail": detail })
}

fn protocol(protocol: EgressProtocol) -> &'static str {
    match protocol {
        EgressProtocol::Tcp => "tcp",
        EgressProtocol::Udp => "udp",
        EgressProtocol::Icmp => "icmp",
        _ => "other",
    }
}

fn stats_json(stats: &NetworkStats) -> Value {
    let destinations: Vec<Value> = stats
        .destinations
        .iter()
        .map(|one| {
            json!({
                "address": one.address.to_string(),
                "name": one.name,
                "sent_bytes": one.sent_bytes,
                "received_bytes": one.received_bytes,
            })
        })
        .collect();
    json!({
        "sent_bytes": stats.sent_bytes,
        "received_bytes": stats.received_bytes,
        "connections": stats.connections,
        "open_connections": stats.open_connections,
        "refused": stats.refused,
        "dropped_packets": stats.dropped_packets,
        "destinations": destinations,
    })
}

fn stats_table(stats: &NetworkStats) -> String {
    let mut rows = vec![["ADDRESS", "NAME", "SENT", "RECEIVED"].map(str::to_owned)];
    for one in &stats.destinations {
        rows.push([
            one.address.to_string(),
            harmless_line(one.name.as_deref().unwrap_or("-")),
            one.sent_bytes.to_string(),
            one.received_bytes.to_string(),
        ]);
    }
    let total =
        ["total".to_owned(), "-".to_owned(), stats.sent_bytes.to_string(), stats.received_bytes.to_string()];
    rows.push(total);
    let counts = format!(
        "{} connections, {} open, {} refused, {} packets dropped\n",
        stats.connections, stats.open_connections, stats.refused, stats.dropped_packets
    );
    table(&rows) + &counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_is_a_date_and_a_time_of_day_in_utc() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(time(UNIX_EPOCH + Duration::from_millis(millis)), text);
        }
    }
}
