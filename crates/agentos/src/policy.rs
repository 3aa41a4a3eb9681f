//! What may leave a VM, as its owner says it: values only. The sidecar validates a policy as a whole; what is written
//! by hand, in a [file](EgressPolicy::from_toml) or as the text of a rule, is checked as it is read, where its line is
//! known.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod target;

use std::ops::RangeInclusive;
use std::str::FromStr;

pub(crate) use file::FileError;
pub(crate) use target::{Target, TargetError};

use crate::error::Error;

/// What may leave a VM: a base, and rules in order. The last rule that matches decides, else the base.
///
/// Names are asked of the VM's own resolver, which answers only for those that may be reached. A connection allowed by
/// name has to say that name itself, by TLS SNI or HTTP Host; QUIC is refused where names matter, and clients fall back
/// to TCP. Where a rule denies a name, TLS and HTTP have to say one too, except to an address to which an allowed name
/// led or which a rule by network allows.
///
/// ```
/// use agentos::{AgentOsOptions, EgressPolicy, EgressProtocol, EgressRule};
///
/// let policy = EgressPolicy::none()
///     .allow(EgressRule::name("*.npmjs.org").port(443))
///     .allow(EgressRule::network("10.0.0.0/8").ports(8000..=8100).protocol(EgressProtocol::Tcp))
///     .deny(EgressRule::name("ads.npmjs.org"));
/// let options = AgentOsOptions::default().network(policy);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressPolicy {
    pub(crate) base: PolicyBase,
    pub(crate) rules: Vec<(Action, EgressRule)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PolicyBase {
    None,
    Public,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Deny,
}

impl Default for EgressPolicy {
    fn default() -> Self {
        Self::public()
    }
}

impl EgressPolicy {
    /// Nothing leaves, but for what rules allow.
    #[must_use]
    pub fn none() -> Self {
        Self { base: PolicyBase::None, rules: Vec::new() }
    }

    /// The public internet; the default. Private, link-local and metadata addresses and the host's own are refused
    /// whatever name led there, and so are other DNS resolvers.
    #[must_use]
    pub fn public() -> Self {
        Self { base: PolicyBase::Public, rules: Vec::new() }
    }

    /// Allows what the rule matches, unless a later rule denies it.
    #[must_use]
    pub fn allow(mut self, rule: EgressRule) -> Self {
        self.rules.push((Action::Allow, rule));
        self
    }

    /// Denies what the rule matches, unless a later rule allows it.
    #[must_use]
    pub fn deny(mut self, rule: EgressRule) -> Self {
        self.rules.push((Action::Deny, rule));
        self
    }

    /// Reads a policy file:
    ///
    /// ```
    /// # let policy = agentos::EgressPolicy::from_toml(r#"
    /// base = "none"                 # or "public"
    ///
    /// [[rule]]
    /// allow = "*.npmjs.org"         # a name, "*.SUFFIX", an address, a network, or "*" for everything
    /// ports = "443"                 # or 443, or "8000-8100"
    ///
    /// [[rule]]
    /// allow = "db.example.com"
    /// protocol = "tcp"              # or "udp", "icmp"
    /// private = true                # as `to_private_addresses`
    ///
    /// [[rule]]
    /// deny = "10.0.0.0/8"
    /// # "#)?;
    /// # Ok::<_, agentos::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidInput` with line and reason. Nothing is passed over: an unknown key is an error too.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Ok(file::parse(text)?)
    }
}

/// What a policy allows or denies.
///
/// `"*.npmjs.org".parse::<EgressRule>()` reads what a policy file names: a name, `*.SUFFIX`, an address, a network, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRule {
    pub(crate) target: Target,
    pub(crate) ports: Option<RangeInclusive<u16>>,
    pub(crate) protocol: Option<EgressProtocol>,
    pub(crate) private_addresses: bool,
}

/// How something leaves a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EgressProtocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
    /// `ping`.
    Icmp,
}

impl EgressRule {
    /// A host by its name, or with `*.example.com` all names below a domain, the domain itself excepted. It leads to
    /// public addresses.
    #[must_use]
    pub fn name(pattern: impl Into<String>) -> Self {
        Self::of(Target::Name(pattern.into()))
    }

    /// A network such as `10.0.0.0/8`, or a single address.
    ///
    /// An allowed network opens private and link-local addresses where all of it is private or link-local; the
    /// addresses of the host itself, its loopback and the cloud's metadata are opened by the single address only.
    #[must_use]
    pub fn network(network: impl Into<String>) -> Self {
        Self::of(Target::Network(network.into()))
    }

    /// Every destination; of an allow rule, every public one.
    #[must_use]
    pub fn any() -> Self {
        Self::of(Target::Any)
    }

    fn of(target: Target) -> Self {
        Self { target, ports: None, protocol: None, private_addresses: false }
    }

    /// This TCP or UDP port alone.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.ports(port..=port)
    }

    /// These TCP or UDP ports.
    #[must_use]
    pub fn ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ports = Some(ports);
        self
    }

    /// This protocol alone.
    #[must_use]
    pub fn protocol(mut self, protocol: EgressProtocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Lets an allow rule lead to private addresses too: RFC 1918, unique local, carrier-grade NAT. Whoever controls
    /// the name chooses which. Metadata, link-local, loopback and the host's own addresses stay closed.
    #[must_use]
    pub fn to_private_addresses(mut self) -> Self {
        self.private_addresses = true;
        self
    }
}

impl FromStr for EgressRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(Self::of(Target::parse(text)?))
    }
}
