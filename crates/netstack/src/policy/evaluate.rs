//! How a policy comes to its verdict.
//!
//! [`EgressPolicy::verdict`] is the heart: what the policy says of a flow that is for one name, or for none. A decision
//! about a flow with several names puts such verdicts together.

use super::{Action, Base, Decision, EgressPolicy, Flow, Gate, Protocol, Reason, Refusal, Rule, Target};
use crate::address::{AddressClass, HostAddresses, classify};
use crate::name::HostName;

/// DNS, and DNS over TLS or QUIC.
const RESOLVER_PORTS: [u16; 2] = [53, 853];
const QUIC_PORT: u16 = 443;

/// Allowed by the rule of this index, or by the base.
type Verdict = Result<Option<usize>, Refusal>;

impl EgressPolicy {
    /// Whether the flow may leave.
    pub fn decide(&self, flow: &Flow, own: &HostAddresses) -> Decision {
        let nameless = self.verdict(flow, own, None);
        let by_name = self.of_names(flow, own);
        let decision = match flow.protocol {
            Protocol::Tcp => self.decide_connection(flow, nameless, &by_name),
            Protocol::Udp | Protocol::Icmp => self.decide_datagram(flow, nameless, &by_name),
        };
        decision.unwrap_or_else(Decision::Refuse)
    }

    /// Whether the connection may go on, now that it has said it is for `claimed` (SNI or HTTP Host); None: it said
    /// nothing readable. The policy and the pins of this moment count, so that a connection without a gate is allowed.
    ///
    /// # Errors
    ///
    /// Says why it may not.
    pub fn decide_named(
        &self,
        flow: &Flow,
        own: &HostAddresses,
        claimed: Option<&HostName>,
    ) -> Result<(), Refusal> {
        match (self.decide(flow, own), claimed) {
            (Decision::Refuse(refusal), _) => Err(refusal),
            (Decision::Allow, _) | (Decision::Gate(Gate::MayName), None) => Ok(()),
            (Decision::Gate(Gate::MustName), None) => Err(Refusal { reason: Reason::NoName, rule: None }),
            (Decision::Gate(Gate::MustName), Some(claimed)) if !flow.names.contains(claimed) => {
                Err(Refusal { reason: Reason::NameMismatch, rule: None })
            }
            (Decision::Gate(_), Some(claimed)) => self.verdict(flow, own, Some(claimed)).map(|_| ()),
        }
    }

    /// Whether a connection may go on that speaks TLS or HTTP, in which clients say a name, and says none that could be
    /// read. Where a denied name could be kept silent about, it goes only to an address to which an allowed name led, or
    /// which a rule by network is about.
    ///
    /// # Errors
    ///
    /// Says why it may not.
    pub fn decide_nameless(&self, flow: &Flow, own: &HostAddresses) -> Result<(), Refusal> {
        match self.decide(flow, own) {
            // No name that led there is denied: else the gate would be another.
            Decision::Gate(Gate::MayName) if !flow.names.is_empty() => Ok(()),
            Decision::Gate(Gate::MayName) => {
                let by = self.verdict(flow, own, None)?;
                let is_meant = by.and_then(|by| self.rules.get(by)).is_some_and(Rule::is_by_network);
                let rule = self.denied_name(flow, by);
                if is_meant { Ok(()) } else { Err(Refusal { reason: Reason::NoName, rule }) }
            }
            _ => self.decide_named(flow, own, None),
        }
    }

    /// Whether a query for the name may leave at all: names carry data out as well as anything. It may, where the last
    /// rule that is about the name allows it on some port, or where the base is public and no rule is about it. A deny
    /// rule that leaves some port or protocol open is none about the name.
    ///
    /// # Errors
    ///
    /// Says why it may not.
    pub fn decide_query(&self, name: &HostName) -> Result<(), Refusal> {
        for (index, rule) in self.rules.iter().enumerate().rev() {
            let about = match &rule.target {
                Target::Any => true,
                Target::Name(pattern) => pattern.matches(name),
                Target::Network(_) => false,
            };
            match rule.action {
                Action::Allow if about => return Ok(()),
                Action::Deny if about && rule.ports.is_none() && rule.protocol.is_none() => {
                    return Err(Refusal { reason: Reason::Rule, rule: Some(index) });
                }
                Action::Allow | Action::Deny => {}
            }
        }
        match self.base {
            Base::Public => Ok(()),
            Base::None => Err(Refusal { reason: Reason::Base, rule: None }),
        }
    }

