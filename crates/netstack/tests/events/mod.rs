//! What the host is told of a guest, and what is counted: against the same guest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use agentos_netstack::border::{Border, HeaderScheme, Route, Secret, Trust};
use agentos_netstack::event::{Limit, NetworkEvent, NetworkEventKind, Owner};
use agentos_netstack::policy::{Action, Base, EgressPolicy, NamePattern, Protocol, Rule, Target};
use agentos_netstack::stack::StackLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::guest::{BORDER, GATEWAY, GUEST, Guest, Parts, RESOLVER, World, soon};

const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

fn rule(action: Action, target: Target) -> Rule {
    Rule { action, target, ports: None, protocol: None, private: false }
}

fn denies(name: &str) -> EgressPolicy {
    let target = Target::Name(NamePattern::parse(name).unwrap());
    EgressPolicy::new(Base::Public, vec![rule(Action::Deny, target)])
}

fn client() -> Option<Owner> {
    Some(Owner { pid: 42, command: "client".to_owned() })
}

/// A question for the address of a name.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

fn check_query_refused(event: &NetworkEvent) {
    let NetworkEventKind::QueryRefused { name, rule, process, .. } = &event.kind else { panic!("{event:?}") };
    assert_eq!((name.as_str(), rule.as_deref()), ("evil.example", Some("deny evil.example")));
    assert_eq!(*process, client());
}

/// How often these were told in all.
fn sum(events: &[Arc<NetworkEvent>]) -> u64 {
    events.iter().map(|event| event.count).sum()
}

#[tokio::test]
async fn a_refused_query_is_told_with_its_rule_and_process_before_it_is_answered() {
    let world = World::new(denies("evil.example"));
    let resolver = SocketAddr::from((RESOLVER, 53));
    world.send_datagram(resolver, &query("evil.example")).await;
    let answer = world.datagram(resolver).await;
    assert_eq!(answer[3] & 0xf, 5, "REFUSED");
    check_query_refused(&world.events.since(0).events[0]);
    let guest = SocketAddr::from((GUEST, 5_000));
    assert_eq!(*world.asked.lock().unwrap(), [(Protocol::Udp, guest, resolver)]);
}

#[tokio::test]
async fn a_query_over_tcp_is_told_likewise() {
    let world = World::new(denies("evil.example"));
    let mut guest = Guest::connect(&world, SocketAddr::from((RESOLVER, 53)));
    let query = query("evil.example");
    guest.send(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).await;
    guest.close().await;
    let answer = guest.read_to_end().await;
    assert_eq!(answer[2 + 3] & 0xf, 5, "REFUSED");
    check_query_refused(&world.events.since(0).events[0]);
    assert_eq!(world.asked.lock().unwrap()[0].0, Protocol::Tcp);
}

#[tokio::test]
async fn a_refused_ping_is_looked_for_by_its_identifier() {
    let world = World::new(EgressPolicy::none());
    world.send_ping(FAR, 777, b"ping").await;
    let events = world.events_until(|events| !events.is_empty()).await;
    let NetworkEventKind::Refused { protocol, process, .. } = &events[0].kind else { panic!("{events:?}") };
    assert_eq!((*protocol, process.clone()), (Protocol::Icmp, client()));
    let ends = (SocketAddr::from((GUEST, 777)), SocketAddr::new(FAR, 0));
    assert_eq!(*world.asked.lock().unwrap(), [(Protocol::Icmp, ends.0, ends.1)]);
}

