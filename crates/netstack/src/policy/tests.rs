use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::address::{HostAddresses, classify};

const OWN: &str = "198.51.100.9";

fn own() -> HostAddresses {
    [OWN.parse::<IpAddr>().unwrap()].into_iter().collect()
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn rule(action: Action, target: &str) -> Rule {
    let target = match (target, target.parse()) {
        ("any", _) => Target::Any,
        (_, Ok(network)) => Target::Network(network),
        (name, Err(_)) => Target::Name(NamePattern::parse(name).unwrap()),
    };
    Rule { action, target, ports: None, protocol: None, private: false }
}

fn allow(target: &str) -> Rule {
    rule(Action::Allow, target)
}

fn deny(target: &str) -> Rule {
    rule(Action::Deny, target)
}

impl Rule {
    fn port(self, port: u16) -> Self {
        Self { ports: Some(port..=port), ..self }
    }

    fn over(self, protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), ..self }
    }

    fn private_too(self) -> Self {
        Self { private: true, ..self }
    }
}

fn none<const N: usize>(rules: [Rule; N]) -> EgressPolicy {
    EgressPolicy::new(Base::None, rules.to_vec())
}

fn public<const N: usize>(rules: [Rule; N]) -> EgressPolicy {
    EgressPolicy::new(Base::Public, rules.to_vec())
}

fn decide(policy: &EgressPolicy, protocol: Protocol, destination: &str, names: &[&str]) -> Decision {
    let names: Vec<HostName> = names.iter().copied().map(host).collect();
    let flow = Flow { protocol, destination: destination.parse().unwrap(), names: &names };
    policy.decide(&flow, &own())
}

fn tcp(policy: &EgressPolicy, destination: &str, names: &[&str]) -> Decision {
    decide(policy, Protocol::Tcp, destination, names)
}

fn udp(policy: &EgressPolicy, destination: &str, names: &[&str]) -> Decision {
    decide(policy, Protocol::Udp, destination, names)
}

/// What becomes of a TCP connection to port 443 of 203.0.113.7 that says a name.
fn claim(policy: &EgressPolicy, names: &[&str], claimed: Option<&str>) -> Result<(), Reason> {
    let names: Vec<HostName> = names.iter().copied().map(host).collect();
    let destination = "203.0.113.7:443".parse().unwrap();
    let flow = Flow { protocol: Protocol::Tcp, destination, names: &names };
    let claimed = claimed.map(host);
    policy.decide_named(&flow, &own(), claimed.as_ref()).map_err(|refusal| refusal.reason)
}

/// What becomes of the same connection, if it speaks TLS and says no name.
fn say_no_name(policy: &EgressPolicy, names: &[&str]) -> Result<(), Refusal> {
    let names: Vec<HostName> = names.iter().copied().map(host).collect();
    let destination = "203.0.113.7:443".parse().unwrap();
    policy.decide_nameless(&Flow { protocol: Protocol::Tcp, destination, names: &names }, &own())
}

fn refused(reason: Reason, rule: impl Into<Option<usize>>) -> Decision {
    Decision::Refuse(Refusal { reason, rule: rule.into() })
}

fn private(class: AddressClass) -> Reason {
    Reason::Private { class }
}

const MUST: Decision = Decision::Gate(Gate::MustName);
const MAY: Decision = Decision::Gate(Gate::MayName);

