//! What callers may hand in where Linux takes bytes: paths inside the VM and contents.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// An absolute path inside the VM. Linux names are bytes and need not be UTF-8, so it is made from strings, byte
/// slices and [`Path`]s alike.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct GuestPath(Bytes);

impl GuestPath {
    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The path as the kernel sees it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Bytes to put somewhere: the content of a file, the input of a process. Owned buffers are taken over without a copy.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Bytes);

impl Content {
    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.0.len())
    }
}

/// Implements `From` for the owned and borrowed byte and string types that both wrappers accept.
macro_rules! from_bytes_and_strings {
    ($target:ident) => {
        impl From<&str> for $target {
            fn from(value: &str) -> Self {
                Self(Bytes::copy_from_slice(value.as_bytes()))
            }
        }
        impl From<&&str> for $target {
            fn from(value: &&str) -> Self {
                Self::from(*value)
            }
        }
        impl From<String> for $target {
            fn from(value: String) -> Self {
                Self(Bytes::from(value))
            }
        }
        impl From<&String> for $target {
            fn from(value: &String) -> Self {
                Self::from(value.as_str())
            }
        }
        impl From<Cow<'_, str>> for $target {
            fn from(value: Cow<'_, str>) -> Self {
                Self::from(value.into_owned())
            }
        }
        impl From<&[u8]> for $target {
            fn from(value: &[u8]) -> Self {
                Self(Bytes::copy_from_slice(value))
            }
        }
        impl<const N: usize> From<&[u8; N]> for $target {
            fn from(value: &[u8; N]) -> Self {
                Self(Bytes::copy_from_slice(value))
            }
        }
        impl<const N: usize> From<[u8; N]> for $target {
            fn from(value: [u8; N]) -> Self {
                Self(Bytes::copy_from_slice(&value))
            }
        }
        impl From<Vec<u8>> for $target {
            fn from(value: Vec<u8>) -> Self {
                Self(Bytes::from(value))
            }
        }
        impl From<&Vec<u8>> for $target {
            fn from(value: &Vec<u8>) -> Self {
                Self(Bytes::copy_from_slice(value))
            }
        }
        impl From<Bytes> for $target {
            fn from(value: Bytes) -> Self {
                Self(value)
            }
        }
        impl From<&Bytes> for $target {
            fn from(value: &Bytes) -> Self {
                Self(value.clone())
            }
        }
    };
}

from_bytes_and_strings!(GuestPath);
from_bytes_and_strings!(Content);

impl From<&Path> for GuestPath {
    fn from(value: &Path) -> Self {
        Self::from(value.as_os_str())
    }
}

impl From<PathBuf> for GuestPath {
    fn from(value: PathBuf) -> Self {
        Self::from(value.into_os_string())
    }
}

impl From<&PathBuf> for GuestPath {
    fn from(value: &PathBuf) -> Self {
        Self::from(value.as_path())
    }
}

impl From<&OsStr> for GuestPath {
    fn from(value: &OsStr) -> Self {
        Self(Bytes::copy_from_slice(value.as_bytes()))
    }
}

impl From<OsString> for GuestPath {
    fn from(value: OsString) -> Self {
        Self(Bytes::from(value.into_vec()))
    }
}

impl From<&GuestPath> for GuestPath {
    fn from(value: &GuestPath) -> Self {
        value.clone()
    }
}

pub(crate) fn os_bytes(value: impl AsRef<OsStr>) -> Bytes {
    Bytes::copy_from_slice(value.as_ref().as_bytes())
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
