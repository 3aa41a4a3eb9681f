//! The stack against a guest that is a TCP stack of the test's, over a pair of sockets instead of a TUN device. Needs no
//! rights, and so runs as anybody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper fails its test by panicking"
)]

mod events;
#[allow(dead_code, reason = "other tests use the rest")]
mod guest;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use agentos_netstack::event::{Limit, NetworkEventKind};
use agentos_netstack::policy::{Action, Base, EgressPolicy, NamePattern, Rule, Target};
use agentos_netstack::stack::StackLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use guest::{GATEWAY, Guest, World, soon};

/// A rule that opens one address, which is how a host's own is opened.
fn allow(address: Ipv4Addr) -> Rule {
    let target = Target::Network(format!("{address}/32").parse().unwrap());
    Rule { action: Action::Allow, target, ports: None, protocol: None, private: false }
}

fn to_loopback() -> EgressPolicy {
    EgressPolicy::new(Base::None, vec![allow(Ipv4Addr::LOCALHOST)])
}

async fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_connection_carries_both_ways_and_closes_one_half_at_a_time() {
    let (listener, address) = server().await;
    let world = World::new(to_loopback());
    let mut guest = Guest::connect(&world, address);
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"question").await;
    guest.close().await;
    let mut question = String::new();
    soon(host.read_to_string(&mut question)).await.unwrap();
    host.write_all(b"answer").await.unwrap();
    drop(host);
    assert_eq!((question.as_str(), guest.read_to_end().await), ("question", b"answer".to_vec()));
}

