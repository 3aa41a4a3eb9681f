//! Paths in a VM: absolute, normalized, free of NUL.
//!
//! A path is checked here once, at the door, and is bytes from then on: names of Linux need not be UTF-8. It is never
//! resolved on the host.

use std::fmt;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::path::{PathFault, clean};
use rustix::io::Errno;

/// The kernel's PATH_MAX counts the NUL at the end.
pub const MAX_PATH_BYTES: usize = 4095;

/// An absolute path without `.`, `..`, empty components or a trailing slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPath(Vec<u8>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("Path must be absolute: {}", lossy(.0))]
    NotAbsolute(Vec<u8>),
    #[error("Path must be normalized: {}", lossy(.0))]
    NotNormalized(Vec<u8>),
    #[error("Path must not contain NUL: {}", lossy(.0))]
    Nul(Vec<u8>),
    #[error("ENAMETOOLONG: file name too long, path of {len} bytes")]
    TooLong { len: usize },
}

impl PathError {
    /// What the kernel would have said.
    pub fn errno(&self) -> i32 {
        match self {
            Self::TooLong { .. } => Errno::NAMETOOLONG.raw_os_error(),
            _ => Errno::INVAL.raw_os_error(),
        }
    }
}

impl GuestPath {
    /// Cleans `.`, `//` and a trailing slash; refuses what is not absolute or climbs.
    pub fn parse(path: &[u8]) -> Result<Self, PathError> {
        if path.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong { len: path.len() });
        }
        match clean(path) {
            Ok(clean) => Ok(Self(clean)),
            Err(PathFault::Nul) => Err(PathError::Nul(path.to_vec())),
            Err(PathFault::NotAbsolute) => Err(PathError::NotAbsolute(path.to_vec())),
            Err(PathFault::NotNormalized) => Err(PathError::NotNormalized(path.to_vec())),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Number of components; 0 is the root.
    pub fn depth(&self) -> usize {
        if self.0.len() == 1 { 0 } else { self.0.iter().filter(|&&byte| byte == b'/').count() }
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &[u8]) -> bool {
        other == b"/"
            || self.0.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    pub(crate) fn to_wire(&self) -> Bytes {
        Bytes::from(self.0.clone())
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lossy(&self.0))
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", lossy(&self.0))
    }
}

/// Shows bytes to a person: U+FFFD for what is not UTF-8.
pub(crate) fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clean(path: &str) -> String {
        GuestPath::parse(path.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn dots_double_slashes_and_trailing_slashes_are_cleaned() {
        assert_eq!(clean("/"), "/");
        assert_eq!(clean("//"), "/");
        assert_eq!(clean("/./a//b/./"), "/a/b");
        assert_eq!(clean("/..."), "/...");
    }

    #[test]
    fn refusals_name_the_path_as_it_was_given() {
        let refusal = |path: &[u8]| GuestPath::parse(path).unwrap_err().to_string();
        assert_eq!(refusal(b"a/b"), "Path must be absolute: a/b");
        assert_eq!(refusal(b""), "Path must be absolute: ");
        assert_eq!(refusal(b"/a/../b"), "Path must be normalized: /a/../b");
        assert_eq!(refusal(b"/a\0b"), "Path must not contain NUL: /a\0b");
        assert_eq!(GuestPath::parse(&vec![b'/'; 4096]).unwrap_err(), PathError::TooLong { len: 4096 });
    }

    #[test]
    fn within_looks_at_whole_components() {
        let path = GuestPath::parse(b"/proc/1").unwrap();
        assert!(path.is_within(b"/proc"));
        assert!(path.is_within(b"/"));
        assert!(!GuestPath::parse(b"/process").unwrap().is_within(b"/proc"));
        assert_eq!(path.depth(), 2);
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_stable_and_never_climbs(path in "(/|\\.|\\.\\.|a|b ){0,12}") {
            if let Ok(parsed) = GuestPath::parse(path.as_bytes()) {
                prop_assert!(parsed.as_bytes().starts_with(b"/"));
                prop_assert!(!parsed.as_bytes().split(|&b| b == b'/').any(|name| name == b".."));
                prop_assert_eq!(GuestPath::parse(parsed.as_bytes()).unwrap(), parsed);
            }
        }
    }
}
