//! What a connection says it is for: TLS SNI, HTTP Host, or nothing. Rules by name go by it, and by the answers of names.

use agentos::{AgentOs, EgressPolicy, EgressRule};

use crate::lab::Lab;
use crate::lab::certificates::Authority;
use crate::lab::echo::{self, Accepted};
use crate::lab::guest::{attempt, is_refusal, sh, with_probe};
use crate::lab::names::Entry;
use crate::lab::web::{Asked, Site, Web};
use crate::support::world::World;

/// Two names on one address, as behind any of the large front ends: one is permitted.
struct Place {
    lab: Lab,
    world: World,
    plain: Web,
    secure: Web,
    raw: Accepted,
    authority: Authority,
}

impl Place {
    async fn new() -> Option<Self> {
        let lab = Lab::new()?;
        let (names, authority) = (lab.names(), Authority::new());
        for name in ["good.example", "bad.example"] {
            names.set(name, Entry::addresses(&["198.51.100.80"]));
        }
        lab.host("front", &["198.51.100.80"]);
        let plain = Web::serve(lab.tcp("front", "198.51.100.80:80"), Site::Text("plain"));
        let tls = authority.server(&["good.example", "bad.example"]);
        let secure = Web::serve_tls(lab.tcp("front", "198.51.100.80:443"), tls, Site::Text("secure"));
        let raw = echo::echo(lab.tcp("front", "198.51.100.80:7"));
        let world = lab.world().await;
        Some(Self { lab, world, plain, secure, raw, authority })
    }

    async fn vm(&self, policy: EgressPolicy) -> AgentOs {
        let vm = self.world.vm_with(with_probe(self.world.options().network(policy))).await;
        vm.write_file("/tmp/ca.pem", self.authority.pem()).await.unwrap();
        vm
    }

    /// A policy by name, and one that denies by name what is otherwise public.
    async fn vms(&self) -> [AgentOs; 2] {
        [
            self.vm(EgressPolicy::none().allow(EgressRule::name("good.example"))).await,
            self.vm(EgressPolicy::public().deny(EgressRule::name("bad.example"))).await,
        ]
    }
}

fn hosts(asked: &[Asked]) -> Vec<&str> {
    asked.iter().map(|asked| asked.header("host")).collect()
}

#[tokio::test]
async fn plain_http_goes_by_its_host() {
    let Some(place) = Place::new().await else { return };
    let fronted = "curl -sS -m 20 -H 'Host: bad.example' http://good.example/";
    assert_eq!(place.lab.outside(fronted).await, "plain", "the control");
    for vm in place.vms().await {
        assert_eq!(sh(&vm, "curl -sS http://good.example/").await, "plain");
        let said = sh(&vm, fronted).await;
        assert!(said.starts_with("curl: ("), "{said}");
    }
    assert_eq!(hosts(&place.plain.asked()), ["bad.example", "good.example", "good.example"]);
}

#[tokio::test]
async fn by_name_who_is_through_with_a_request_hears_the_answer() {
    let Some(place) = Place::new().await else { return };
    let words = "half-close good.example:80 'GET / HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n'";
    for vm in place.vms().await {
        let said = attempt(&vm, words).await;
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("plain"), "{said}");
    }
}

/// Heads that one server reads as one name and the next as another.
#[tokio::test]
async fn by_name_a_request_that_says_two_names_says_none() {
    let Some(place) = Place::new().await else { return };
    let heads = [
        "GET / HTTP/1.1\\r\\nHost: good.example\\r\\nHost: bad.example\\r\\n\\r\\n",
        "GET / HTTP/1.1\\r\\nHost: bad.example\\r\\nHost: good.example\\r\\n\\r\\n",
        "GET http://bad.example/ HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n",
        "GET http://good.example/ HTTP/1.1\\r\\nHost: bad.example\\r\\n\\r\\n",
        "GET / HTTP/1.1\\r\\nHost : good.example\\r\\nHost: bad.example\\r\\n\\r\\n",
        "GET / HTTP/1.1\\r\\nHost: good.example@bad.example\\r\\n\\r\\n",
    ];
    let two = place.lab.attempt_outside(&format!("say good.example:80 '{}'", heads[2])).await;
    assert_eq!(two, "HTTP/1.1 200 OK", "the control");
    let vm = place.vm(EgressPolicy::none().allow(EgressRule::name("good.example"))).await;
    let capture = place.lab.capture();
    for head in heads {
        let said = attempt(&vm, &format!("say good.example:80 '{head}'")).await;
        assert!(said == "end" || is_refusal(&said), "{head}: {said}");
    }
    capture.settle().nothing_to("198.51.100.80");
    assert_eq!(sh(&vm, "curl -sS http://good.example/").await, "plain");
}

#[tokio::test]
async fn tls_goes_by_the_name_in_its_first_message() {
    let Some(place) = Place::new().await else { return };
    let pem = place.lab.file("ca.pem", place.authority.pem());
    let fronted = |pem: &str| {
        format!(
            "curl -sS -m 20 --cacert {pem} --connect-to bad.example:443:good.example:443 https://bad.example/"
        )
    };
    assert_eq!(place.lab.outside(&fronted(pem.to_str().unwrap())).await, "secure", "the control");
    let client = "openssl s_client -connect good.example:443 -CAfile /tmp/ca.pem -verify_return_error";
    for vm in place.vms().await {
        assert_eq!(sh(&vm, "curl -sS --cacert /tmp/ca.pem https://good.example/").await, "secure");
        let said = sh(&vm, &fronted("/tmp/ca.pem")).await;
        assert!(said.starts_with("curl: ("), "{said}");
        let said = sh(&vm, &format!("{client} -servername good.example </dev/null")).await;
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        let said = sh(&vm, &format!("{client} -servername bad.example </dev/null")).await;
        assert!(!said.contains("BEGIN CERTIFICATE"), "{said}");
    }
    let names: Vec<_> = place.secure.asked().into_iter().filter_map(|asked| asked.server_name).collect();
    assert_eq!(
        names,
        ["bad.example", "good.example", "good.example"],
        "one request outside, one from each VM"
    );
}

