//! Host names, parsed once and compared in one form.

use std::fmt;

/// The longest name in its written form, without a final dot: RFC 1035, section 2.3.4, less the root's length byte.
pub const MAX_NAME_BYTES: usize = 253;

const MAX_LABEL_BYTES: usize = 63;

/// A host name: lower case ASCII, no final dot, no empty label. Names in other scripts come in their ASCII form
/// (`xn--`), as they do on the wire. An address in digits is no name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    #[error("name is empty")]
    Empty,
    #[error("name is longer than {MAX_NAME_BYTES} bytes")]
    TooLong,
    #[error("label '{0}' is empty or longer than {MAX_LABEL_BYTES} bytes")]
    Label(String),
    #[error("name holds '{0}', which no host name does")]
    Character(char),
    #[error("an address is no name")]
    Address,
}

impl HostName {
    /// Reads a name as it stands in a URL, a query or a rule; one final dot is dropped.
    ///
    /// # Errors
    ///
    /// Says which part is no host name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        // Underscores are in the names of services and of not a few hosts.
        let strange = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if let Some(c) = text.chars().find(strange) {
            return Err(NameError::Character(c));
        }
        if let Some(label) = text.split('.').find(|label| label.is_empty() || label.len() > MAX_LABEL_BYTES) {
            return Err(NameError::Label(label.to_owned()));
        }
        // What ends in a number is read as an address by clients, in one of its many spellings: the WHATWG's "ends in
        // a number" check.
        let last = text.rsplit('.').next().unwrap_or_default();
        let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        let number = last.bytes().all(|byte| byte.is_ascii_digit())
            || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if number {
            return Err(NameError::Address);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_into_one_form() {
        assert_eq!(HostName::parse("API.Example.com.").unwrap().as_str(), "api.example.com");
        assert_eq!(HostName::parse("_sip._tcp.example.org").unwrap().as_str(), "_sip._tcp.example.org");
        assert_eq!(HostName::parse("localhost").unwrap().as_str(), "localhost");
    }

    #[test]
    fn what_is_no_host_name_is_refused() {
        assert_eq!(HostName::parse(""), Err(NameError::Empty));
        assert_eq!(HostName::parse("."), Err(NameError::Empty));
        assert_eq!(HostName::parse("a..b"), Err(NameError::Label(String::new())));
        assert_eq!(HostName::parse("a b"), Err(NameError::Character(' ')));
        assert_eq!(HostName::parse("ä.example"), Err(NameError::Character('ä')));
        assert_eq!(
            HostName::parse(&format!("{}.example", "a".repeat(64))),
            Err(NameError::Label("a".repeat(64)))
        );
        assert_eq!(HostName::parse(&"a.".repeat(127).repeat(2)), Err(NameError::TooLong));
    }

    #[test]
    fn addresses_in_any_spelling_are_no_names() {
        for text in ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "a.0x1", "example.12"] {
            assert_eq!(HostName::parse(text), Err(NameError::Address), "{text}");
        }
    }
}
