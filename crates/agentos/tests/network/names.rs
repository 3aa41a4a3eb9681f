//! Names, and those who change what they lead to.

use agentos::{AgentOs, EgressPolicy, EgressRule};
use hickory_proto::op::ResponseCode;

use crate::lab::capture::{TCP, UDP};
use crate::lab::certificates::Authority;
use crate::lab::echo;
use crate::lab::guest::{attempt, check_refused, is_refusal, sh, with_probe};
use crate::lab::names::{Entry, Names};
use crate::lab::web::{Site, Web};
use crate::lab::{Lab, NAME_SERVER};
use crate::support::eventually;
use crate::support::world::World;

struct Place {
    lab: Lab,
    world: World,
    names: Names,
    site: Web,
    internal: Web,
}

impl Place {
    /// A public-looking web server and a private one, both on port 80.
    async fn new() -> Option<Self> {
        let lab = Lab::new()?;
        let names = lab.names();
        lab.host("web", &["198.51.100.80"]);
        lab.host("internal", &["10.9.0.5"]);
        let site = Web::serve(lab.tcp("web", "198.51.100.80:80"), Site::Text("public"));
        let internal = Web::serve(lab.tcp("internal", "10.9.0.5:80"), Site::Text("internal"));
        names.set("web.example", Entry::addresses(&["198.51.100.80"]));
        let world = lab.world().await;
        Some(Self { lab, world, names, site, internal })
    }

    async fn vm(&self, policy: EgressPolicy) -> AgentOs {
        self.world.vm_with(with_probe(self.world.options().network(policy))).await
    }
}

fn fetch(name: &str) -> String {
    format!("curl -sS -m 20 http://{name}/")
}

/// An address, but no connection: that the name is still answered shows that it was not the name that was refused.
fn is_unreached(said: &str) -> bool {
    said.starts_with("curl: (7)")
}

/// Asks as often as it takes for the former answer to be forgotten, and returns the first outcome that is another.
async fn fetch_until_not(vm: &AgentOs, name: &str, former: &str) -> String {
    let outcome = std::sync::Mutex::new(String::new());
    eventually("the name to change", || async {
        let now = sh(vm, &fetch(name)).await;
        let changed = now != former;
        *outcome.lock().unwrap() = now;
        changed
    })
    .await;
    outcome.into_inner().unwrap()
}

#[tokio::test]
async fn a_name_that_turns_to_a_private_address_leads_nowhere() {
    let Some(place) = Place::new().await else { return };
    let turning = || Entry::turns(&["198.51.100.80", "10.9.0.5"]);
    place.names.set("outside.example", turning());
    assert_eq!(place.lab.outside(&fetch("outside.example")).await, "public");
    assert_eq!(place.lab.outside(&fetch("outside.example")).await, "internal", "the control");
    // VMs of a sidecar share answers, so each has a name of its own.
    let policies = [
        ("one.example", EgressPolicy::public()),
        ("two.example", EgressPolicy::none().allow(EgressRule::name("two.example"))),
        ("three.example", EgressPolicy::public().allow(EgressRule::name("*.example"))),
    ];
    for (name, policy) in policies {
        place.names.set(name, turning());
        let vm = place.vm(policy).await;
        let capture = place.lab.capture();
        assert_eq!(sh(&vm, &fetch(name)).await, "public", "{name}");
        let turned = fetch_until_not(&vm, name, "public").await;
        assert!(is_unreached(&turned), "{name}: {turned}");
        let seen = capture.settle();
        seen.nothing_to("10.9.0.5");
        seen.something_to("198.51.100.80");
    }
    assert_eq!(place.internal.asked().len(), 1, "the control alone");
}

