//! Egress policies.

use agentos_proto::v1::{self, egress_rule};

use crate::policy::{Action, EgressPolicy, EgressProtocol, EgressRule, PolicyBase, Target};

pub(crate) fn egress_policy(policy: EgressPolicy) -> v1::EgressPolicy {
    let base = match policy.base {
        PolicyBase::None => v1::EgressBase::None,
        PolicyBase::Public => v1::EgressBase::Public,
    };
    let rules = policy.rules.into_iter().map(|(action, of)| rule(action, of));
    v1::EgressPolicy { base: base.into(), rules: rules.collect() }
}

fn rule(action: Action, rule: EgressRule) -> v1::EgressRule {
    let EgressRule { target, ports, protocol, private_addresses } = rule;
    let action = match action {
        Action::Allow => v1::EgressAction::Allow,
        Action::Deny => v1::EgressAction::Deny,
    };
    let target = match target {
        Target::Any => egress_rule::Target::Any(v1::AnyTarget {}),
        Target::Name(name) => egress_rule::Target::Name(name),
        Target::Network(network) => egress_rule::Target::Network(network),
    };
    let protocol = match protocol {
        None => v1::EgressProtocol::Unspecified,
        Some(EgressProtocol::Tcp) => v1::EgressProtocol::Tcp,
        Some(EgressProtocol::Udp) => v1::EgressProtocol::Udp,
        Some(EgressProtocol::Icmp) => v1::EgressProtocol::Icmp,
    };
    let ports =
        ports.map(|ports| v1::PortRange { first: u32::from(*ports.start()), last: u32::from(*ports.end()) });
    v1::EgressRule {
        action: action.into(),
        target: Some(target),
        ports,
        protocol: protocol.into(),
        private_addresses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_policy_reaches_the_request() {
        let policy = EgressPolicy::none()
            .allow(
                EgressRule::name("*.a.example")
                    .port(443)
                    .protocol(EgressProtocol::Tcp)
                    .to_private_addresses(),
            )
            .deny(EgressRule::network("10.0.0.0/8").ports(1..=9))
            .allow(EgressRule::any());
        let message = egress_policy(policy);
        assert_eq!(message.base(), v1::EgressBase::None);
        let first = v1::EgressRule {
            action: v1::EgressAction::Allow.into(),
            target: Some(egress_rule::Target::Name("*.a.example".into())),
            ports: Some(v1::PortRange { first: 443, last: 443 }),
            protocol: v1::EgressProtocol::Tcp.into(),
            private_addresses: true,
        };
        let second = v1::EgressRule {
            action: v1::EgressAction::Deny.into(),
            target: Some(egress_rule::Target::Network("10.0.0.0/8".into())),
            ports: Some(v1::PortRange { first: 1, last: 9 }),
            ..Default::default()
        };
        let third = v1::EgressRule {
            action: v1::EgressAction::Allow.into(),
            target: Some(egress_rule::Target::Any(v1::AnyTarget {})),
            ..Default::default()
        };
        assert_eq!(message.rules, [first, second, third]);
        assert_eq!(egress_policy(EgressPolicy::public()).base(), v1::EgressBase::Public);
    }
}
