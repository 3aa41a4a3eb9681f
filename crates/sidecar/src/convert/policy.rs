//! A VM's egress policy. What isn't understood is refused as a whole: half a policy might allow more than all of it.

use std::ops::RangeInclusive;

use agentos_proto::v1::{self, egress_rule};
use agentos_vm::address::CidrError;
use agentos_vm::policy::{
    Action, Base, EgressPolicy, MAX_RULES, NamePattern, PatternError, Protocol, Rule, Target,
};

use crate::errors::{Failure, chain};

/// The option that errors are about.
const OPTION: &str = "network";

/// Why a policy can't be had. People count rules from one.
#[derive(Debug, thiserror::Error)]
enum PolicyRefusal {
    #[error("policy has no base: it is `none` or `public`")]
    NoBase,
    #[error("policy has {count} rules, at most {MAX_RULES} are possible")]
    TooManyRules { count: usize },
    #[error("rule {number}")]
    Rule { number: usize, source: RuleRefusal },
}

#[derive(Debug, thiserror::Error)]
enum RuleRefusal {
    #[error("it neither allows nor denies")]
    NoAction,
    #[error("it has no target")]
    NoTarget,
    #[error("'{name}'")]
    Name { name: Box<str>, source: PatternError },
    #[error("'{network}'")]
    Network { network: Box<str>, source: CidrError },
    #[error("ports {first}-{last}: they are from 1 to 65535, the lower one first")]
    Ports { first: u32, last: u32 },
    #[error("{number} is no protocol")]
    Protocol { number: i32 },
    #[error("icmp has no ports")]
    IcmpPorts,
    #[error("a deny rule denies private addresses anyway")]
    PrivateDeny,
}

pub(crate) fn egress_policy(policy: v1::EgressPolicy) -> Result<EgressPolicy, Failure> {
    read(policy).map_err(|refusal| Failure::invalid(OPTION, format!("{OPTION}: {}", chain(&refusal))))
}

fn read(policy: v1::EgressPolicy) -> Result<EgressPolicy, PolicyRefusal> {
    let base = match policy.base() {
        v1::EgressBase::None => Base::None,
        v1::EgressBase::Public => Base::Public,
        v1::EgressBase::Unspecified => return Err(PolicyRefusal::NoBase),
    };
    let count = policy.rules.len();
    if count > MAX_RULES {
        return Err(PolicyRefusal::TooManyRules { count });
    }
    let rules = policy
        .rules
        .into_iter()
        .zip(1..)
        .map(|(message, number)| rule(message).map_err(|source| PolicyRefusal::Rule { number, source }));
    Ok(EgressPolicy::new(base, rules.collect::<Result<_, _>>()?))
}

fn rule(message: v1::EgressRule) -> Result<Rule, RuleRefusal> {
    let action = match message.action() {
        v1::EgressAction::Allow => Action::Allow,
        v1::EgressAction::Deny => Action::Deny,
        v1::EgressAction::Unspecified => return Err(RuleRefusal::NoAction),
    };
    let protocol = protocol(message.protocol)?;
    let ports = message.ports.map(ports).transpose()?;
    if ports.is_some() && protocol == Some(Protocol::Icmp) {
        return Err(RuleRefusal::IcmpPorts);
    }
    let private = message.private_addresses;
    if private && action == Action::Deny {
        return Err(RuleRefusal::PrivateDeny);
    }
    Ok(Rule { action, target: target(message.target)?, ports, protocol, private })
}

fn target(target: Option<egress_rule::Target>) -> Result<Target, RuleRefusal> {
    match target {
        None => Err(RuleRefusal::NoTarget),
        Some(egress_rule::Target::Any(v1::AnyTarget {})) => Ok(Target::Any),
        Some(egress_rule::Target::Name(name)) => match NamePattern::parse(&name) {
            Ok(pattern) => Ok(Target::Name(pattern)),
            Err(source) => Err(RuleRefusal::Name { name: name.into(), source }),
        },
        Some(egress_rule::Target::Network(network)) => match network.parse() {
            Ok(cidr) => Ok(Target::Network(cidr)),
            Err(source) => Err(RuleRefusal::Network { network: network.into(), source }),
        },
    }
}

fn ports(range: v1::PortRange) -> Result<RangeInclusive<u16>, RuleRefusal> {
    let v1::PortRange { first, last } = range;
    match (u16::try_from(first), u16::try_from(last)) {
        (Ok(low @ 1..), Ok(high)) if low <= high => Ok(low..=high),
        _ => Err(RuleRefusal::Ports { first, last }),
    }
}

