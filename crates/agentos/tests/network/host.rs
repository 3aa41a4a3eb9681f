//! What the host changes while a VM runs, and what it is told.

use std::net::SocketAddr;

use agentos::{
    AgentOs, AgentOsOptions, EgressPolicy, EgressProtocol, EgressRule, ErrorKind, Limits, NetworkEvent,
    NetworkEventKind, NetworkRefusal,
};

use crate::lab::Lab;
use crate::lab::echo;
use crate::lab::guest::{Held, attempt, check_refused, sh, with_probe};
use crate::lab::names::{Entry, Names};
use crate::support::world::World;
use crate::support::{eventually, within};

struct Place {
    lab: Lab,
    world: World,
    names: Names,
}

impl Place {
    /// One public-looking peer at two addresses and one private, where nobody listens yet.
    async fn new() -> Option<Self> {
        let lab = Lab::new()?;
        let names = lab.names();
        names.set("peer.example", Entry::addresses(&["198.51.100.7"]));
        lab.host("peer", &["198.51.100.7", "198.51.100.8"]);
        lab.host("internal", &["10.9.0.5"]);
        let world = lab.world().await;
        Some(Self { lab, world, names })
    }

    fn options(&self, policy: EgressPolicy) -> AgentOsOptions {
        with_probe(self.world.options().network(policy))
    }

    async fn vm(&self, policy: EgressPolicy) -> AgentOs {
        self.world.vm_with(self.options(policy)).await
    }
}

/// All that has happened so far.
async fn past(vm: &AgentOs) -> Vec<NetworkEvent> {
    let mut stream = vm.past_network_events();
    let mut events = Vec::new();
    while let Some(event) = within("the next event", stream.next()).await {
        events.push(event.unwrap());
    }
    events
}

