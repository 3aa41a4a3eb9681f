//! Names in rules: one host, or all below a domain.

use std::fmt;

use crate::name::{HostName, NameError};

/// `registry.npmjs.org` is that name alone; `*.npmjs.org` is every name below, at any depth, but not `npmjs.org`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern {
    name: HostName,
    below: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    #[error("a `*` stands only for all names below a domain: `*.example.com`")]
    Wildcard,
    #[error(transparent)]
    Name(#[from] NameError),
}

impl NamePattern {
    /// # Errors
    ///
    /// It is no host name, or has a `*` elsewhere than as its whole first label.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err(PatternError::Wildcard);
        }
        Ok(Self { name: HostName::parse(name)?, below })
    }

    pub fn matches(&self, name: &HostName) -> bool {
        if !self.below {
            return *name == self.name;
        }
        let front = name.as_str().strip_suffix(self.name.as_str()).and_then(|front| front.strip_suffix('.'));
        front.is_some_and(|front| !front.is_empty())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        NamePattern::parse(pattern).unwrap().matches(&HostName::parse(name).unwrap())
    }

    #[test]
    fn a_name_is_that_name_alone() {
        assert!(matches("Example.com", "example.COM."));
        assert!(!matches("example.com", "www.example.com"));
        assert!(!matches("example.com", "badexample.com"));
    }

    #[test]
    fn a_star_is_all_names_below_and_not_the_domain() {
        assert!(matches("*.example.com", "a.example.com"));
        assert!(matches("*.example.com", "a.b.example.com"));
        assert!(!matches("*.example.com", "example.com"));
        assert!(!matches("*.example.com", "badexample.com"));
        assert!(!matches("*.example.com", "example.com.evil.org"));
    }

    #[test]
    fn a_star_elsewhere_is_refused() {
        for text in ["*", "*example.com", "a.*.com", "*.*.com", "example.*", "**.com"] {
            assert_eq!(NamePattern::parse(text), Err(PatternError::Wildcard), "{text}");
        }
        assert_eq!(NamePattern::parse("*."), Err(PatternError::Name(NameError::Empty)));
        assert_eq!(NamePattern::parse("10.0.0.1"), Err(PatternError::Name(NameError::Address)));
        assert_eq!(NamePattern::parse("*.0.0.1"), Err(PatternError::Name(NameError::Address)));
        assert_eq!(
            NamePattern::parse("https://a.example"),
            Err(PatternError::Name(NameError::Character(':')))
        );
    }

    #[test]
    fn patterns_read_back_as_written() {
        for text in ["a.example", "*.a.example"] {
            assert_eq!(NamePattern::parse(text).unwrap().to_string(), text);
        }
    }
}