#[tokio::test]
async fn by_name_nothing_goes_out_that_does_not_say_a_name() {
    let Some(place) = Place::new().await else { return };
    let vm = place.vm(EgressPolicy::none().allow(EgressRule::name("good.example"))).await;
    assert_eq!(place.lab.attempt_outside("say good.example:7 hello").await, "hello", "the control");
    let capture = place.lab.capture();
    for words in [
        "say good.example:7 hello",
        "say good.example:443 hello",
        "say good.example:80 'SSH-2.0-x\\r\\n'",
        "say good.example:443 'GET / HTTP/1.0\\r\\n\\r\\n'",
    ] {
        let said = attempt(&vm, words).await;
        assert!(said == "end" || is_refusal(&said), "{words}: {said}");
    }
    let said = sh(&vm, "openssl s_client -connect good.example:443 -noservername </dev/null").await;
    assert!(!said.contains("BEGIN CERTIFICATE"), "{said}");
    // Not even a connection was made for them.
    capture.settle().nothing_to("198.51.100.80");
    assert_eq!(place.raw.count(), 1, "the control alone");
    // Where the rule is by address, what is said doesn't matter.
    let vm = place.vm(EgressPolicy::none().allow(EgressRule::network("198.51.100.80"))).await;
    assert_eq!(attempt(&vm, "say 198.51.100.80:7 hello").await, "hello");
}

/// An address that no name led to could be that of a name that is denied.
#[tokio::test]
async fn a_name_that_is_denied_is_not_reached_by_leaving_it_out() {
    let Some(place) = Place::new().await else { return };
    let hello = "openssl s_client -connect 198.51.100.80:443 -noservername </dev/null";
    let request = "say 198.51.100.80:80 'GET / HTTP/1.0\\r\\n\\r\\n'";
    // Said so that not every reader takes it for a request.
    let hidden = "say 198.51.100.80:80 '\\r\\nGET / HTTP/1.1\\r\\nHost: bad.example\\r\\n\\r\\n'";
    let reached = |hello: &str, request: &str| {
        (hello.contains("BEGIN CERTIFICATE"), request.starts_with("HTTP/1") && request.contains(" 200 OK"))
    };
    let outside = (place.lab.outside(hello).await, place.lab.attempt_outside(request).await);
    assert_eq!(reached(&outside.0, &outside.1), (true, true), "the control");
    assert!(place.lab.attempt_outside(hidden).await.contains(" 200 OK"), "the control");
    let denied = || EgressRule::name("bad.example");
    for (policy, expected) in [
        (EgressPolicy::public().deny(denied()), false),
        // Whoever names the network means it.
        (EgressPolicy::public().allow(EgressRule::network("198.51.100.0/24")).deny(denied()), true),
        (EgressPolicy::public().deny(denied().port(8443)), true),
    ] {
        let vm = place.vm(policy.clone()).await;
        let inside = (sh(&vm, hello).await, attempt(&vm, request).await);
        assert_eq!(reached(&inside.0, &inside.1), (expected, expected), "{policy:?}: {inside:?}");
        let said = attempt(&vm, hidden).await;
        let is_open = policy == EgressPolicy::public().deny(denied().port(8443));
        assert_eq!(said.contains(" 200 OK"), is_open, "{policy:?}: {said}");
        let preface = attempt(&vm, "say 198.51.100.80:7 'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'").await;
        assert_eq!(preface.starts_with("PRI"), expected, "{policy:?}: {preface}");
        // What has no name to say goes where it goes.
        assert_eq!(attempt(&vm, "say 198.51.100.80:7 hello").await, "hello");
    }
    // A name led there, and not the one that is denied.
    let vm = place.vm(EgressPolicy::public().deny(denied())).await;
    assert_eq!(attempt(&vm, "resolve good.example").await, "198.51.100.80");
    let inside = (sh(&vm, hello).await, attempt(&vm, request).await);
    assert_eq!(reached(&inside.0, &inside.1), (true, true), "{inside:?}");
}

#[tokio::test]
async fn rules_are_read_in_order_and_the_last_match_wins() {
    let Some(place) = Place::new().await else { return };
    let both = EgressPolicy::none()
        .allow(EgressRule::name("*.example"))
        .deny(EgressRule::name("bad.example"))
        .allow(EgressRule::name("bad.example").port(443));
    let vm = place.vm(both).await;
    assert_eq!(sh(&vm, "curl -sS http://good.example/").await, "plain");
    assert_eq!(sh(&vm, "curl -sS --cacert /tmp/ca.pem https://bad.example/").await, "secure");
    let said = sh(&vm, "curl -sS -m 20 http://bad.example/").await;
    assert!(said.starts_with("curl: ("), "{said}");
    assert_eq!(hosts(&place.plain.asked()), ["good.example"]);
    let none = place.vm(EgressPolicy::none()).await;
    let said = sh(&none, "curl -sS -m 20 http://good.example/").await;
    assert!(said.starts_with("curl: (6)"), "{said}");
}