async fn refusals(vm: &AgentOs) -> Vec<NetworkRefusal> {
    let refusal = |event: NetworkEvent| match event.kind {
        NetworkEventKind::Refused(refusal) => Some(refusal),
        _ => None,
    };
    past(vm).await.into_iter().filter_map(refusal).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_new_policy_cuts_what_it_no_longer_allows_and_nothing_else() {
    let Some(place) = Place::new().await else { return };
    let cut = echo::hold(place.lab.tcp("peer", "198.51.100.7:7"));
    let kept = echo::hold(place.lab.tcp("peer", "198.51.100.8:7"));
    let vm = place.vm(EgressPolicy::public()).await;
    let (first, second) =
        (Held::connect(&vm, "198.51.100.7:7").await, Held::connect(&vm, "198.51.100.8:7").await);
    eventually("both connections", || async { (cut.count(), kept.count()) == (1, 1) }).await;
    vm.set_network_policy(EgressPolicy::none().allow(EgressRule::network("198.51.100.8"))).await.unwrap();
    assert_eq!(first.end().await, "ECONNRESET");
    eventually("the peer to see the end", || async { cut.ended() == 1 }).await;
    check_refused("another of that kind", &attempt(&vm, "connect 198.51.100.7:7").await);
    assert_eq!(attempt(&vm, "connect 198.51.100.8:7").await, "ok");
    assert_eq!(cut.count(), 1);
    // Back again: the one that was allowed all the time still lives.
    vm.set_network_policy(EgressPolicy::public()).await.unwrap();
    assert_eq!(attempt(&vm, "connect 198.51.100.7:7").await, "ok");
    vm.set_network_policy(EgressPolicy::none()).await.unwrap();
    assert_eq!(second.end().await, "ECONNRESET");
}

#[tokio::test]
async fn a_policy_that_makes_no_sense_changes_nothing() {
    let Some(place) = Place::new().await else { return };
    echo::echo(place.lab.tcp("peer", "198.51.100.7:7"));
    echo::echo(place.lab.tcp("internal", "10.9.0.5:7"));
    let vm = place.vm(EgressPolicy::public()).await;
    for rule in [
        EgressRule::network("10.9.0.5/8"),
        EgressRule::name("*"),
        EgressRule::name("10.9.0.5"),
        EgressRule::network("x"),
    ] {
        let policy = EgressPolicy::none().allow(EgressRule::any()).allow(rule.clone());
        let refused = vm.set_network_policy(policy.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused:?}");
        let refused = AgentOs::create(place.options(policy)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused:?}");
    }
    assert_eq!(attempt(&vm, "say 198.51.100.7:7 hello").await, "hello");
    check_refused("what public refuses", &attempt(&vm, "say 10.9.0.5:7 hello").await);
}

#[tokio::test]
async fn every_refusal_is_told_with_its_destination_and_process() {
    let Some(place) = Place::new().await else { return };
    let vm = place.vm(EgressPolicy::public()).await;
    let tried = [
        ("connect 10.9.0.5:80", EgressProtocol::Tcp, "10.9.0.5:80"),
        ("datagram 10.9.0.5:7 hello", EgressProtocol::Udp, "10.9.0.5:7"),
        ("ping 169.254.169.254", EgressProtocol::Icmp, "169.254.169.254:0"),
        ("connect 198.51.100.53:53", EgressProtocol::Tcp, "198.51.100.53:53"),
    ];
    for (words, ..) in tried {
        attempt(&vm, words).await;
    }
    let told = refusals(&vm).await;
    assert_eq!(told.len(), tried.len(), "{told:#?}");
    for (refusal, (words, protocol, destination)) in told.iter().zip(tried) {
        assert_eq!((refusal.protocol, refusal.destination), (protocol, address(destination)), "{words}");
        assert!(!refusal.reason.is_empty() && refusal.rule.is_none(), "{refusal:?}");
        // Whose a ping was is not looked for.
        let process = refusal.process.as_ref().map(|process| process.command.as_str());
        let whose = format!("/probe/attempt {words}");
        assert_eq!(process, (protocol != EgressProtocol::Icmp).then_some(whose.as_str()), "{words}");
    }
    assert_eq!(vm.network_stats().await.unwrap().refused, told.len() as u64);
}

#[tokio::test]
async fn a_refusal_by_a_rule_names_it_and_the_name_that_was_meant() {
    let Some(place) = Place::new().await else { return };
    place.names.set("other.example", Entry::addresses(&["198.51.100.7"]));
    echo::echo(place.lab.tcp("peer", "198.51.100.7:80"));
    let policy = EgressPolicy::public()
        .deny(EgressRule::name("denied.example"))
        .deny(EgressRule::network("198.51.100.8").port(443))
        .deny(EgressRule::name("peer.example").port(80));
    let vm = place.vm(policy).await;
    attempt(&vm, "resolve denied.example").await;
    check_refused("by network", &attempt(&vm, "connect 198.51.100.8:443").await);
    let request = "'GET / HTTP/1.1\\r\\nHost: peer.example\\r\\n\\r\\n'";
    let said = attempt(&vm, &format!("say peer.example:80 {request}")).await;
    assert!(!said.starts_with("GET"), "{said}");
    let events = past(&vm).await;
    let asked = events.iter().find_map(|event| match &event.kind {
        NetworkEventKind::QueryRefused { name, reason } => Some((name.as_str(), reason.as_str())),
        _ => None,
    });
    let (name, reason) = asked.unwrap();
    assert!(name == "denied.example" && !reason.is_empty(), "{name}: {reason}");
    let told = refusals(&vm).await;
    let rules: Vec<_> = told.iter().filter_map(|refusal| refusal.rule.as_deref()).collect();
    assert!(rules[0].contains("198.51.100.8") && rules[0].contains("443"), "{rules:?}");
    assert!(rules[1].contains("peer.example") && rules[1].contains("80"), "{rules:?}");
    assert_eq!(told[1].names, ["peer.example"]);
}

#[tokio::test]
async fn events_come_as_they_happen_and_the_past_first() {
    let Some(place) = Place::new().await else { return };
    let vm = place.vm(EgressPolicy::none()).await;
    attempt(&vm, "connect 198.51.100.7:1").await;
    let mut stream = vm.network_events();
    let first = within("the past", stream.next()).await.unwrap().unwrap();
    attempt(&vm, "connect 198.51.100.7:2").await;
    let second = within("what happens", stream.next()).await.unwrap().unwrap();
    assert_eq!((first.sequence, second.sequence), (0, 1));
    assert!(first.at <= second.at);
    let ports = [first, second].map(|event| match event.kind {
        NetworkEventKind::Refused(refusal) => refusal.destination.port(),
        other => panic!("{other:?}"),
    });
    assert_eq!(ports, [1, 2]);
    vm.dispose().await.unwrap();
    let last = within("the end", stream.next()).await.unwrap();
    assert!(last.is_err(), "{last:?}");
}

#[tokio::test]
async fn a_connection_that_is_cut_is_told_with_the_process_that_had_it() {
    let Some(place) = Place::new().await else { return };
    echo::hold(place.lab.tcp("peer", "198.51.100.7:7"));
    let vm = place.vm(EgressPolicy::public()).await;
    let held = Held::connect(&vm, "198.51.100.7:7").await;
    let pid = held.pid();
    vm.set_network_policy(EgressPolicy::public().deny(EgressRule::network("198.51.100.0/24"))).await.unwrap();
    assert_eq!(held.end().await, "ECONNRESET");
    let told = refusals(&vm).await;
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0].destination, address("198.51.100.7:7"));
    assert!(told[0].rule.as_deref().is_some_and(|rule| rule.contains("198.51.100.0/24")), "{told:?}");
    assert_eq!(told[0].process.as_ref().map(|process| process.pid), Some(pid as _), "{told:?}");
}

