//! The default: the public internet, and nothing that is near the host.

use agentos::AgentOs;

use crate::lab::echo::{self, Accepted};
use crate::lab::guest::{attempt, check_refused, sh, with_probe};
use crate::lab::names::{Entry, Names};
use crate::lab::web::{Site, Web};
use crate::lab::{Lab, MACHINE};
use crate::support::world::World;

/// What is not public, each by what it is.
const NEAR: [(&str, &str); 9] = [
    ("10.9.0.5", "private"),
    ("172.16.9.5", "private"),
    ("192.168.9.5", "private"),
    ("100.64.9.5", "shared by a provider's customers"),
    ("169.254.9.5", "link-local"),
    ("169.254.169.254", "metadata"),
    ("100.100.100.200", "metadata"),
    ("168.63.129.16", "metadata"),
    ("fd00:9::5", "unique local"),
];

/// A public-looking site, a host with everything that isn't, and a VM with the default policy.
struct Neighbourhood {
    lab: Lab,
    world: World,
    names: Names,
    site: Web,
    near: Vec<Accepted>,
}

impl Neighbourhood {
    async fn new() -> Option<Self> {
        let lab = Lab::new()?;
        let names = lab.names();
        names.set("web.example", Entry::addresses(&["198.51.100.80"]));
        lab.host("web", &["198.51.100.80"]);
        let site = Web::serve(lab.tcp("web", "198.51.100.80:80"), Site::Text("the public site"));
        let addresses = NEAR.map(|(address, _)| address);
        lab.host("near", &addresses);
        let near = addresses.map(|address| echo::echo(lab.tcp("near", &at(address, 80)))).to_vec();
        let world = lab.world().await;
        Some(Self { lab, world, names, site, near })
    }

    /// It has a network: without one, all would be refused.
    async fn vm(&self) -> AgentOs {
        let vm = self.world.vm_with(with_probe(self.world.options())).await;
        assert_eq!(attempt(&vm, "connect web.example:80").await, "ok");
        vm
    }
}

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

#[tokio::test]
async fn what_is_public_is_reached_by_address_and_by_name() {
    let Some(place) = Neighbourhood::new().await else { return };
    let vm = place.vm().await;
    assert_eq!(sh(&vm, "curl -sS http://198.51.100.80/").await, "the public site");
    assert_eq!(sh(&vm, "curl -sS http://web.example/").await, "the public site");
    sh(&vm, "curl -sS -d 'what is posted' http://web.example/post").await;
    let asked = place.site.asked();
    assert_eq!((asked[2].method.as_str(), asked[2].target.as_str()), ("POST", "/post"));
    assert_eq!(asked[2].body, "what is posted");
    assert_eq!((asked[0].header("host"), asked[1].header("host")), ("198.51.100.80", "web.example"));
    assert_eq!(place.names.asked()[0], "web.example");
}

#[tokio::test]
async fn what_is_near_the_host_is_refused_at_once_and_nothing_leaves() {
    let Some(place) = Neighbourhood::new().await else { return };
    for (address, _) in NEAR {
        let said = place.lab.attempt_outside(&format!("say {} hello", at(address, 80))).await;
        assert_eq!(said, "hello", "the control: {address}");
    }
    let vm = place.vm().await;
    let capture = place.lab.capture();
    for (address, what) in NEAR {
        check_refused(what, &attempt(&vm, &format!("say {} hello", at(address, 80))).await);
    }
    let seen = capture.settle();
    NEAR.iter().for_each(|(address, _)| seen.nothing_to(address));
    assert!(place.near.iter().all(|accepted| accepted.count() == 1), "the controls alone");
}

#[tokio::test]
async fn datagrams_and_echo_requests_to_what_is_near_are_refused_as_well() {
    let Some(place) = Neighbourhood::new().await else { return };
    let socket = place.lab.udp("near", "10.9.0.5:7");
    let echoed = echo::echo_datagrams(socket);
    assert_eq!(place.lab.attempt_outside("datagram 10.9.0.5:7 hello").await, "hello");
    assert_eq!(place.lab.attempt_outside("ping 10.9.0.5").await, "ok");
    let vm = place.vm().await;
    let capture = place.lab.capture();
    check_refused("a datagram", &attempt(&vm, "datagram 10.9.0.5:7 hello").await);
    check_refused("an echo request", &attempt(&vm, "ping 10.9.0.5").await);
    capture.settle().nothing_to("10.9.0.5");
    assert_eq!(echoed.count(), 1);
}

#[tokio::test]
async fn the_host_s_own_addresses_are_refused_though_they_look_public() {
    let Some(place) = Neighbourhood::new().await else { return };
    let own = MACHINE.map(|address| at(address, 8080));
    let servers = own.clone().map(|address| echo::echo(place.lab.tcp("machine", &address)));
    for address in &own {
        assert_eq!(place.lab.attempt_outside(&format!("say {address} hello")).await, "hello");
    }
    let vm = place.vm().await;
    for address in &own {
        check_refused(address, &attempt(&vm, &format!("say {address} hello")).await);
    }
    assert!(servers.iter().all(|accepted| accepted.count() == 1), "the controls alone");
}

