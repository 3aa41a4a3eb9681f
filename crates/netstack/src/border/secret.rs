//! What the host knows and the VM must not.

use std::fmt;

use http::header::{self, HeaderName, HeaderValue};
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use crate::name::HostName;

/// What echoes a shorter value can't be told from ordinary text, so that it could not be kept from the VM.
pub const MIN_VALUE_BYTES: usize = 8;

/// Servers take heads of 8 KiB and more; a value that fills one is no credential.
pub const MAX_VALUE_BYTES: usize = 4_096;

const MAX_NAME_BYTES: usize = 128;
const MAX_PREFIX_BYTES: usize = 32;

/// Of 62 letters and digits each: 131 bits, which nobody guesses.
const MIN_RANDOM_CHARACTERS: usize = 22;
const MAX_RANDOM_CHARACTERS: usize = 128;

/// A credential of the host. The VM only ever sees the placeholder that a [`Border`](super::Border) makes for it.
///
/// What is held here is wiped from memory when dropped, and is in no `Debug` output.
#[derive(Clone)]
pub struct Secret {
    name: String,
    value: Zeroizing<String>,
    placeholder_prefix: String,
    destinations: Vec<Destination>,
}

/// Where a secret may go by interception: into this header of a request over TLS to this host and port, in the place
/// of its placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub host: HostName,
    pub port: u16,
    pub header: HeaderName,
}

/// How a route of the gateway writes a secret into its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderScheme {
    /// The value alone.
    Plain,
    /// `Bearer` and the value.
    Bearer,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    #[error("a secret's name has 1 to {MAX_NAME_BYTES} visible ASCII characters")]
    Name,
    #[error(
        "a secret's value has at least {MIN_VALUE_BYTES} bytes: a shorter one can't be told from other text"
    )]
    Short,
    #[error("a secret's value has at most {MAX_VALUE_BYTES} bytes")]
    Long,
    #[error("a secret's value is visible ASCII without white space around it: it goes into a header")]
    Characters,
    #[error(
        "a placeholder's prefix has at most {MAX_PREFIX_BYTES} letters, digits, dots, dashes and underscores"
    )]
    Prefix,
    #[error("no secret goes into the header '{0}', which frames or routes the request")]
    Header(HeaderName),
}

impl Secret {
    /// # Errors
    ///
    /// If the name or the value isn't one. The errors don't show the value.
    pub fn new(name: &str, value: Zeroizing<String>) -> Result<Self, SecretError> {
        let is_visible = |byte: u8| byte.is_ascii_graphic();
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(is_visible) {
            return Err(SecretError::Name);
        }
        if value.len() < MIN_VALUE_BYTES {
            return Err(SecretError::Short);
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(SecretError::Long);
        }
        let has_space_around = value.starts_with(' ') || value.ends_with(' ');
        if has_space_around || !value.bytes().all(|byte| byte == b' ' || is_visible(byte)) {
            return Err(SecretError::Characters);
        }
        Ok(Self { name: name.to_owned(), value, placeholder_prefix: String::new(), destinations: Vec::new() })
    }

    /// Lets the placeholder begin as the keys of this provider do (`sk-ant-`), and be as long as the value: clients
    /// look at that before they send anything.
    ///
    /// # Errors
    ///
    /// If the prefix holds what isn't in keys.
    pub fn placeholder_prefix(mut self, prefix: &str) -> Result<Self, SecretError> {
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if prefix.len() > MAX_PREFIX_BYTES || !prefix.bytes().all(is_fine) {
            return Err(SecretError::Prefix);
        }
        prefix.clone_into(&mut self.placeholder_prefix);
        Ok(self)
    }