#[test]
fn a_denied_name_is_not_reached_by_keeping_silent_about_it() {
    let (no_name, denied) = (Reason::NoName, deny("bad.example"));
    let policy = public([allow("10.0.0.0/8"), denied.clone()]);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &[]), MAY);
    assert_eq!(say_no_name(&policy, &[]), Err(Refusal { reason: no_name, rule: Some(1) }));
    // What speaks something else has no name to say.
    assert_eq!(claim(&policy, &[], None), Ok(()));
    // A name led there, and it isn't the denied one; or it is, among others or alone.
    assert_eq!(say_no_name(&policy, &["good.example"]), Ok(()));
    assert_eq!(say_no_name(&policy, &["good.example", "bad.example"]).unwrap_err().reason, no_name);
    assert_eq!(say_no_name(&policy, &["bad.example"]).unwrap_err().reason, Reason::Rule);
    // The network is the user's own word, wherever it stands.
    for rules in [[allow("203.0.113.0/24"), denied.clone()], [denied.clone(), allow("203.0.113.7")]] {
        assert_eq!(say_no_name(&public(rules.clone()), &[]), Ok(()));
        assert_eq!(say_no_name(&none(rules), &[]), Ok(()));
    }
    assert_eq!(say_no_name(&public([allow("any"), denied]), &[]).unwrap_err().reason, no_name);
    // Where no rule denies a name, or only at another port, there is nothing to keep silent about.
    assert_eq!(say_no_name(&public([deny("bad.example").port(80)]), &[]), Ok(()));
    assert_eq!(say_no_name(&none([allow("good.example")]), &["good.example"]).unwrap_err().reason, no_name);
}

#[test]
fn none_lets_nothing_out() {
    let policy = EgressPolicy::none();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        assert_eq!(decide(&policy, protocol, "203.0.113.7:443", &["a.example"]), refused(Reason::Base, None));
    }
    assert!(policy.decide_query(&host("a.example")).is_err());
}

#[test]
fn public_is_the_internet_and_nothing_else_whatever_name_led_there() {
    let policy = EgressPolicy::default();
    assert_eq!(tcp(&policy, "203.0.113.7:22", &[]), Decision::Allow);
    assert_eq!(udp(&policy, "[2001:db8::1]:443", &["a.example"]), Decision::Allow);
    for (destination, class) in [
        ("10.0.0.1:80", AddressClass::Private),
        ("[::ffff:10.0.0.1]:80", AddressClass::Private),
        ("127.0.0.1:80", AddressClass::Loopback),
        ("0.0.0.0:80", AddressClass::Unspecified),
        ("100.64.0.1:80", AddressClass::Shared),
        ("169.254.1.1:80", AddressClass::LinkLocal),
        ("169.254.169.254:80", AddressClass::Metadata),
        ("[64:ff9b::a9fe:a9fe]:80", AddressClass::Metadata),
        ("224.0.0.251:5353", AddressClass::Multicast),
    ] {
        for names in [&[][..], &["public.example"]] {
            assert_eq!(tcp(&policy, destination, names), refused(private(class), None), "{destination}");
            assert_eq!(udp(&policy, destination, names), refused(private(class), None), "{destination}");
        }
    }
    assert_eq!(tcp(&policy, "198.51.100.9:22", &[]), refused(Reason::OwnAddress, None));
    assert_eq!(tcp(&policy, "[::ffff:198.51.100.9]:22", &[]), refused(Reason::OwnAddress, None));
}

#[test]
fn other_resolvers_are_reached_by_a_rule_for_their_network_only() {
    for port in [53, 853] {
        let to = format!("203.0.113.53:{port}");
        for policy in [
            EgressPolicy::public(),
            none([allow("any")]),
            none([allow("dns.example")]),
            public([allow("dns.example").port(port)]),
        ] {
            for decision in [tcp(&policy, &to, &["dns.example"]), udp(&policy, &to, &["dns.example"])] {
                let Decision::Refuse(refusal) = decision else { panic!("{policy:?}: {decision:?}") };
                assert_eq!(refusal.reason, Reason::OtherResolver);
            }
        }
        let policy = public([allow("203.0.113.53").port(port)]);
        assert_eq!(udp(&policy, &to, &[]), Decision::Allow);
        assert_eq!(tcp(&public([allow("0.0.0.0/0")]), &to, &[]), Decision::Allow);
    }
}

#[test]
fn the_last_rule_that_matches_wins() {
    let policy = public([deny("203.0.113.0/24"), allow("203.0.113.7"), deny("any").port(25)]);
    assert_eq!(tcp(&policy, "203.0.113.8:80", &[]), refused(Reason::Rule, 0));
    assert_eq!(tcp(&policy, "203.0.113.7:80", &[]), Decision::Allow);
    assert_eq!(tcp(&policy, "203.0.113.7:25", &[]), refused(Reason::Rule, 2));
    assert_eq!(tcp(&policy, "203.0.114.1:80", &[]), Decision::Allow);
}

