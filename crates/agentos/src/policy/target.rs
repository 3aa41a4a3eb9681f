//! What a rule is about, read from text. The sidecar has the last word on names and networks; the check in here finds
//! a mistake while it is known where it was made.

use std::net::IpAddr;

/// RFC 1035, without the root's length byte.
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Any,
    Name(String),
    Network(String),
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("it is empty: a name, `*.SUFFIX`, an address, a network or `*` is needed")]
    Empty,
    #[error("a `*` stands alone for everything, or for all names below a domain: `*.example.com`")]
    Wildcard,
    #[error("name holds '{0}', which no host name does")]
    Character(char),
    #[error(
        "name is longer than {MAX_NAME_BYTES} bytes, or a part of it is empty or longer than {MAX_LABEL_BYTES}"
    )]
    Length,
    #[error("it is neither an address nor a host name, which never ends in a number")]
    Number,
    #[error("a host name or a network is needed and not a URL, such as example.com or 10.0.0.0/8")]
    Url,
    #[error("it is no network such as 10.0.0.0/8")]
    Network,
    #[error("the number after the slash must be from 0 to {longest}")]
    Prefix { longest: u8 },
    #[error(
        "address has bits set beyond /{prefix_bits}: write the first address of the network, or no prefix for this one alone"
    )]
    HostBits { prefix_bits: u8 },
}

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Self, TargetError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.contains("://") {
            return Err(TargetError::Url);
        }
        if let Some((address, prefix)) = text.split_once('/') {
            check_network(address, prefix)?;
            return Ok(Self::Network(text.to_owned()));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Ok(Self::Network(text.to_owned()));
        }
        check_name(text.strip_prefix("*.").unwrap_or(text))?;
        Ok(Self::Name(text.to_owned()))
    }
}

fn check_network(address: &str, prefix: &str) -> Result<(), TargetError> {
    let address: IpAddr = address.parse().map_err(|_| TargetError::Network)?;
    let (bits, longest) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let plain =
        prefix.bytes().all(|byte| byte.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
    let parsed = prefix.parse::<u8>().ok().filter(|parsed| plain && *parsed <= longest);
    let prefix_bits = parsed.ok_or(TargetError::Prefix { longest })?;
    let beyond = bits.checked_shl(u32::from(prefix_bits)).unwrap_or(0);
    if beyond == 0 { Ok(()) } else { Err(TargetError::HostBits { prefix_bits }) }
}

fn check_name(name: &str) -> Result<(), TargetError> {
    if name.is_empty() {
        return Err(TargetError::Empty);
    }
    if name.contains('*') {
        return Err(TargetError::Wildcard);
    }
    let strange = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if let Some(c) = name.chars().find(strange) {
        return Err(TargetError::Character(c));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut labels = name.split('.');
    if name.len() > MAX_NAME_BYTES || labels.any(|label| label.is_empty() || label.len() > MAX_LABEL_BYTES) {
        return Err(TargetError::Length);
    }
    // In one of the spellings that clients read as an address: a mistyped address is no name.
    let last = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let hexadecimal = last.strip_prefix("0x");
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if is_number { Err(TargetError::Number) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_taken_for_what_it_looks_like() {
        for name in ["example.com", "*.example.com", "localhost", "_sip._tcp.example.org", "Example.com."] {
            assert_eq!(Target::parse(name), Ok(Target::Name(name.into())));
        }
        for network in
            ["10.0.0.0/8", "192.0.2.7", "192.0.2.7/32", "0.0.0.0/0", "::/0", "2001:db8::/32", "::1"]
        {
            assert_eq!(Target::parse(network), Ok(Target::Network(network.into())));
        }
        assert_eq!(Target::parse("*"), Ok(Target::Any));
    }

    #[test]
    fn what_is_no_target_is_refused_with_the_reason() {
        for (text, error) in [
            ("", TargetError::Empty),
            ("*.", TargetError::Empty),
            ("a.*.com", TargetError::Wildcard),
            ("*example.com", TargetError::Wildcard),
            ("*.*", TargetError::Wildcard),
            ("example.com:443", TargetError::Character(':')),
            ("[::1]", TargetError::Character('[')),
            ("a b", TargetError::Character(' ')),
            ("a..b", TargetError::Length),
            (".", TargetError::Length),
            ("10.0.0.300", TargetError::Number),
            ("10.0.0", TargetError::Number),
            ("a.0x1F", TargetError::Number),
            ("example.com/8", TargetError::Network),
            ("https://example.com/", TargetError::Url),
            ("http://10.0.0.0/8", TargetError::Url),
            ("10.0.0.0/33", TargetError::Prefix { longest: 32 }),
            ("10.0.0.0/", TargetError::Prefix { longest: 32 }),
            ("10.0.0.0/+8", TargetError::Prefix { longest: 32 }),
            ("10.0.0.0/08", TargetError::Prefix { longest: 32 }),
            ("::/129", TargetError::Prefix { longest: 128 }),
            ("10.0.0.1/8", TargetError::HostBits { prefix_bits: 8 }),
            ("2001:db8::1/32", TargetError::HostBits { prefix_bits: 32 }),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text}");
        }
    }
}
