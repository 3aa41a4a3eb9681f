//! How connections and whole networks end, how long they last, and what they leave: against a guest that is a TCP stack
//! of the test's, over a pair of sockets instead of a TUN device.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper fails its test by panicking"
)]

#[allow(dead_code, reason = "other tests use the rest")]
mod guest;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentos_netstack::border::{Border, Destination, Secret, Trust};
use agentos_netstack::event::NetworkEventKind;
use agentos_netstack::name::HostName;
use agentos_netstack::policy::{Action, Base, EgressPolicy, NamePattern, Rule, Target};
use agentos_netstack::stack::StackLimits;
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use guest::{Guest, Parts, World, soon};

fn to_loopback() -> EgressPolicy {
    let target = Target::Network("127.0.0.1/32".parse().unwrap());
    let rule = Rule { action: Action::Allow, target, ports: None, protocol: None, private: false };
    EgressPolicy::new(Base::None, vec![rule])
}

async fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A connection that stands: something has gone each way.
async fn connection(world: &World, listener: &TcpListener) -> (Guest, TcpStream) {
    let mut guest = Guest::connect(world, listener.local_addr().unwrap());
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    exchange(&mut guest, &mut host).await;
    (guest, host)
}

async fn exchange(guest: &mut Guest, host: &mut TcpStream) {
    guest.send(b"question").await;
    let mut question = [0; 8];
    soon(host.read_exact(&mut question)).await.unwrap();
    host.write_all(b"answer").await.unwrap();
    assert_eq!((&question, guest.read(6).await.as_slice()), (b"question", &b"answer"[..]));
}

/// Whether the connection is over for the host: by its end, or by a reset.
async fn is_over(host: &mut TcpStream) -> bool {
    soon(host.read(&mut [0; 64])).await.map_or(true, |read| read == 0)
}

/// Lets time pass for everybody, without waiting for it.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
    // Whatever was due has its turn.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_fault_in_a_stack_ends_this_network_with_its_reason_and_no_other() {
    let (listener, address) = server().await;
    let limits = StackLimits::default();
    // Whose a connection is, is asked in the task of that connection, about one that is refused.
    let world = World::made_with(Parts { limits, ..Parts::new(to_loopback()) }, |options| {
        options.identify = Arc::new(|_, _, _| panic!("a fault that the test has made"));
    });
    let neighbour = World::new(to_loopback());
    let (_guest, mut host) = connection(&world, &listener).await;
    let (mut unharmed, mut unharmed_host) = connection(&neighbour, &listener).await;

    let elsewhere = SocketAddr::from(([198, 51, 100, 1], 443));
    let _refused = Guest::connect(&world, elsewhere);
    // First the refusal, whose process will not be known.
    soon(world.events.reached(1)).await;
    let events = world.events.since(0).events;
    let ended: Vec<&str> = events
        .iter()
        .filter_map(|event| match &event.kind {
            NetworkEventKind::Ended { reason } => Some(reason.as_str()),
            _ => None,
        })
        .collect();
    assert!(matches!(ended[..], [reason] if reason.contains("fault in the VM's network stack")), "{ended:?}");
    assert!(is_over(&mut host).await, "what it carried is cut");

    for remote in [address, elsewhere] {
        assert_eq!(Guest::connect(&world, remote).icmp().await, (3, 0), "network unreachable");
    }
    soon(world.stack.set_policy(EgressPolicy::none())).await;
    exchange(&mut unharmed, &mut unharmed_host).await;
    assert!(neighbour.events.since(0).events.is_empty());
}

/// What a limit leaves through in some time is its rate's worth and one burst. Both ends of the measurement lie outside
/// of what is measured, so that a slow machine makes it longer and never wrong.
#[tokio::test]
async fn a_bandwidth_limit_holds_for_whole_connections_in_both_directions() {
    const RATE: u64 = 1_000_000;
    const BURST: usize = 65_536;
    const BYTES: usize = 400_000;
    let (listener, _) = server().await;
    let limits = StackLimits { bandwidth_bytes: Some(RATE), ..StackLimits::default() };
    let world = World::with(to_loopback(), limits, &[]);
    let (mut guest, mut host) = connection(&world, &listener).await;
    let least = Duration::from_secs_f64((BYTES - BURST) as f64 / RATE as f64);

    let started = Instant::now();
    let counting = tokio::spawn(async move {
        let mut read = vec![0; BYTES];
        soon(host.read_exact(&mut read)).await.unwrap();
        (host, Instant::now())
    });
    guest.send(&vec![1; BYTES]).await;
    let (mut host, ended) = guest.drive_until(counting).await.unwrap();
    assert!(ended - started >= least, "{BYTES} bytes went out in {:?}", ended - started);

    let started = Instant::now();
    let sending = tokio::spawn(async move { host.write_all(&vec![2; BYTES]).await });
    guest.read(BYTES).await;
    assert!(started.elapsed() >= least, "{BYTES} bytes came in in {:?}", started.elapsed());
    soon(sending).await.unwrap().unwrap();
    let stats = world.stack.stats();
    assert!(stats.sent_bytes >= BYTES as u64 && stats.received_bytes >= BYTES as u64, "{stats:?}");
}

#[tokio::test]
async fn a_connection_that_is_idle_for_minutes_still_stands() {
    let (listener, _) = server().await;
    let world = World::new(to_loopback());
    let (mut guest, mut host) = connection(&world, &listener).await;
    for _ in 0..30 {
        pass(Duration::from_secs(10)).await;
        guest.settle().await;
    }
    assert!(guest.is_open());
    exchange(&mut guest, &mut host).await;
}