#[test]
fn ports_and_protocols_narrow_a_rule() {
    let policy = none([allow("any").port(443).over(Protocol::Tcp)]);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &[]), Decision::Allow);
    assert_eq!(tcp(&policy, "203.0.113.7:444", &[]), refused(Reason::Base, None));
    assert_eq!(udp(&policy, "203.0.113.7:443", &[]), refused(Reason::Base, None));
    let everything = none([allow("any")]);
    let icmp = |policy: &EgressPolicy| decide(policy, Protocol::Icmp, "203.0.113.7:0", &[]);
    assert_eq!(icmp(&everything), Decision::Allow);
    // ICMP has no ports, so that a rule with ports is not about it.
    assert_eq!(icmp(&none([allow("any").port(0)])), refused(Reason::Base, None));
}

#[test]
fn a_name_leads_to_public_addresses_unless_told_otherwise() {
    let policy = none([allow("db.example")]);
    let home = "10.1.2.3:5432";
    assert_eq!(tcp(&policy, "203.0.113.7:443", &["db.example"]), MUST);
    assert_eq!(tcp(&policy, home, &["db.example"]), refused(private(AddressClass::Private), 0));
    let policy = none([allow("db.example").private_too()]);
    assert_eq!(tcp(&policy, home, &["db.example"]), MUST);
    assert_eq!(tcp(&policy, "100.64.0.1:80", &["db.example"]), MUST);
    for destination in ["169.254.169.254:80", "127.0.0.1:80", "169.254.1.1:80", "[fd00:ec2::254]:80"] {
        let class = classify(destination.parse::<std::net::SocketAddr>().unwrap().ip());
        assert_eq!(tcp(&policy, destination, &["db.example"]), refused(private(class), 0), "{destination}");
    }
    assert_eq!(tcp(&policy, "198.51.100.9:80", &["db.example"]), refused(Reason::OwnAddress, 0));
}

#[test]
fn a_network_opens_what_it_is_about() {
    for (network, destination, open) in [
        ("10.0.0.0/8", "10.1.2.3:80", true),
        ("10.0.0.0/8", "[::ffff:10.1.2.3]:80", true),
        ("10.1.2.3", "10.1.2.3:80", true),
        ("fd00::/8", "[fd00::1]:80", true),
        ("169.254.0.0/16", "169.254.1.1:80", true),
        ("169.254.169.254", "169.254.169.254:80", true),
        // Not what merely lies in it.
        ("0.0.0.0/0", "10.1.2.3:80", false),
        ("0.0.0.0/0", "169.254.169.254:80", false),
        ("::/0", "[fd00::1]:80", false),
        ("::/0", "[64:ff9b:1::a00:1]:80", false),
        ("::/0", "[64:ff9b::a00:1]:80", false),
        ("169.254.0.0/16", "169.254.169.254:80", false),
        ("100.64.0.0/10", "100.100.100.200:80", false),
        // The host itself only by its address alone.
        ("127.0.0.0/8", "127.0.0.1:80", false),
        ("127.0.0.1", "127.0.0.1:80", true),
        ("198.51.100.0/24", "198.51.100.9:80", false),
        ("198.51.100.9", "198.51.100.9:80", true),
        ("0.0.0.0", "0.0.0.0:80", false),
    ] {
        let decision = tcp(&none([allow(network)]), destination, &[]);
        assert_eq!(decision == Decision::Allow, open, "{network} {destination}: {decision:?}");
    }
    let policy = none([allow("0.0.0.0/0").private_too()]);
    assert_eq!(tcp(&policy, "10.1.2.3:80", &[]), Decision::Allow);
}

#[test]
fn an_allow_rule_that_does_not_reach_takes_nothing_back() {
    let policy = none([allow("10.0.0.0/8"), allow("any")]);
    assert_eq!(tcp(&policy, "10.1.2.3:80", &[]), Decision::Allow);
    // But it is the one to blame where nothing else allows.
    let policy = none([deny("10.0.0.0/8"), allow("any")]);
    assert_eq!(tcp(&policy, "10.1.2.3:80", &[]), refused(private(AddressClass::Private), 1));
}