    /// Declares a destination whose TLS is intercepted, so that the placeholder can be used there as if it was the
    /// value. A secret can have several.
    ///
    /// # Errors
    ///
    /// If the header is one that says where a request goes or how long it is.
    pub fn destination(mut self, destination: Destination) -> Result<Self, SecretError> {
        check_header(&destination.header)?;
        self.destinations.push(destination);
        Ok(self)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    pub(super) fn value(&self) -> &str {
        &self.value
    }

    /// A new placeholder, which nobody in the VM could have known before.
    pub(super) fn new_placeholder(&self) -> Result<String, rustix::io::Errno> {
        let random = match self.placeholder_prefix.len() {
            // Nothing is known of the value's form: neither shall its length be.
            0 => MIN_RANDOM_CHARACTERS,
            prefix => {
                let rest = self.value.len().saturating_sub(prefix);
                rest.clamp(MIN_RANDOM_CHARACTERS, MAX_RANDOM_CHARACTERS)
            }
        };
        Ok(format!("{}{}", self.placeholder_prefix, random_characters(random)?))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("destinations", &self.destinations)
            .finish_non_exhaustive()
    }
}

impl HeaderScheme {
    /// The header's value with the secret in it; marked so that nothing shows it by mistake.
    pub(super) fn header(self, secret: &str) -> Result<HeaderValue, header::InvalidHeaderValue> {
        let mut value = match self {
            Self::Plain => HeaderValue::from_str(secret)?,
            Self::Bearer => HeaderValue::from_str(&Zeroizing::new(format!("Bearer {secret}")))?,
        };
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Headers that a guest could use to send a secret elsewhere, or that would never arrive.
pub(super) fn check_header(name: &HeaderName) -> Result<(), SecretError> {
    let taken = [
        header::ACCEPT_ENCODING,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::HOST,
        HeaderName::from_static("keep-alive"),
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("proxy-connection"),
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    if taken.contains(name) { Err(SecretError::Header(name.clone())) } else { Ok(()) }
}

fn random_characters(count: usize) -> Result<String, rustix::io::Errno> {
    const CHARACTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(count);
    // The kernel gives this much in one piece: random(4), section on interrupted reads.
    let mut bytes = [0_u8; 256];
    while text.len() < count {
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        // Six bits that mean no character are dropped, so that all characters are equally likely.
        let characters = bytes.iter().filter_map(|byte| CHARACTERS.get(usize::from(byte & 63)));
        let missing = count - text.len();
        text.extend(characters.take(missing).map(|byte| char::from(*byte)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[test]
    fn a_value_that_fits_no_header_or_is_too_short_to_be_found_again_is_refused() {
        for (text, error) in [
            ("short", SecretError::Short),
            ("with a newline\n", SecretError::Characters),
            (" space-around ", SecretError::Characters),
            ("größer als ASCII", SecretError::Characters),
            (&"a".repeat(MAX_VALUE_BYTES + 1), SecretError::Long),
        ] {
            assert_eq!(Secret::new("KEY", value(text)).unwrap_err(), error, "{text}");
        }
        assert_eq!(Secret::new("", value("long enough")).unwrap_err(), SecretError::Name);
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("KEY", value("sk-very-secret")).unwrap();
        assert!(!format!("{secret:?}").contains("very-secret"));
        let header = HeaderScheme::Bearer.header(secret.value()).unwrap();
        assert!(!format!("{header:?}").contains("very-secret"));
    }

    #[test]
    fn placeholders_look_like_keys_and_are_never_the_same() {
        let key = format!("sk-ant-{}", "x".repeat(90));
        let secret = Secret::new("KEY", value(&key)).unwrap().placeholder_prefix("sk-ant-").unwrap();
        let (one, other) = (secret.new_placeholder().unwrap(), secret.new_placeholder().unwrap());
        assert!(one.starts_with("sk-ant-"));
        assert_eq!(one.len(), key.len());
        assert_ne!(one, other);
        let bare = Secret::new("KEY", value("password")).unwrap().new_placeholder().unwrap();
        assert_eq!(bare.len(), MIN_RANDOM_CHARACTERS);
        assert!(bare.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }

    #[test]
    fn no_secret_goes_where_requests_are_routed() {
        let secret = Secret::new("KEY", value("sk-very-secret")).unwrap();
        let host = HostName::parse("api.example").unwrap();
        let refused = secret.destination(Destination { host, port: 443, header: header::HOST });
        assert_eq!(refused.unwrap_err(), SecretError::Header(header::HOST));
    }
}