#[tokio::test]
async fn what_goes_where_is_counted() {
    let Some(place) = Place::new().await else { return };
    echo::count_to_the_end(place.lab.tcp("peer", "198.51.100.7:7"));
    echo::echo_datagrams(place.lab.udp("peer", "198.51.100.8:7"));
    let vm = place.vm(EgressPolicy::public()).await;
    assert_eq!(attempt(&vm, "half-close peer.example:7 'all that was said'").await, "17 bytes");
    assert_eq!(attempt(&vm, "datagram 198.51.100.8:7 hello").await, "hello");
    let stats = vm.network_stats().await.unwrap();
    assert_eq!((stats.sent_bytes, stats.received_bytes), (17 + 5, 8 + 5), "{stats:?}");
    assert_eq!((stats.connections, stats.refused), (1, 0), "{stats:?}");
    let to = |address: &str| {
        let found = stats.destinations.iter().find(|one| one.address.to_string() == address).unwrap();
        (found.name.as_deref(), found.sent_bytes, found.received_bytes)
    };
    assert_eq!(to("198.51.100.7"), (Some("peer.example"), 17, 8));
    assert_eq!(to("198.51.100.8"), (None, 5, 5));
    eventually("no open connection", || async { vm.network_stats().await.unwrap().open_connections == 0 })
        .await;
}

#[tokio::test]
async fn a_vm_has_as_many_connections_as_its_limit_says() {
    let Some(place) = Place::new().await else { return };
    echo::echo(place.lab.tcp("peer", "198.51.100.7:7"));
    let limits = Limits::default().connections(10);
    let vm = place.world.vm_with(place.options(EgressPolicy::public()).limits(limits)).await;
    assert_eq!(attempt(&vm, "connect-many 198.51.100.7:7 10").await, "10");
    eventually("room again", || async { vm.network_stats().await.unwrap().open_connections == 0 }).await;
    check_refused("the eleventh", &attempt(&vm, "connect-many 198.51.100.7:7 11").await);
    eventually("room again", || async { vm.network_stats().await.unwrap().open_connections == 0 }).await;
    assert_eq!(attempt(&vm, "connect-many 198.51.100.7:7 10").await, "10");
}

#[tokio::test]
async fn a_vm_with_a_name_server_of_its_own_asks_that_one_alone() {
    let Some(place) = Place::new().await else { return };
    let other = place.lab.names_at("other", "10.9.0.53");
    other.set("peer.example", Entry::addresses(&["198.51.100.8"]));
    let options = place.options(EgressPolicy::public());
    let vm = place.world.vm_with(options.dns_server(address("10.9.0.53:53"))).await;
    assert_eq!(attempt(&vm, "resolve peer.example").await, "198.51.100.8");
    assert_eq!(place.names.asked(), [] as [&str; 0]);
    // It is the resolver's alone.
    check_refused("directly", &attempt(&vm, "connect 10.9.0.53:53").await);
    let said = sh(&vm, "cat /etc/resolv.conf").await;
    assert!(!said.contains("10.9.0.53"), "{said}");
    let usual = place.vm(EgressPolicy::public()).await;
    assert_eq!(attempt(&usual, "resolve peer.example").await, "198.51.100.7");
}