#[tokio::test]
async fn who_is_slow_to_say_a_denied_name_says_it_in_vain() {
    let (listener, address) = server().await;
    let host = HostName::parse("good.example").unwrap();
    let denied = Target::Name(NamePattern::parse("evil.example").unwrap());
    let deny = Rule { action: Action::Deny, target: denied, ports: None, protocol: None, private: false };
    let policy = EgressPolicy::new(Base::None, [to_loopback().rules(), &[deny]].concat());
    // A host whose connections are listened to in any case, for its secret.
    let header = "x-api-key".parse().unwrap();
    let secret = Secret::new("TOKEN", "a secret of some length".to_owned().into()).unwrap();
    let secret =
        secret.destination(Destination { host: host.clone(), port: address.port(), header }).unwrap();
    let border = Border::new(vec![secret], Vec::new(), Trust::nobody().unwrap()).unwrap();
    let world = World::made_with(Parts { border, ..Parts::new(policy) }, |options| {
        options.pins.pin(host, address.ip(), Duration::from_secs(60), Instant::now());
    });
    let mut guest = Guest::connect(&world, address);
    guest.send(b"GET / HTTP/1.1\r\nHo").await;
    guest.settle().await;
    pass(Duration::from_secs(11)).await;
    let mut host = guest.drive_until(soon(listener.accept())).await.unwrap().0;
    guest.send(b"st: evil.example\r\n\r\n").await;
    let said = String::from_utf8(guest.read_to_end().await).unwrap();
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
    assert!(is_over(&mut host).await, "nothing of it came");
}

#[tokio::test]
async fn who_begins_to_say_something_and_waits_hears_that_it_leads_nowhere() {
    let (listener, address) = server().await;
    let denied = Target::Name(NamePattern::parse("evil.example").unwrap());
    let deny = Rule { action: Action::Deny, target: denied, ports: None, protocol: None, private: false };
    let world = World::new(EgressPolicy::new(Base::None, [to_loopback().rules(), &[deny]].concat()));
    let mut guest = Guest::connect(&world, address);
    let mut host = guest.drive_until(soon(listener.accept())).await.unwrap().0;
    // Who says nothing waits for its server, and may.
    pass(Duration::from_secs(60)).await;
    guest.settle().await;
    assert!(guest.is_open());
    guest.send(b"HELLO").await;
    guest.settle().await;
    pass(Duration::from_secs(11)).await;
    assert!(guest.is_refused().await);
    assert!(is_over(&mut host).await, "nothing of it came");
    world.until(|stats| stats.refused == 1).await;
}

#[tokio::test]
async fn a_guest_that_has_forgotten_its_connection_is_asked_and_ends_it() {
    let (listener, _) = server().await;
    let world = World::new(to_loopback());
    let (guest, mut host) = connection(&world, &listener).await;
    let port = guest.port();
    // As a kernel whose process was killed while nobody looked: it says nothing by itself.
    drop(guest);
    world.forget_packets().await;
    pass(Duration::from_secs(31)).await;
    world.disown(port).await;
    assert!(is_over(&mut host).await);
    world.until(|stats| stats.open_connections == 0).await;
}

#[tokio::test]
async fn a_guest_that_answers_nothing_any_more_is_given_up() {
    let (listener, _) = server().await;
    let world = World::new(to_loopback());
    let (guest, mut host) = connection(&world, &listener).await;
    drop(guest);
    for _ in 0..20 {
        pass(Duration::from_secs(10)).await;
    }
    assert!(is_over(&mut host).await);
    world.until(|stats| stats.open_connections == 0).await;
}

#[tokio::test]
async fn what_a_server_said_before_it_broke_the_connection_arrives_first() {
    let (listener, _) = server().await;
    let world = World::new(to_loopback());
    let (mut guest, mut host) = connection(&world, &listener).await;
    let words = vec![7; 20_000];
    host.write_all(&words).await.unwrap();
    rustix::net::sockopt::set_socket_linger(&host, Some(Duration::ZERO)).unwrap();
    drop(host);
    assert!(guest.read_until_reset().await == words);
}

#[tokio::test]
async fn what_a_guest_said_before_it_broke_the_connection_arrives_first() {
    let (listener, _) = server().await;
    let world = World::new(to_loopback());
    let (mut guest, mut host) = connection(&world, &listener).await;
    let words = vec![7; 20_000];
    // Both are on their way before the stack has a turn.
    guest.send(&words).await;
    guest.abort().await;
    let mut heard = Vec::new();
    let error = soon(host.read_to_end(&mut heard)).await.unwrap_err();
    assert_eq!((heard.len(), error.kind()), (words.len(), std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_policy_change_returns_when_everything_is_cut() {
    let (listener, _) = server().await;
    let world = World::new(to_loopback());
    let mut connections = Vec::new();
    for _ in 0..50 {
        connections.push(connection(&world, &listener).await);
    }
    world.stack.set_policy(EgressPolicy::none()).await;
    // No turn for anybody in between: what isn't cut now was not cut when it returned.
    for (_, host) in &connections {
        let read = rustix::net::recv(host, &mut [0; 1], RecvFlags::DONTWAIT);
        assert!(matches!(read, Err(rustix::io::Errno::CONNRESET) | Ok((0, _))), "{read:?}");
    }
}