    fn decide_connection(
        &self,
        flow: &Flow,
        nameless: Verdict,
        by_name: &NameVerdicts,
    ) -> Result<Decision, Refusal> {
        match (nameless, by_name.refused, by_name.allowed) {
            // Several names of which one is denied: the connection must say that it is for another.
            (_, Some(_), true) | (Err(_), _, true) => Ok(Decision::Gate(Gate::MustName)),
            (_, Some(refusal), false) | (Err(refusal), None, false) => Err(refusal),
            (Ok(by), None, _) if self.denied_name(flow, by).is_some() => Ok(Decision::Gate(Gate::MayName)),
            (Ok(_), None, _) => Ok(Decision::Allow),
        }
    }

    fn decide_datagram(
        &self,
        flow: &Flow,
        nameless: Verdict,
        by_name: &NameVerdicts,
    ) -> Result<Decision, Refusal> {
        let by = match (nameless, by_name.refused, by_name.allowed) {
            (_, Some(_), true) => return Err(Refusal { reason: Reason::SharedAddress, rule: None }),
            (_, Some(refusal), false) | (Err(refusal), None, false) => return Err(refusal),
            (Err(_), None, true) => None,
            (Ok(by), None, _) => Some(by),
        };
        let by_names_alone = by.is_none();
        let quic = flow.protocol == Protocol::Udp && flow.destination.port() == QUIC_PORT;
        if quic && (by_names_alone || by.is_some_and(|by| self.denied_name(flow, by).is_some())) {
            return Err(Refusal { reason: Reason::Quic, rule: None });
        }
        Ok(Decision::Allow)
    }

    /// What the policy says of each pinned name, put together.
    fn of_names(&self, flow: &Flow, own: &HostAddresses) -> NameVerdicts {
        let mut verdicts = NameVerdicts::default();
        // A guest can have thousands of names for one address; where no rule is by name, they need no look.
        if !self.rules.iter().any(|rule| matches!(rule.target, Target::Name(_))) {
            return verdicts;
        }
        for name in flow.names {
            match self.verdict(flow, own, Some(name)) {
                Ok(_) => verdicts.allowed = true,
                Err(refusal) => {
                    // One that names a rule says more.
                    let known = verdicts.refused.filter(|known| known.rule.is_some());
                    verdicts.refused = known.or(Some(refusal));
                }
            }
            if verdicts.allowed && verdicts.refused.is_some() {
                break;
            }
        }
        verdicts
    }

    /// The last rule by which some name would turn into a refusal what the rule of index `by`, or the base, allows.
    fn denied_name(&self, flow: &Flow, by: Option<usize>) -> Option<usize> {
        let first_after = by.map_or(0, |by| by + 1);
        let later = self.rules.iter().enumerate().skip(first_after).rev();
        let mut denying = later.filter(|(_, rule)| {
            rule.action == Action::Deny && matches!(rule.target, Target::Name(_)) && rule.is_for(flow)
        });
        denying.next().map(|(index, _)| index)
    }

