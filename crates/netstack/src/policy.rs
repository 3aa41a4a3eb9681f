//! What may leave a VM: the egress policy, as a pure function.
//!
//! A policy is a base and rules in order. The base gives the first verdict, each rule that matches gives a new one, and
//! the last stands:
//!
//! ```text
//! base none     nothing
//! base public   the public internet, but not another resolver (ports 53 and 853)
//! allow NAME    where an allowed name led to, if it is public; private addresses too if the rule says so
//! allow CIDR    the network, see below
//! allow any     as base public
//! deny …        whatever it matches
//! ```
//!
//! **How far an allow rule reaches.** Names and `any` are no word about the host's surroundings: whoever controls a name
//! can point it at them. Such rules lead to public addresses, with `private` also to private and shared ones, and never
//! to metadata, link-local, loopback or the host's own addresses. A network is the user's own word, and opens what it is
//! about: `10.0.0.0/8` opens private addresses; `0.0.0.0/0` is about the internet, and doesn't open the private ones in
//! it. Metadata, loopback and the host's own addresses are opened by nothing larger than the single address, so that
//! `100.64.0.0/10` for an overlay network doesn't hand out the cloud's credentials. The unspecified address, which
//! connects to the host itself, is never opened. An allow rule that doesn't reach an address takes nothing back either.
//!
//! **Names.** A flow has the names that led to its address, as pinned by the resolver; an address may have several. For
//! TCP, a policy by name doesn't take the pins' word: the connection must say which name it is for ([`Gate`]). Datagrams
//! say nothing that could be read, so that all pinned names must be allowed; QUIC is refused where names matter, and
//! clients fall back to TCP.

mod evaluate;
mod pattern;

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

pub use pattern::{NamePattern, PatternError};

use crate::address::{AddressClass, Cidr};
use crate::name::HostName;

/// More rules than anybody reads. Every new flow of a hostile guest is held against all of them; whoever makes a
/// policy out of what somebody wrote refuses more.
pub const MAX_RULES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// What may leave a VM. The default is [public](EgressPolicy::public).
#[derive(Debug, Clone, PartialEq)]
pub struct EgressPolicy {
    base: Base,
    rules: Vec<Rule>,
}

/// The verdict where no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Refused.
    None,
    /// Public addresses are allowed.
    Public,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub action: Action,
    pub target: Target,
    /// None: all of them. A rule with ports is about TCP and UDP, ICMP has none.
    pub ports: Option<RangeInclusive<u16>>,
    /// None: all of them.
    pub protocol: Option<Protocol>,
    /// Whether an allow rule reaches private and shared addresses. Nothing to a deny rule, which reaches everything.
    pub private: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Any,
    Name(NamePattern),
    Network(Cidr),
}

/// What is about to leave.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    pub protocol: Protocol,
    /// The port is of no meaning for ICMP.
    pub destination: SocketAddr,
    /// The names pinned to the address now.
    pub names: &'a [HostName],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Allowed, depending on what [`EgressPolicy::decide_named`] says of the first bytes.
    Gate(Gate),
    Refuse(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing is connected outside before the first bytes have named an allowed host.
    MustName,
    /// The first bytes are looked at so that a denied name is caught. Silence is fine: many servers speak first. TLS and
    /// HTTP that say no name are not, unless the address is known: see [`EgressPolicy::decide_nameless`].
    MayName,
}

/// Why something may not leave. The text is the rest of a sentence about it: "it is an address of the host itself".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// The index of the rule that refused it, or that allows it but doesn't reach this far.
    pub rule: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The base allows nothing, and no rule matched.
    Base,
    /// A rule denies it.
    Rule,
    /// What allows it doesn't reach addresses of this class.
    Private { class: AddressClass },
    /// One of the host's own addresses.
    OwnAddress,
    /// DNS past the VM's own resolver.
    OtherResolver,
    /// QUIC, in which no name can be read.
    Quic,
    /// The policy is by name, and the connection said none that could be read.
    NoName,
    /// The connection said a name that didn't lead to its address.
    NameMismatch,
    /// Rules by name could allow it, but no name led to the address.
    NotPinned,
    /// A datagram to an address to which a name led that isn't allowed, beside one that is.
    SharedAddress,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Base => f.write_str("no rule allows it"),
            // People count from one.
            Reason::Rule => match self.rule {
                Some(index) => write!(f, "rule {} denies it", index.saturating_add(1)),
                None => f.write_str("a rule denies it"),
            },
            Reason::Private { class } => match self.rule {
                Some(index) => {
                    let rule = index.saturating_add(1);
                    write!(f, "rule {rule} allows it, but does not reach {class} addresses")
                }
                None => write!(f, "{class} addresses are reached only by a rule for their network"),
            },
            Reason::OwnAddress => f.write_str("it is an address of the host itself"),
            Reason::OtherResolver => f.write_str(
                "names are asked of the VM's resolver, unless a rule for another's network allows it",
            ),
            Reason::Quic => f.write_str("no name can be read in QUIC, while the policy is by name: use TCP"),
            Reason::NoName => {
                f.write_str("the policy is by name, and the connection says none (TLS SNI or HTTP Host)")
            }
            Reason::NameMismatch => f.write_str(
                "the connection says a name that the VM's resolver did not answer with this address",
            ),
            Reason::NotPinned => {
                f.write_str("the policy is by name, and no allowed name led to this address")
            }
            Reason::SharedAddress => f.write_str(
                "a name that is not allowed has the same address, and datagrams do not say theirs",
            ),
        }
    }
}

impl Default for EgressPolicy {
    fn default() -> Self {
        Self::public()
    }
}

impl EgressPolicy {
    /// Nothing leaves.
    pub fn none() -> Self {
        Self::new(Base::None, Vec::new())
    }

    /// The public internet.
    pub fn public() -> Self {
        Self::new(Base::Public, Vec::new())
    }

    /// Rules in order: the last match wins.
    pub fn new(base: Base, rules: Vec<Rule>) -> Self {
        Self { base, rules }
    }

    pub fn base(&self) -> Base {
        self.base
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule of a [`Refusal`], for people.
    pub fn describe_rule(&self, index: usize) -> String {
        self.rules.get(index).map_or_else(|| "no rule".to_owned(), Rule::to_string)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.action {
            Action::Allow => "allow ",
            Action::Deny => "deny ",
        })?;
        match &self.target {
            // As policy files have it: a host may well be called "any".
            Target::Any => f.write_str("*")?,
            Target::Name(pattern) => pattern.fmt(f)?,
            Target::Network(network) => network.fmt(f)?,
        }
        if let Some(protocol) = self.protocol {
            write!(f, ", {protocol}")?;
        }
        match self.ports.as_ref().map(|ports| (*ports.start(), *ports.end())) {
            Some((first, last)) if first == last => write!(f, ", port {first}")?,
            Some((first, last)) => write!(f, ", ports {first}-{last}")?,
            None => {}
        }
        if self.private {
            f.write_str(", private addresses too")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