#[tokio::test]
async fn a_name_leads_to_a_private_address_only_where_the_rule_says_so() {
    let Some(place) = Place::new().await else { return };
    // Not even so to metadata, to the host's own addresses and to its loopback.
    place.lab.host("metadata", &["169.254.169.254"]);
    let closed = [
        Web::serve(place.lab.tcp("metadata", "169.254.169.254:80"), Site::Text("metadata")),
        Web::serve(place.lab.tcp("machine", "192.0.2.10:80"), Site::Text("own")),
        Web::serve(place.lab.tcp("machine", "127.0.0.1:80"), Site::Text("loopback")),
    ];
    let leads = [
        ("internal.example", "10.9.0.5", "internal"),
        ("metadata.example", "169.254.169.254", "metadata"),
        ("own.example", "192.0.2.10", "own"),
        ("loopback.example", "127.0.0.1", "loopback"),
    ];
    for (name, address, text) in leads {
        place.names.set(name, Entry::addresses(&[address]));
        assert_eq!(place.lab.outside(&fetch(name)).await, text, "the control");
    }
    let vm = place.vm(EgressPolicy::none().allow(EgressRule::name("*.example"))).await;
    for (name, ..) in leads {
        let said = sh(&vm, &fetch(name)).await;
        assert!(is_unreached(&said), "{name}: {said}");
    }
    let vm = place.vm(EgressPolicy::none().allow(EgressRule::name("*.example").to_private_addresses())).await;
    assert_eq!(sh(&vm, &fetch("internal.example")).await, "internal");
    for (name, ..) in &leads[1..] {
        let said = sh(&vm, &fetch(name)).await;
        assert!(is_unreached(&said), "{name}: {said}");
    }
    assert!(closed.iter().all(|web| web.asked().len() == 1), "the controls alone");
}

#[tokio::test]
async fn an_alias_of_a_denied_name_is_denied() {
    let Some(place) = Place::new().await else { return };
    place.names.set("denied.example", Entry::addresses(&["198.51.100.80"]));
    place.names.set("friendly.example", Entry::alias("denied.example"));
    let open = place.vm(EgressPolicy::public()).await;
    assert_eq!(attempt(&open, "resolve friendly.example").await, "198.51.100.80", "the control");
    let vm = place.vm(EgressPolicy::public().deny(EgressRule::name("denied.example"))).await;
    assert_eq!(attempt(&vm, "resolve denied.example").await, "unresolved");
    assert_eq!(attempt(&vm, "resolve friendly.example").await, "unresolved");
    assert_eq!(attempt(&vm, "resolve web.example").await, "198.51.100.80");
    let asked = place.site.asked().len();
    let said = sh(&vm, "curl -sS -m 20 http://friendly.example/").await;
    assert!(said.starts_with("curl: (6)"), "{said}");
    assert_eq!(place.site.asked().len(), asked);
}

#[tokio::test]
async fn only_the_vm_s_own_resolver_answers() {
    let Some(place) = Place::new().await else { return };
    let elsewhere = echo::echo_datagrams(place.lab.udp("web", "198.51.100.80:53"));
    let over_tls = echo::echo(place.lab.tcp("web", "198.51.100.80:853"));
    let ways = [
        format!("say {NAME_SERVER}:53 hello"),
        "say 198.51.100.80:853 hello".to_owned(),
        "datagram 198.51.100.80:53 hello".to_owned(),
        "datagram 198.51.100.80:853 hello".to_owned(),
    ];
    assert_eq!(place.lab.attempt_outside(&ways[2]).await, "hello", "the control");
    assert_eq!(place.lab.attempt_outside(&ways[1]).await, "hello", "the control");
    let vm = place.vm(EgressPolicy::public()).await;
    let capture = place.lab.capture();
    for way in &ways {
        check_refused(way, &attempt(&vm, way).await);
    }
    let seen = capture.settle();
    seen.nothing_holding(b"hello");
    seen.nothing_to("198.51.100.80");
    assert!(
        seen.to_port(TCP, "198.51.100.53:53").is_empty() && seen.to_port(UDP, "198.51.100.53:53").is_empty()
    );
    assert_eq!((elsewhere.count(), over_tls.count()), (1, 1), "the controls alone");
    // Who names a network means it.
    let vm = place.vm(EgressPolicy::public().allow(EgressRule::network("198.51.100.80"))).await;
    assert_eq!(attempt(&vm, &ways[2]).await, "hello");
}