/// The host's loopback is not the VM's, however it is written, and no other address leads there.
#[tokio::test]
async fn the_host_s_loopback_has_no_spelling_in_a_vm() {
    let Some(place) = Neighbourhood::new().await else { return };
    let host = echo::echo(place.lab.tcp("machine", "127.0.0.1:8080"));
    place.names.set("home.example", Entry::addresses(&["127.0.0.1", "::1", "0.0.0.0"]));
    let spellings = [
        "127.0.0.1:8080",
        "localhost:8080",
        "2130706433:8080",
        "0x7f000001:8080",
        "0177.0.0.1:8080",
        "127.1:8080",
        "0:8080",
        "[::ffff:127.0.0.1]:8080",
        "home.example:8080",
    ];
    for address in spellings {
        let said = place.lab.attempt_outside(&format!("say {address} hello")).await;
        assert_eq!(said, "hello", "the control: {address}");
    }
    let others =
        ["[::1]:8080", "127.9.9.9:8080", "10.0.2.2:8080", "10.0.2.15:8080", "host.agentos.internal:8080"];
    let vm = place.vm().await;
    let capture = place.lab.capture();
    for address in spellings.iter().chain(&others) {
        let said = attempt(&vm, &format!("say {address} hello")).await;
        // A name that leads to nothing permitted may as well have no address.
        assert!(said == "ENXIO" || crate::lab::guest::is_refusal(&said), "{address}: {said}");
    }
    let clients = [
        "curl -sS -m 10 http://2130706433:8080/",
        "curl -sS -m 10 http://0x7f.0.0.1:8080/",
        "curl -sS -m 10 'http://[::ffff:7f00:1]:8080/'",
        "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://0177.0.0.1:8080/\", timeout=10).read())'",
        "node -e 'fetch(\"http://0x7f000001:8080/\").then(a => a.text()).then(console.log)'",
    ];
    for client in clients {
        let said = sh(&vm, client).await;
        assert!(said.to_lowercase().contains("refused") || said.contains("onnect"), "{client}: {said}");
    }
    capture.settle().nothing_holding(b"hello");
    assert_eq!(host.count(), spellings.len(), "the controls alone");
}

#[tokio::test]
async fn what_is_near_has_no_other_spelling_either() {
    let Some(place) = Neighbourhood::new().await else { return };
    place.names.set("near.example", Entry::addresses(&["10.9.0.5"]));
    place.names.set("metadata.example", Entry::addresses(&["169.254.169.254"]));
    let spellings = [
        "168361989:80",
        "0x0a090005:80",
        "012.011.0.5:80",
        "10.589829:80",
        "[::ffff:10.9.0.5]:80",
        "[::ffff:169.254.169.254]:80",
        "2852039166:80",
        "near.example:80",
        "metadata.example:80",
    ];
    for address in spellings {
        let said = place.lab.attempt_outside(&format!("say {address} hello")).await;
        assert_eq!(said, "hello", "the control: {address}");
    }
    let vm = place.vm().await;
    let capture = place.lab.capture();
    for address in spellings {
        check_refused(address, &attempt(&vm, &format!("say {address} hello")).await);
    }
    let seen = capture.settle();
    NEAR.iter().for_each(|(address, _)| seen.nothing_to(address));
}

#[tokio::test]
async fn a_redirect_to_what_is_near_leads_nowhere() {
    let Some(place) = Neighbourhood::new().await else { return };
    let to = "http://10.9.0.5:8000/latest/meta-data";
    let secret = Web::serve(place.lab.tcp("near", "10.9.0.5:8000"), Site::Text("what a guest must not see"));
    Web::serve(place.lab.tcp("web", "198.51.100.80:8000"), Site::Redirect(to.to_owned()));
    let follow = "curl -sS -L -m 20 http://198.51.100.80:8000/";
    assert_eq!(place.lab.outside(follow).await, "what a guest must not see", "the control");
    let vm = place.vm().await;
    let capture = place.lab.capture();
    let said = sh(&vm, follow).await;
    assert!(said.starts_with("curl: (7)"), "{said}");
    capture.settle().nothing_to("10.9.0.5");
    assert_eq!(secret.asked().len(), 1);
}

#[tokio::test]
async fn where_nobody_is_the_guest_hears_what_the_host_would() {
    let Some(place) = Neighbourhood::new().await else { return };
    let vm = place.vm().await;
    for address in ["198.51.100.80:9", "198.51.100.99:80"] {
        let outside = place.lab.attempt_outside(&format!("connect {address}")).await;
        assert!(["ECONNREFUSED", "ENETUNREACH"].contains(&outside.as_str()), "{outside}");
        check_refused(address, &attempt(&vm, &format!("connect {address}")).await);
    }
}

#[tokio::test]
async fn a_port_that_the_host_lists_is_reached_and_the_port_beside_it_is_not() {
    let Some(place) = Neighbourhood::new().await else { return };
    echo::echo(place.lab.tcp("machine", "127.0.0.1:8080"));
    let beside = echo::echo(place.lab.tcp("machine", "127.0.0.1:8081"));
    let vm = place.world.vm_with(with_probe(place.world.options().loopback_exempt_port(8080))).await;
    for host in ["127.0.0.1", "localhost", "host.agentos.internal"] {
        assert_eq!(attempt(&vm, &format!("say {host}:8080 hello")).await, "hello", "{host}");
        check_refused(host, &attempt(&vm, &format!("say {host}:8081 hello")).await);
    }
    assert_eq!(beside.count(), 0);
}
