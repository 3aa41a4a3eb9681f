//! The laboratory itself: what these tests rest on, tried without a VM.

use crate::lab::Lab;
use crate::lab::certificates::Authority;
use crate::lab::echo;
use crate::lab::guest::{attempt, with_probe};
use crate::lab::names::Entry;
use crate::lab::web::{Site, Web};

#[tokio::test]
async fn two_labs_have_the_same_addresses_and_do_not_meet() {
    let (Some(one), Some(other)) = (Lab::new(), Lab::new()) else { return };
    one.host("web", &["198.51.100.80"]);
    other.host("web", &["198.51.100.80"]);
    let here = Web::serve(one.tcp("web", "198.51.100.80:80"), Site::Text("one"));
    let there = Web::serve(other.tcp("web", "198.51.100.80:80"), Site::Text("other"));
    assert_eq!(one.outside("curl -sS http://198.51.100.80/").await, "one");
    assert_eq!(other.outside("curl -sS http://198.51.100.80/").await, "other");
    assert_eq!((here.asked().len(), there.asked().len()), (1, 1));
}

#[tokio::test]
async fn the_machine_reaches_its_hosts_and_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    lab.host("mixed", &["10.9.0.5", "169.254.169.254", "2a00:db8:2::5"]);
    for address in ["10.9.0.5:7", "169.254.169.254:7", "[2a00:db8:2::5]:7"] {
        echo::echo(lab.tcp("mixed", address));
        assert_eq!(lab.attempt_outside(&format!("say {address} hello")).await, "hello", "{address}");
    }
    echo::echo_datagrams(lab.udp("mixed", "10.9.0.5:7"));
    assert_eq!(lab.attempt_outside("datagram 10.9.0.5:7 hello").await, "hello");
    assert_eq!(lab.attempt_outside("ping 10.9.0.5").await, "ok");
    assert_eq!(lab.attempt_outside("connect 10.9.0.5:8").await, "ECONNREFUSED");
    assert_eq!(lab.attempt_outside("connect 198.51.100.1:80").await, "ENETUNREACH");
    // Nothing of it is in the namespace that the test runs in.
    let routes = std::fs::read_to_string("/proc/net/fib_trie").unwrap();
    assert!(!routes.contains("10.9.0.5"), "{routes}");
}

#[tokio::test]
async fn names_are_answered_and_change() {
    let Some(lab) = Lab::new() else { return };
    let names = lab.names();
    names.set("web.example", Entry::addresses(&["198.51.100.80", "2a00:db8:2::80"]));
    names.set("www.example", Entry::alias("web.example"));
    names.set("shifty.example", Entry::turns(&["198.51.100.80", "10.9.0.5"]));
    assert_eq!(lab.attempt_outside("resolve web.example").await, "198.51.100.80,2a00:db8:2::80");
    assert_eq!(lab.attempt_outside("resolve www.example").await, "198.51.100.80,2a00:db8:2::80");
    assert_eq!(lab.attempt_outside("resolve shifty.example").await, "198.51.100.80");
    assert_eq!(lab.attempt_outside("resolve shifty.example").await, "10.9.0.5");
    assert_eq!(lab.attempt_outside("resolve none.example").await, "unresolved");
    assert!(names.asked().contains(&"none.example".to_owned()), "{:?}", names.asked());
}

#[tokio::test]
async fn a_server_with_tls_is_believed_by_who_knows_its_authority() {
    let Some(lab) = Lab::new() else { return };
    let (names, authority) = (lab.names(), Authority::new());
    names.set("web.example", Entry::addresses(&["198.51.100.80"]));
    lab.host("web", &["198.51.100.80"]);
    let tls = authority.server(&["web.example"]);
    let web = Web::serve_tls(lab.tcp("web", "198.51.100.80:443"), tls, Site::Text("over TLS"));
    let pem = lab.file("ca.pem", authority.pem());
    let fetched = lab.outside(&format!("curl -sS --cacert {} https://web.example/a?b", pem.display())).await;
    assert_eq!(fetched, "over TLS");
    let asked = web.asked();
    assert_eq!(asked[0].server_name.as_deref(), Some("web.example"));
    assert_eq!((asked[0].target.as_str(), asked[0].header("host")), ("/a?b", "web.example"));
}

#[tokio::test]
async fn a_capture_sees_what_went_and_settles_when_nothing_did() {
    let Some(lab) = Lab::new() else { return };
    lab.host("internal", &["10.9.0.5"]);
    let accepted = echo::echo(lab.tcp("internal", "10.9.0.5:7"));
    let capture = lab.capture();
    capture.settle().nothing_to("10.9.0.5");
    assert_eq!(lab.attempt_outside("say 10.9.0.5:7 'a telling word'").await, "a telling word");
    let seen = capture.settle();
    seen.something_to("10.9.0.5");
    // Once to the peer, once back.
    let sources: Vec<_> =
        seen.holding(b"a telling word").iter().map(|packet| packet.source.ip().to_string()).collect();
    assert_eq!(sources, ["192.0.2.10", "10.9.0.5"]);
    seen.nothing_holding(b"another word");
    assert_eq!(accepted.count(), 1);
    // What goes to the machine itself is seen too.
    assert_eq!(lab.attempt_outside("connect 127.0.0.1:1234").await, "ECONNREFUSED");
    capture.settle().something_to("127.0.0.1");
}

#[tokio::test]
async fn a_sidecar_of_the_machine_makes_vms_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let world = lab.world().await;
    let vm = world.vm_with(with_probe(world.options())).await;
    assert_eq!(attempt(&vm, "resolve 127.0.0.1").await, "127.0.0.1");
    vm.dispose().await.unwrap();
    let namespace = lab.namespace().to_owned();
    assert!(std::path::Path::new(&namespace).exists());
    drop(lab);
    assert!(!std::path::Path::new(&namespace).exists());
}
