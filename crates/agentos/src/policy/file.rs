//! Policy files. They are read strictly, key by key: whatever isn't understood is an error with its line, for a rule
//! that is passed over may be the one that denies.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

use super::{Action, EgressPolicy, EgressProtocol, EgressRule, PolicyBase, Target, TargetError};

/// A few ten thousand rules: no hand writes more, and whoever names another file by mistake is told so at once.
const MAX_BYTES: usize = 1 << 20;

/// What is wrong with a policy file, and where.
#[derive(Debug, thiserror::Error)]
#[error("policy, line {line}: {problem}")]
pub(crate) struct FileError {
    /// From 1.
    pub(crate) line: usize,
    pub(crate) problem: FileProblem,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FileProblem {
    #[error("the policy goes on beyond {MAX_BYTES} bytes, which is the most that is read")]
    TooLong,
    /// Not TOML, or not the keys and values of a policy.
    #[error("{}", .0.message())]
    Toml(Box<toml::de::Error>),
    #[error("{0}")]
    Target(TargetError),
    #[error("rule has neither `allow` nor `deny`")]
    NoAction,
    #[error("rule has both `allow` and `deny`")]
    TwoActions,
    #[error("icmp has no ports")]
    IcmpPorts,
    #[error("`private` is for allow rules: a deny rule denies private addresses anyway")]
    PrivateDeny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base: Base,
    #[serde(default)]
    rule: Vec<Spanned<FileRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Base {
    None,
    Public,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    allow: Option<Spanned<String>>,
    deny: Option<Spanned<String>>,
    ports: Option<Spanned<Ports>>,
    protocol: Option<FileProtocol>,
    private: Option<Spanned<bool>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum FileProtocol {
    Tcp,
    Udp,
    Icmp,
}

/// `443`, `"443"` or `"8000-8100"`.
struct Ports(RangeInclusive<u16>);

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortsVisitor;

        impl Visitor<'_> for PortsVisitor {
            type Value = Ports;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a port from 1 to 65535, or a range such as \"8000-8100\", the lower one first")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Ports, E> {
                let port = u16::try_from(number).ok().filter(|port| *port != 0);
                let wrong = || E::invalid_value(de::Unexpected::Signed(number), &self);
                port.map(|port| Ports(port..=port)).ok_or_else(wrong)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ports, E> {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                match (port(first), port(last)) {
                    (Some(first), Some(last)) if first <= last => Ok(Ports(first..=last)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }

        deserializer.deserialize_any(PortsVisitor)
    }
}

/// Digits alone: `parse` would take a sign too.
fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok().filter(|port| *port != 0)).flatten()
}

pub(super) fn parse(text: &str) -> Result<EgressPolicy, FileError> {
    if text.len() > MAX_BYTES {
        return Err(FileError { line: line_of(text, MAX_BYTES), problem: FileProblem::TooLong });
    }
    let at = |span: Range<usize>, problem| FileError { line: line_of(text, span.start), problem };
    let file: File = toml::from_str(text)
        .map_err(|error| at(error.span().unwrap_or_default(), FileProblem::Toml(Box::new(error))))?;
    let base = match file.base {
        Base::None => PolicyBase::None,
        Base::Public => PolicyBase::Public,
    };
    let rules = file.rule.into_iter().map(|spanned| {
        let span = spanned.span();
        rule(spanned.into_inner(), span).map_err(|(span, problem)| at(span, problem))
    });
    Ok(EgressPolicy { base, rules: rules.collect::<Result<_, _>>()? })
}

fn rule(rule: FileRule, whole: Range<usize>) -> Result<(Action, EgressRule), (Range<usize>, FileProblem)> {
    let (action, target) = match (rule.allow, rule.deny) {
        (Some(target), None) => (Action::Allow, target),
        (None, Some(target)) => (Action::Deny, target),
        (None, None) => return Err((whole, FileProblem::NoAction)),
        (Some(_), Some(deny)) => return Err((deny.span(), FileProblem::TwoActions)),
    };
    if let Some(ports) = &rule.ports
        && rule.protocol == Some(FileProtocol::Icmp)
    {
        return Err((ports.span(), FileProblem::IcmpPorts));
    }
    let private_addresses = match rule.private {
        Some(private) if *private.get_ref() && action == Action::Deny => {
            return Err((private.span(), FileProblem::PrivateDeny));
        }
        private => private.is_some_and(Spanned::into_inner),
    };
    let span = target.span();
    let target = Target::parse(target.get_ref()).map_err(|error| (span, FileProblem::Target(error)))?;
    let protocol = rule.protocol.map(|protocol| match protocol {
        FileProtocol::Tcp => EgressProtocol::Tcp,
        FileProtocol::Udp => EgressProtocol::Udp,
        FileProtocol::Icmp => EgressProtocol::Icmp,
    });
    let ports = rule.ports.map(|ports| ports.into_inner().0);
    Ok((action, EgressRule { target, ports, protocol, private_addresses }))
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count().saturating_add(1)
}

#[cfg(test)]
mod tests;