#[tokio::test]
async fn a_flood_of_equal_refusals_is_two_events_and_one_look_up() {
    let world = World::new(EgressPolicy::none());
    let remote = SocketAddr::new(FAR, 9);
    for _ in 0..500 {
        world.send_datagram(remote, b"flood").await;
    }
    world.until(|stats| stats.refused + stats.dropped_packets == 500).await;
    let refused = world.stack.stats().refused;
    let events = world.events_until(|events| sum(events) == refused).await;
    assert_eq!((events[0].count, events[0].sequence), (1, 0));
    // A slow machine may take more than the first second for them; the next is told after two more, and then four.
    assert!(events.len() <= 7, "{events:?}");
    for (event, sequence) in events.iter().zip(0..) {
        assert_eq!((event.sequence, &event.kind), (sequence, &events[0].kind));
    }
    assert_eq!(world.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_has_been_counted_is_told_when_the_network_ends() {
    let world = World::new(EgressPolicy::none());
    for _ in 0..3 {
        world.send_datagram(SocketAddr::new(FAR, 9), b"flood").await;
    }
    world.until(|stats| stats.refused == 3).await;
    let events = Arc::clone(&world.events);
    drop(world);
    assert_eq!(sum(&events.since(0).events), 3);
}

#[tokio::test]
async fn a_flood_of_different_refusals_leaves_room_in_the_log() {
    let world = World::new(EgressPolicy::none());
    for port in 1..=3_000 {
        world.send_datagram(SocketAddr::new(FAR, port), b"scan").await;
    }
    // A guest that is faster than the stack is out of flows as well.
    let is_refusal =
        |event: &&Arc<NetworkEvent>| !matches!(event.kind, NetworkEventKind::LimitReached { .. });
    let refused = |events: &[Arc<NetworkEvent>]| -> u64 {
        events.iter().filter(is_refusal).map(|event| event.count).sum()
    };
    let all = |events: &[Arc<NetworkEvent>]| world.stack.stats().refused == refused(events);
    world.until(|stats| stats.refused + stats.dropped_packets >= 3_000).await;
    let events = world.events_until(all).await;
    assert!(events.len() < 700, "{}", events.len());
    assert!(events.iter().any(|event| event.kind == NetworkEventKind::Further && event.count > 1));
}

#[tokio::test]
async fn a_vm_that_does_not_say_whose_it_is_is_asked_twice_and_no_more() {
    let parts = Parts { identifies: false, ..Parts::new(EgressPolicy::none()) };
    let world = World::of(parts);
    for port in 1..=20 {
        world.send_datagram(SocketAddr::new(FAR, port), b"scan").await;
    }
    let events = world.events_until(|events| events.len() == 20).await;
    for event in events {
        let NetworkEventKind::Refused { process: None, .. } = event.kind else { panic!("{event:?}") };
    }
    assert_eq!(world.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_limit_that_is_met_is_told() {
    let limits = StackLimits { connections: 0, datagram_flows: 0, ..StackLimits::default() };
    let world = World::with(EgressPolicy::public(), limits, &[]);
    for port in 20_000..20_010 {
        world.send_first_packet(port, SocketAddr::new(FAR, 80)).await;
    }
    world.send_ping(FAR, 1, b"ping").await;
    let events = world.events_until(|events| sum(events) == 11).await;
    let reached = |limit, count| {
        let equal = events.iter().filter(|event| event.kind == NetworkEventKind::LimitReached { limit });
        let counts: Vec<u64> = equal.map(|event| event.count).collect();
        counts.first() == Some(&1) && counts.iter().sum::<u64>() == count
    };
    assert!(reached(Limit::Connections, 10), "{events:?}");
    assert!(reached(Limit::Pings, 1), "{events:?}");
}

fn gateway(port: u16) -> Border {
    let route = Route::unencrypted("api", &format!("http://api.example:{port}")).unwrap();
    let route = route.credential("x-api-key".parse().unwrap(), HeaderScheme::Plain, "API_KEY").unwrap();
    let secret = Secret::new("API_KEY", "a secret of some length".to_owned().into()).unwrap();
    Border::new(vec![secret], vec![route], Trust::nobody().unwrap()).unwrap()
}

async fn with_gateway() -> (World, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let border = gateway(listener.local_addr().unwrap().port());
    let hosts = vec![("api.example", IpAddr::V4(Ipv4Addr::LOCALHOST))];
    (World::of(Parts { border, hosts, ..Parts::new(EgressPolicy::none()) }), listener)
}

#[tokio::test]
async fn traffic_of_the_gateway_is_counted_with_the_host_that_it_goes_to() {
    let (world, listener) = with_gateway().await;
    let mut guest = Guest::connect(&world, SocketAddr::from((BORDER, 80)));
    guest.send(b"GET /api/models HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n").await;
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(host.read_u8()).await.unwrap());
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    host.write_all(answer).await.unwrap();
    let said = guest.read_to_end().await;
    assert!(said.ends_with(b"hi"), "{}", String::from_utf8_lossy(&said));
    let stats = world.stack.stats();
    assert_eq!(stats.connections, 1);
    let [host] = &stats.destinations[..] else { panic!("{stats:?}") };
    assert_eq!((host.address, host.name.as_deref()), (Ipv4Addr::LOCALHOST.into(), Some("api.example")));
    assert_eq!((host.sent_bytes, host.received_bytes), (head.len() as u64, answer.len() as u64));
    assert_eq!((stats.sent_bytes, stats.received_bytes), (head.len() as u64, answer.len() as u64));
}

#[tokio::test]
async fn a_request_that_the_gateway_refuses_is_told_with_its_process_before_it_is_answered() {
    let (world, _listener) = with_gateway().await;
    let mut guest = Guest::connect(&world, SocketAddr::from((BORDER, 80)));
    guest.send(b"GET /nobody HTTP/1.1\r\nHost: gateway\r\n\r\n").await;
    let said = String::from_utf8(guest.read_to_end().await).unwrap();
    assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
    let events = world.events.since(0).events;
    let NetworkEventKind::Border { destination, rule, process, .. } = &events[0].kind else {
        panic!("{events:?}");
    };
    assert_eq!((destination.as_str(), rule.as_deref()), ("gateway", Some("gateway")));
    assert_eq!(*process, client());
}

#[tokio::test]
async fn a_connection_that_is_looked_into_counts_once() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let network = Target::Network("127.0.0.1/32".parse().unwrap());
    let name = Target::Name(NamePattern::parse("evil.example").unwrap());
    let rules = vec![rule(Action::Allow, network), rule(Action::Deny, name)];
    let world = World::new(EgressPolicy::new(Base::None, rules));
    let mut guest = Guest::connect(&world, address);
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: good.example\r\n\r\n";
    guest.send(request).await;
    let mut heard = vec![0; request.len()];
    soon(host.read_exact(&mut heard)).await.unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    host.write_all(answer).await.unwrap();
    world.until(|stats| stats.received_bytes == answer.len() as u64).await;
    let stats = world.stack.stats();
    assert_eq!((stats.connections, stats.open_connections), (1, 1));
    assert_eq!(stats.sent_bytes, request.len() as u64);
    assert_eq!(stats.destinations.len(), 1);
}

#[tokio::test]
async fn what_goes_to_a_port_of_the_host_is_counted_with_the_gateway() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let world = World::with(EgressPolicy::none(), StackLimits::default(), &[port]);
    let mut guest = Guest::connect(&world, SocketAddr::from((GATEWAY, port)));
    let (_host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"hello").await;
    world.until(|stats| stats.sent_bytes == 5).await;
    assert_eq!(world.stack.stats().destinations[0].address, IpAddr::from(GATEWAY));
}