#[test]
fn a_denied_network_is_denied_in_every_spelling() {
    let policy = public([deny("203.0.113.0/24")]);
    for destination in ["[::ffff:203.0.113.7]:80", "[64:ff9b::203.0.113.7]:80", "[2002:cb00:7107::]:80"] {
        assert_eq!(tcp(&policy, destination, &[]), refused(Reason::Rule, 0), "{destination}");
    }
}

#[test]
fn by_name_an_address_without_a_name_is_refused() {
    let policy = none([allow("*.example").port(443)]);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &[]), refused(Reason::NotPinned, None));
    assert_eq!(tcp(&policy, "203.0.113.7:80", &[]), refused(Reason::Base, None));
    assert_eq!(tcp(&policy, "203.0.113.7:443", &["other.org"]), refused(Reason::Base, None));
}

#[test]
fn by_name_a_connection_says_a_name_that_led_there() {
    let policy = none([allow("*.example")]);
    let pinned = ["a.example", "b.org"];
    assert_eq!(tcp(&policy, "203.0.113.7:443", &pinned), MUST);
    assert_eq!(claim(&policy, &pinned, Some("a.example")), Ok(()));
    assert_eq!(claim(&policy, &pinned, None), Err(Reason::NoName));
    assert_eq!(claim(&policy, &pinned, Some("c.example")), Err(Reason::NameMismatch));
    assert_eq!(claim(&policy, &pinned, Some("b.org")), Err(Reason::Base));
    assert_eq!(claim(&policy, &[], Some("a.example")), Err(Reason::NotPinned));
}

#[test]
fn a_denied_name_is_caught_by_what_the_connection_says() {
    let policy = public([deny("*.bad.example").port(443)]);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &[]), MAY);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &["good.example"]), MAY);
    assert_eq!(tcp(&policy, "203.0.113.7:80", &[]), Decision::Allow);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &["a.bad.example"]), refused(Reason::Rule, 0));
    assert_eq!(claim(&policy, &[], None), Ok(()));
    assert_eq!(claim(&policy, &[], Some("good.example")), Ok(()));
    assert_eq!(claim(&policy, &[], Some("a.bad.example")), Err(Reason::Rule));
}

#[test]
fn a_deny_by_name_that_is_taken_back_for_all_needs_no_look() {
    let policy = public([deny("bad.example"), allow("any")]);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &[]), Decision::Allow);
    assert_eq!(tcp(&policy, "203.0.113.7:443", &["bad.example"]), Decision::Allow);
}

#[test]
fn where_a_good_and_a_bad_name_share_an_address_the_connection_must_say_which() {
    let policy = public([deny("bad.example")]);
    let pinned = ["bad.example", "good.example"];
    assert_eq!(tcp(&policy, "203.0.113.7:443", &pinned), MUST);
    assert_eq!(claim(&policy, &pinned, Some("good.example")), Ok(()));
    assert_eq!(claim(&policy, &pinned, Some("bad.example")), Err(Reason::Rule));
    assert_eq!(claim(&policy, &pinned, None), Err(Reason::NoName));
}

#[test]
fn datagrams_go_where_every_name_may() {
    let policy = none([allow("*.example")]);
    assert_eq!(udp(&policy, "203.0.113.7:123", &["a.example", "b.example"]), Decision::Allow);
    assert_eq!(
        udp(&policy, "203.0.113.7:123", &["a.example", "b.org"]),
        refused(Reason::SharedAddress, None)
    );
    assert_eq!(udp(&policy, "203.0.113.7:123", &[]), refused(Reason::NotPinned, None));
    assert_eq!(decide(&policy, Protocol::Icmp, "203.0.113.7:0", &["a.example"]), Decision::Allow);
}