    /// What the policy says of the flow if it is for `name`, or for no name.
    fn verdict(&self, flow: &Flow, own: &HostAddresses, name: Option<&HostName>) -> Verdict {
        let place = Place::of(flow, own);
        // The last allow rule that matches, but doesn't reach the address: what people look for when it is refused.
        let mut short = None;
        for (index, rule) in self.rules.iter().enumerate().rev() {
            if !rule.matches(flow, name) {
                continue;
            }
            let refusal = match rule.action {
                Action::Deny => {
                    let refusal = Refusal { reason: Reason::Rule, rule: Some(index) };
                    return Err(short.unwrap_or(refusal));
                }
                Action::Allow => match place.obstacle(rule) {
                    None => return Ok(Some(index)),
                    Some(reason) => Refusal { reason, rule: Some(index) },
                },
            };
            short = short.or(Some(refusal));
        }
        let reason = match self.base {
            Base::Public => place.obstacle_to_public(false),
            Base::None if name.is_none() && self.could_be_by_name(flow) => Some(Reason::NotPinned),
            Base::None => Some(Reason::Base),
        };
        match reason {
            None => Ok(None),
            Some(reason) => Err(short.unwrap_or(Refusal { reason, rule: None })),
        }
    }

    fn could_be_by_name(&self, flow: &Flow) -> bool {
        self.rules.iter().any(|rule| {
            rule.action == Action::Allow && matches!(rule.target, Target::Name(_)) && rule.is_for(flow)
        })
    }
}

/// Without any: the policy doesn't look at names, or the flow has none.
#[derive(Debug, Default)]
struct NameVerdicts {
    allowed: bool,
    refused: Option<Refusal>,
}

/// Where a flow leads, as far as it limits what an allow rule opens.
struct Place {
    class: AddressClass,
    is_own: bool,
    is_resolver: bool,
}

impl Place {
    fn of(flow: &Flow, own: &HostAddresses) -> Self {
        let address = flow.destination.ip();
        Self {
            class: classify(address),
            is_own: own.contains(address),
            is_resolver: flow.protocol != Protocol::Icmp && RESOLVER_PORTS.contains(&flow.destination.port()),
        }
    }

    /// Why an allow rule that matches doesn't open this place.
    fn obstacle(&self, rule: &Rule) -> Option<Reason> {
        let Target::Network(network) = rule.target else { return self.obstacle_to_public(rule.private) };
        if self.class == AddressClass::Unspecified {
            return Some(Reason::Private { class: self.class });
        }
        if network.is_single() {
            return None;
        }
        if self.is_own {
            return Some(Reason::OwnAddress);
        }
        let is_open = match self.class {
            AddressClass::Loopback => false,
            class => self.is_open_to_public(rule.private) || network.is_all(class),
        };
        (!is_open).then_some(Reason::Private { class: self.class })
    }

    /// Why what is meant for the internet, and with `private` for private networks, doesn't open this place.
    fn obstacle_to_public(&self, private: bool) -> Option<Reason> {
        if self.is_own {
            return Some(Reason::OwnAddress);
        }
        if !self.is_open_to_public(private) {
            return Some(Reason::Private { class: self.class });
        }
        self.is_resolver.then_some(Reason::OtherResolver)
    }

    fn is_open_to_public(&self, private: bool) -> bool {
        match self.class {
            AddressClass::Public => true,
            AddressClass::Private | AddressClass::Shared => private,
            _ => false,
        }
    }
}

impl Rule {
    fn matches(&self, flow: &Flow, name: Option<&HostName>) -> bool {
        let address = flow.destination.ip();
        self.is_for(flow)
            && match (&self.target, self.action) {
                (Target::Any, _) => true,
                (Target::Name(pattern), _) => name.is_some_and(|name| pattern.matches(name)),
                (Target::Network(network), Action::Allow) => network.contains(address),
                // What might be led on to the network is denied with it.
                (Target::Network(network), Action::Deny) => network.touches(address),
            }
    }

    fn is_by_network(&self) -> bool {
        matches!(self.target, Target::Network(_))
    }

    /// Whether the rule is about the protocol and port of the flow.
    fn is_for(&self, flow: &Flow) -> bool {
        let port_matches = match &self.ports {
            None => true,
            Some(ports) => flow.protocol != Protocol::Icmp && ports.contains(&flow.destination.port()),
        };
        port_matches && self.protocol.is_none_or(|protocol| protocol == flow.protocol)
    }
}