#[tokio::test]
async fn megabytes_arrive_whole_in_both_directions_at_once() {
    let (listener, address) = server().await;
    let world = World::new(to_loopback());
    let mut guest = Guest::connect(&world, address);
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    let sent: Vec<u8> = (0..5_000_000u32).map(|number| (number % 251) as u8).collect();
    let echo = tokio::spawn(async move {
        let (mut from, mut to) = host.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let received = guest.exchange(&sent).await;
    soon(echo).await.unwrap();
    assert!(received == sent, "{} bytes came back, of {}", received.len(), sent.len());
    let stats = world.stack.stats();
    assert_eq!((stats.sent_bytes, stats.received_bytes), (5_000_000, 5_000_000));
    assert_eq!(stats.destinations[0].address, address.ip());
}

#[tokio::test]
async fn where_nobody_listens_the_guest_is_refused_as_by_any_host() {
    let (listener, address) = server().await;
    drop(listener);
    let world = World::new(to_loopback());
    let mut guest = Guest::connect(&world, address);
    assert!(guest.is_refused().await);
}

#[tokio::test]
async fn a_reset_outside_is_a_reset_inside() {
    let (listener, address) = server().await;
    let world = World::new(to_loopback());
    let mut guest = Guest::connect(&world, address);
    let (host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"x").await;
    rustix::net::sockopt::set_socket_linger(&host, Some(Duration::ZERO)).unwrap();
    drop(host);
    assert!(guest.is_refused().await);
}

#[tokio::test]
async fn what_the_policy_refuses_never_connects_and_is_told() {
    let (listener, address) = server().await;
    let world = World::new(EgressPolicy::public());
    let mut guest = Guest::connect(&world, address);
    assert_eq!(guest.icmp().await, (3, 13), "administratively prohibited");
    soon(world.events.reached(0)).await;
    let events = world.events.since(0).events;
    let NetworkEventKind::Refused { destination, process, .. } = &events[0].kind else {
        panic!("{events:?}");
    };
    assert_eq!((*destination, process.as_ref().unwrap().pid), (address, 42));
    // Nothing waits to be accepted: a second connection, from the test itself, is the first.
    let own = tokio::net::TcpStream::connect(address).await.unwrap();
    let (_, peer) = soon(listener.accept()).await.unwrap();
    assert_eq!(peer, own.local_addr().unwrap());
}

#[tokio::test]
async fn a_policy_that_changes_cuts_what_it_no_longer_allows() {
    let (listener, address) = server().await;
    let world = World::new(to_loopback());
    let mut guest = Guest::connect(&world, address);
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"before").await;
    let mut before = [0; 6];
    soon(host.read_exact(&mut before)).await.unwrap();
    world.stack.set_policy(EgressPolicy::none()).await;
    assert!(guest.is_refused().await);
    assert!(soon(host.read(&mut before)).await.map_or(true, |read| read == 0), "the outside is cut, too");
    assert!(matches!(world.events.since(0).events[0].kind, NetworkEventKind::Refused { .. }));
}

#[tokio::test]
async fn a_denied_name_is_found_in_any_request_of_a_plain_connection() {
    let (listener, address) = server().await;
    let target = Target::Name(NamePattern::parse("evil.example").unwrap());
    let deny = Rule { action: Action::Deny, target, ports: None, protocol: None, private: false };
    let world = World::new(EgressPolicy::new(Base::None, vec![allow(Ipv4Addr::LOCALHOST), deny]));
    let mut guest = Guest::connect(&world, address);
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n").await;
    let mut head = [0; 4_096];
    let mut length = soon(host.read(&mut head)).await.unwrap();
    while !head[..length].ends_with(b"\r\n\r\n") {
        length += soon(host.read(&mut head[length..])).await.unwrap();
    }
    host.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
    guest.send(b"GET /stolen HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
    let answers = String::from_utf8(guest.read_to_end().await).unwrap();
    assert!(answers.contains("\r\n\r\nhiHTTP/1.1 403 "), "{answers}");
    assert_eq!(soon(host.read(&mut head)).await.unwrap_or(0), 0, "nothing more came");
    soon(world.events.reached(0)).await;
    let events = world.events.since(0).events;
    let NetworkEventKind::Refused { names, rule, process, .. } = &events[0].kind else {
        panic!("{events:?}");
    };
    assert_eq!((names[0].as_str(), rule.as_deref()), ("evil.example", Some("deny evil.example")));
    assert!(process.is_some());
}

#[tokio::test]
async fn the_gateway_leads_to_listed_ports_of_the_host_and_to_no_other() {
    let (listener, address) = server().await;
    let world = World::with(EgressPolicy::none(), StackLimits::default(), &[address.port()]);
    let mut guest = Guest::connect(&world, SocketAddr::from((GATEWAY, address.port())));
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"hello").await;
    let mut hello = [0; 5];
    soon(host.read_exact(&mut hello)).await.unwrap();
    let (_other, unlisted) = server().await;
    let mut guest = Guest::connect(&world, SocketAddr::from((GATEWAY, unlisted.port())));
    assert_eq!(guest.icmp().await, (3, 13));
}

#[tokio::test]
async fn datagrams_go_and_come_back() {
    let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = host.local_addr().unwrap();
    let world = World::new(to_loopback());
    world.send_datagram(address, b"ping").await;
    let mut buffer = [0; 16];
    let (length, from) = soon(host.recv_from(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..length], b"ping");
    host.send_to(b"pong", from).await.unwrap();
    assert_eq!(world.datagram(address).await, b"pong");
}

#[tokio::test]
async fn where_there_is_no_room_for_a_flow_of_datagrams_the_longest_idle_makes_it() {
    let limits = StackLimits { datagram_flows: 2, ..StackLimits::default() };
    let world = World::with(to_loopback(), limits, &[]);
    let mut hosts = Vec::new();
    for _ in 0..3 {
        let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut buffer = [0; 16];
        // The first says something last, of the first two.
        for known in [Some(&host), hosts.first().filter(|_| hosts.len() == 1)].into_iter().flatten() {
            world.send_datagram(known.local_addr().unwrap(), b"ping").await;
            let (_, from) = soon(known.recv_from(&mut buffer)).await.unwrap();
            known.send_to(b"pong", from).await.unwrap();
            assert_eq!(world.datagram(known.local_addr().unwrap()).await, b"pong");
        }
        hosts.push(host);
    }
    let limit = NetworkEventKind::LimitReached { limit: Limit::DatagramFlows };
    let events = world.events.since(0).events;
    assert_eq!(events.iter().filter(|event| event.kind == limit).count(), 1);
    assert_eq!(world.stack.stats().dropped_packets, 0);
    // Those of the first and the last are there: nothing has to make room for them.
    for host in [&hosts[0], &hosts[2]] {
        world.send_datagram(host.local_addr().unwrap(), b"again").await;
        soon(host.recv_from(&mut [0; 16])).await.unwrap();
    }
    world.send_datagram(hosts[1].local_addr().unwrap(), b"again").await;
    soon(hosts[1].recv_from(&mut [0; 16])).await.unwrap();
    let events = world.events_until(|events| events.len() == 2).await;
    assert_eq!((&events[1].kind, events[1].count), (&limit, 1), "that of the second was over");
}

#[tokio::test]
async fn a_ping_waits_for_the_bandwidth_like_anything_else() {
    let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = host.local_addr().unwrap();
    let limits = StackLimits { bandwidth_bytes: Some(40_000), ..StackLimits::default() };
    let world = World::with(to_loopback(), limits, &[]);
    let began = std::time::Instant::now();
    // More than a burst: it takes one and a third of a second to make up for it.
    for _ in 0..2 {
        world.send_datagram(address, &[7; 60_000]).await;
        soon(host.recv_from(&mut [0; 60_000])).await.unwrap();
    }
    world.send_ping(address.ip(), 1, b"ping").await;
    // An echo, or where nobody may ping that it is prohibited.
    world.icmp().await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_flood_of_connections_ends_at_the_limit_and_hurts_no_other() {
    let (listener, address) = server().await;
    let limits = StackLimits { connections: 8, ..StackLimits::default() };
    let world = World::with(to_loopback(), limits, &[]);
    let mut first = Guest::connect(&world, address);
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    first.send(b"a").await;
    for port in 0..100 {
        world.send_first_packet(20_000 + port, address).await;
    }
    // Seven beside the first find room.
    world.until(|stats| stats.dropped_packets == 93).await;
    assert_eq!(world.resets(1).await, 1, "who finds none is told");
    first.send(b"b").await;
    let mut both = [0; 2];
    soon(host.read_exact(&mut both)).await.unwrap();
    assert_eq!(&both, b"ab");
}

#[tokio::test]
async fn garbage_is_counted_and_nothing_else() {
    let world = World::new(to_loopback());
    for length in [0, 1, 19, 20, 39, 40, 1_000] {
        world.send_raw(&vec![0x45; length]).await;
        world.send_raw(&vec![0x60; length]).await;
    }
    let (listener, address) = server().await;
    let mut guest = Guest::connect(&world, address);
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"still here").await;
    let mut text = [0; 10];
    soon(host.read_exact(&mut text)).await.unwrap();
    assert!(world.stack.stats().dropped_packets >= 10);
}