#[test]
fn quic_is_refused_where_names_matter() {
    let to = "203.0.113.7:443";
    assert_eq!(udp(&none([allow("*.example")]), to, &["a.example"]), refused(Reason::Quic, None));
    assert_eq!(udp(&public([deny("bad.example")]), to, &[]), refused(Reason::Quic, None));
    assert_eq!(udp(&EgressPolicy::public(), to, &["a.example"]), Decision::Allow);
    // An allowed address needs no name.
    assert_eq!(udp(&none([allow("*.example"), allow("203.0.113.7")]), to, &["a.example"]), Decision::Allow);
}

#[test]
fn only_names_that_may_be_reached_are_asked_for() {
    let asks = |policy: &EgressPolicy, name: &str| policy.decide_query(&host(name)).is_ok();
    let policy = public([deny("*.ads.example"), allow("fine.ads.example"), deny("mail.example").port(25)]);
    assert!(asks(&policy, "a.example") && asks(&policy, "fine.ads.example") && asks(&policy, "mail.example"));
    assert!(!asks(&policy, "x.ads.example"));
    let policy = none([allow("*.example").port(443), deny("bad.example"), deny("odd.example").port(1)]);
    assert!(asks(&policy, "a.example") && asks(&policy, "odd.example"));
    assert!(!asks(&policy, "bad.example") && !asks(&policy, "secret.evil.org"));
    assert!(!asks(&none([allow("203.0.113.0/24")]), "a.example"));
    assert!(asks(&none([allow("any").port(443)]), "a.example"));
    assert!(!asks(&public([deny("any")]), "a.example"));
}

#[test]
fn refusals_and_rules_are_said_in_words() {
    let policy =
        none([allow("*.npmjs.org").port(443).over(Protocol::Tcp), allow("10.0.0.0/8").private_too()]);
    assert_eq!(policy.describe_rule(0), "allow *.npmjs.org, tcp, port 443");
    assert_eq!(policy.describe_rule(1), "allow 10.0.0.0/8, private addresses too");
    assert_eq!(policy.describe_rule(2), "no rule");
    let ports = Rule { ports: Some(1..=9), ..deny("any") };
    assert_eq!(ports.to_string(), "deny *, ports 1-9");
    let text = |reason, rule| Refusal { reason, rule }.to_string();
    assert_eq!(text(Reason::Rule, Some(0)), "rule 1 denies it");
    let metadata = Reason::Private { class: AddressClass::Metadata };
    assert_eq!(text(metadata, Some(1)), "rule 2 allows it, but does not reach cloud metadata addresses");
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let target = prop_oneof![
        Just("any"),
        Just("a.example"),
        Just("*.example"),
        Just("203.0.113.0/24"),
        Just("10.0.0.0/8"),
        Just("0.0.0.0/0"),
        Just("::/0"),
    ];
    let ports = prop_oneof![Just(None), Just(Some(443..=443)), Just(Some(1..=1024))];
    let protocol = prop_oneof![Just(None), Just(Some(Protocol::Tcp)), Just(Some(Protocol::Udp))];
    (any::<bool>(), target, ports, protocol, any::<bool>()).prop_map(
        |(allows, target, ports, protocol, private)| {
            let action = if allows { Action::Allow } else { Action::Deny };
            Rule { ports, protocol, private, ..rule(action, target) }
        },
    )
}

fn any_policy() -> impl Strategy<Value = EgressPolicy> {
    let base = prop_oneof![Just(Base::None), Just(Base::Public)];
    (base, prop::collection::vec(any_rule(), 0..8)).prop_map(|(base, rules)| EgressPolicy::new(base, rules))
}

fn any_address() -> impl Strategy<Value = Ipv4Addr> {
    let known = ["203.0.113.7", "10.1.2.3", "169.254.169.254", "127.0.0.1", OWN, "0.0.0.0", "8.8.8.8"];
    prop_oneof![
        prop::sample::select(known.to_vec()).prop_map(|text| text.parse().unwrap()),
        any::<u32>().prop_map(Ipv4Addr::from_bits),
    ]
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)]
}

fn any_names() -> impl Strategy<Value = Vec<HostName>> {
    prop::sample::subsequence(vec!["a.example", "b.example", "c.org"], 0..=3)
        .prop_map(|names| names.into_iter().map(host).collect())
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(443), Just(53), any::<u16>()]
}