/// To the network, a resolver over HTTPS is one more web server: `public` can't tell it from others, and doesn't promise
/// to. A policy by name does, and so does a rule that denies its name.
#[tokio::test]
async fn a_resolver_over_https_is_reached_like_any_site_and_only_so() {
    let Some(place) = Place::new().await else { return };
    let authority = Authority::new();
    place.lab.host("doh", &["198.51.100.8"]);
    place.names.set("dns.example", Entry::addresses(&["198.51.100.8"]));
    let tls = authority.server(&["dns.example"]);
    let resolver = Web::serve_tls(place.lab.tcp("doh", "198.51.100.8:443"), tls, Site::Text("an answer"));
    let policies = [
        (EgressPolicy::public(), true),
        (EgressPolicy::public().deny(EgressRule::name("dns.example")), false),
        (EgressPolicy::none().allow(EgressRule::name("web.example")), false),
    ];
    for (policy, is_reached) in policies {
        let vm = place.vm(policy).await;
        vm.write_file("/tmp/ca.pem", authority.pem()).await.unwrap();
        let ask = "curl -sS -m 20 --cacert /tmp/ca.pem --resolve dns.example:443:198.51.100.8 https://dns.example/dns-query?dns=AAAB";
        let said = sh(&vm, ask).await;
        assert_eq!(said == "an answer", is_reached, "{said}");
        assert!(is_reached || said.starts_with("curl: ("), "{said}");
    }
    assert_eq!(resolver.asked().len(), 1);
}

#[tokio::test]
async fn what_is_told_to_a_name_server_by_long_labels_never_leaves() {
    let Some(place) = Place::new().await else { return };
    // In one case: the resolver may write names in another.
    let secret = "onfsg4tfoqqhg5dbpeqhk3rb";
    let name = format!("{secret}.{}.evil.example", "x".repeat(60));
    let open = place.vm(EgressPolicy::public()).await;
    let capture = place.lab.capture();
    attempt(&open, &format!("resolve {name}")).await;
    assert!(!capture.settle().holding(secret.as_bytes()).is_empty(), "the control: public lets names out");
    let asked = place.names.asked().len();
    let vm = place.vm(EgressPolicy::none().allow(EgressRule::name("web.example"))).await;
    let capture = place.lab.capture();
    for name in [
        name.clone(),
        name.to_uppercase(),
        format!("{secret}.web.example.evil.example"),
        format!("{secret}.web.example"),
    ] {
        assert_eq!(attempt(&vm, &format!("resolve {name}")).await, "unresolved", "{name}");
    }
    assert_eq!(attempt(&vm, "resolve web.example").await, "198.51.100.80");
    let seen = capture.settle();
    seen.nothing_holding(secret.as_bytes());
    seen.nothing_holding(secret.to_uppercase().as_bytes());
    let asked = place.names.asked().split_off(asked);
    assert!(asked.iter().all(|name| name == "web.example"), "{asked:?}");
}

#[tokio::test]
async fn a_name_server_that_fails_is_a_failure_at_once_and_harms_no_other_name() {
    let Some(place) = Place::new().await else { return };
    place.names.set("broken.example", Entry::failure(ResponseCode::ServFail));
    let vm = place.vm(EgressPolicy::public()).await;
    let said = sh(&vm, "python3 -c 'import socket; socket.getaddrinfo(\"broken.example\", 80)'").await;
    assert!(said.contains("Temporary failure in name resolution"), "{said}");
    let said = sh(&vm, "python3 -c 'import socket; socket.getaddrinfo(\"none.example\", 80)'").await;
    assert!(said.contains("Name or service not known"), "{said}");
    assert_eq!(attempt(&vm, "resolve web.example").await, "198.51.100.80");
}

#[tokio::test]
async fn an_address_that_no_answer_gave_has_no_name() {
    let Some(place) = Place::new().await else { return };
    let vm = place.vm(EgressPolicy::none().allow(EgressRule::name("web.example"))).await;
    let capture = place.lab.capture();
    let direct = "say 198.51.100.80:80 'GET / HTTP/1.1\\r\\nHost: web.example\\r\\n\\r\\n'";
    let said = attempt(&vm, direct).await;
    assert!(is_refusal(&said), "{said}");
    capture.settle().nothing_to("198.51.100.80");
    assert_eq!(sh(&vm, "curl -sS http://web.example/").await, "public");
    assert!(attempt(&vm, direct).await.starts_with("HTTP/1.1 200"), "after the name was asked for");
}