/// A number that this version doesn't know must not be taken for the absent one, which is every protocol.
fn protocol(number: i32) -> Result<Option<Protocol>, RuleRefusal> {
    match v1::EgressProtocol::try_from(number) {
        Ok(v1::EgressProtocol::Unspecified) => Ok(None),
        Ok(v1::EgressProtocol::Tcp) => Ok(Some(Protocol::Tcp)),
        Ok(v1::EgressProtocol::Udp) => Ok(Some(Protocol::Udp)),
        Ok(v1::EgressProtocol::Icmp) => Ok(Some(Protocol::Icmp)),
        Err(_) => Err(RuleRefusal::Protocol { number }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(target: egress_rule::Target) -> v1::EgressRule {
        v1::EgressRule { action: v1::EgressAction::Allow.into(), target: Some(target), ..Default::default() }
    }

    fn name(name: &str) -> v1::EgressRule {
        allow(egress_rule::Target::Name(name.into()))
    }

    fn network(network: &str) -> v1::EgressRule {
        allow(egress_rule::Target::Network(network.into()))
    }

    fn with(rules: Vec<v1::EgressRule>) -> v1::EgressPolicy {
        v1::EgressPolicy { base: v1::EgressBase::None.into(), rules }
    }

    fn refusal(policy: v1::EgressPolicy) -> String {
        let detail = egress_policy(policy).unwrap_err().into_detail();
        assert_eq!(detail.kind(), v1::ErrorKind::InvalidInput);
        assert_eq!(detail.object, "network");
        detail.message
    }

    #[test]
    fn every_part_of_a_rule_arrives() {
        let message = v1::EgressRule {
            ports: Some(v1::PortRange { first: 8000, last: 8100 }),
            protocol: v1::EgressProtocol::Tcp.into(),
            private_addresses: true,
            ..name("*.npmjs.org")
        };
        let deny = v1::EgressRule { action: v1::EgressAction::Deny.into(), ..network("10.0.0.0/8") };
        let any = allow(egress_rule::Target::Any(v1::AnyTarget {}));
        let policy = egress_policy(with(vec![message, deny, any])).unwrap();
        let described: Vec<String> = (0..3).map(|index| policy.describe_rule(index)).collect();
        let first = "allow *.npmjs.org, tcp, ports 8000-8100, private addresses too";
        assert_eq!(described, [first, "deny 10.0.0.0/8", "allow *"]);
        assert_eq!(policy.base(), Base::None);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_rule() {
        let good = name("a.example");
        let bad = |rule| refusal(with(vec![good.clone(), rule]));
        assert_eq!(bad(name("a b")), "network: rule 2: 'a b': name holds ' ', which no host name does");
        let text = bad(network("10.1.0.0/8"));
        assert!(text.starts_with("network: rule 2: '10.1.0.0/8': ") && text.contains("10.0.0.0/8"), "{text}");
        assert!(bad(name("*")).contains("`*.example.com`"));
        assert!(bad(v1::EgressRule { target: None, ..good.clone() }).contains("no target"));
        assert!(bad(v1::EgressRule { action: 0, ..good.clone() }).contains("neither allows"));
        for (first, last) in [(0, 0), (0, 80), (81, 80), (1, 65_536), (u32::MAX, u32::MAX)] {
            let ports = Some(v1::PortRange { first, last });
            assert!(bad(v1::EgressRule { ports, ..good.clone() }).contains("from 1 to 65535"));
        }
        let icmp = v1::EgressProtocol::Icmp.into();
        let ports = Some(v1::PortRange { first: 1, last: 1 });
        assert!(bad(v1::EgressRule { ports, protocol: icmp, ..good.clone() }).contains("icmp has no ports"));
        let deny = v1::EgressAction::Deny.into();
        let private = v1::EgressRule { action: deny, private_addresses: true, ..good.clone() };
        assert!(bad(private).contains("anyway"));
    }

    #[test]
    fn what_a_newer_client_may_mean_is_not_guessed() {
        let unknown = 99;
        for message in [
            v1::EgressPolicy { base: unknown, rules: Vec::new() },
            v1::EgressPolicy::default(),
            with(vec![v1::EgressRule { action: unknown, ..name("a.example") }]),
            with(vec![v1::EgressRule { protocol: unknown, ..name("a.example") }]),
        ] {
            assert!(!refusal(message).is_empty());
        }
    }

    #[test]
    fn a_policy_has_an_end() {
        assert!(egress_policy(with(vec![name("a.example"); MAX_RULES])).is_ok());
        assert!(refusal(with(vec![name("a.example"); MAX_RULES + 1])).contains("257 rules"));
    }
}