proptest! {
    #[test]
    fn the_spelling_of_an_address_changes_nothing(
        policy in any_policy(), address in any_address(), names in any_names(),
        port in any_port(), protocol in any_protocol(),
    ) {
        let flow = |address: IpAddr| Flow { protocol, destination: (address, port).into(), names: &names };
        let plain = policy.decide(&flow(address.into()), &own());
        prop_assert_eq!(policy.decide(&flow(address.to_ipv6_mapped().into()), &own()), plain);
    }

    #[test]
    fn nothing_but_its_own_address_opens_what_is_the_hosts(
        policy in any_policy(), names in any_names(), port in any_port(), protocol in any_protocol(),
    ) {
        // None of the rules above is for one address.
        for text in ["169.254.169.254", "127.0.0.1", "::1", "::", "::ffff:127.0.0.1", "fd00:ec2::254", OWN] {
            let address: IpAddr = text.parse().unwrap();
            let flow = Flow { protocol, destination: (address, port).into(), names: &names };
            let decision = policy.decide(&flow, &own());
            prop_assert!(matches!(decision, Decision::Refuse(_)), "{}: {:?}", text, decision);
        }
    }

    #[test]
    fn a_final_deny_refuses_all_that_it_is_for(
        policy in any_policy(), address in any_address(), names in any_names(),
        port in any_port(), protocol in any_protocol(),
    ) {
        let rules = [policy.rules(), &[deny("any")]].concat();
        let policy = EgressPolicy::new(policy.base(), rules);
        let flow = Flow { protocol, destination: (IpAddr::V4(address), port).into(), names: &names };
        prop_assert!(matches!(policy.decide(&flow, &own()), Decision::Refuse(_)));
        for name in &names {
            prop_assert!(policy.decide_query(name).is_err());
            prop_assert!(policy.decide_named(&flow, &own(), Some(name)).is_err());
        }
    }

    #[test]
    fn a_deny_rule_more_never_allows_more(
        policy in any_policy(), denied in any_rule(), at: prop::sample::Index, address in any_address(),
        names in any_names(), port in any_port(), protocol in any_protocol(),
    ) {
        let mut rules = policy.rules().to_vec();
        rules.insert(at.index(rules.len() + 1), Rule { action: Action::Deny, ..denied });
        let stricter = EgressPolicy::new(policy.base(), rules);
        let flow = Flow { protocol, destination: (IpAddr::V4(address), port).into(), names: &names };
        let claims = [None, Some(host("a.example")), Some(host("c.org"))];
        for claimed in claims.iter().map(Option::as_ref) {
            let before = policy.decide_named(&flow, &own(), claimed).is_ok();
            let after = stricter.decide_named(&flow, &own(), claimed).is_ok();
            prop_assert!(before || !after, "{:?} for {:?}", stricter, claimed);
        }
        let [before, after] =
            [&policy, &stricter].map(|policy| policy.decide_nameless(&flow, &own()).is_ok());
        prop_assert!(before || !after, "{:?} without a name", stricter);
    }

    #[test]
    fn rules_by_name_alone_let_nothing_out_without_a_name(
        rules in prop::collection::vec(any_rule(), 0..8), address in any_address(),
        names in any_names(), port in any_port(),
    ) {
        let by_name = |rule: &Rule| rule.action == Action::Deny || matches!(rule.target, Target::Name(_));
        let policy = EgressPolicy::new(Base::None, rules.into_iter().filter(by_name).collect());
        let flow = Flow { protocol: Protocol::Tcp, destination: (IpAddr::V4(address), port).into(), names: &names };
        prop_assert!(policy.decide(&flow, &own()) != Decision::Allow);
        prop_assert!(policy.decide_named(&flow, &own(), None).is_err());
        prop_assert!(policy.decide_nameless(&flow, &own()).is_err());
        let stranger = host("never.pinned.example");
        prop_assert!(policy.decide_named(&flow, &own(), Some(&stranger)).is_err());
    }
}
