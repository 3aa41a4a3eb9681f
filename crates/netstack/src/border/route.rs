//! What the gateway offers: `http://10.0.2.4/<prefix>/…` goes on to `https://<upstream>/…`.

use http::Uri;
use http::header::HeaderName;
use http::uri::Scheme;

use super::secret::{HeaderScheme, SecretError, check_header};
use super::target::{TargetError, check_path};
use crate::name::{HostName, NameError};

const MAX_PREFIX_BYTES: usize = 32;

/// One provider behind the gateway.
#[derive(Debug, Clone)]
pub struct Route {
    pub(super) prefix: String,
    pub(super) encryption: Encryption,
    pub(super) host: HostName,
    pub(super) port: u16,
    /// Without a slash at its end; empty for the root.
    pub(super) base_path: String,
    pub(super) credentials: Vec<Credential>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encryption {
    None,
    Tls,
}

/// A header that the gateway sets from a secret.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    pub(super) header: HeaderName,
    pub(super) scheme: HeaderScheme,
    /// The secret's name.
    pub(super) secret: String,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    #[error("a route's prefix has 1 to {MAX_PREFIX_BYTES} letters, digits, dashes and underscores")]
    Prefix,
    #[error("the upstream is no URL")]
    Url(#[from] http::uri::InvalidUri),
    #[error("the upstream's URL begins with {0}://")]
    Scheme(&'static str),
    #[error("the upstream's URL is a scheme, a host, a port and a path, nothing else")]
    Parts,
    #[error("the upstream's host is no host name")]
    Host(#[from] NameError),
    #[error("the upstream's path can't be a base")]
    Path(#[from] TargetError),
    #[error(transparent)]
    Header(#[from] SecretError),
}

impl Route {
    /// A route to a base URL with `https`.
    ///
    /// # Errors
    ///
    /// If the prefix or the URL isn't one.
    pub fn new(prefix: &str, upstream: &str) -> Result<Self, RouteError> {
        Self::to(prefix, upstream, Encryption::Tls)
    }

    /// A route to a base URL with `http`: what is sent, the secret too, can be read on the way. For servers on the
    /// user's own machine.
    ///
    /// # Errors
    ///
    /// If the prefix or the URL isn't one.
    pub fn unencrypted(prefix: &str, upstream: &str) -> Result<Self, RouteError> {
        Self::to(prefix, upstream, Encryption::None)
    }

    fn to(prefix: &str, upstream: &str, encryption: Encryption) -> Result<Self, RouteError> {
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if prefix.is_empty() || prefix.len() > MAX_PREFIX_BYTES || !prefix.bytes().all(is_fine) {
            return Err(RouteError::Prefix);
        }
        let (scheme, name, default_port) = match encryption {
            Encryption::Tls => (Scheme::HTTPS, "https", 443),
            Encryption::None => (Scheme::HTTP, "http", 80),
        };
        let upstream: Uri = upstream.parse()?;
        if upstream.scheme() != Some(&scheme) {
            return Err(RouteError::Scheme(name));
        }
        let authority = upstream.authority().ok_or(RouteError::Parts)?;
        if authority.as_str().contains('@') || upstream.query().is_some() {
            return Err(RouteError::Parts);
        }
        let base_path = upstream.path().trim_end_matches('/');
        check_path(base_path)?;
        Ok(Self {
            prefix: prefix.to_owned(),
            encryption,
            host: HostName::parse(authority.host())?,
            port: authority.port_u16().unwrap_or(default_port),
            base_path: base_path.to_owned(),
            credentials: Vec::new(),
        })
    }

    /// The host that it leads to, with the port where that isn't the usual one.
    pub fn upstream(&self) -> String {
        let usual = match self.encryption {
            Encryption::None => 80,
            Encryption::Tls => 443,
        };
        if self.port == usual { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Sets this header to the secret of this name in every request of the route.
    ///
    /// # Errors
    ///
    /// If the header is one that says where a request goes or how long it is.
    pub fn credential(
        mut self,
        header: HeaderName,
        scheme: HeaderScheme,
        secret: &str,
    ) -> Result<Self, RouteError> {
        check_header(&header)?;
        self.credentials.push(Credential { header, scheme, secret: secret.to_owned() });
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_taken_apart_once() {
        let route = Route::new("anthropic", "https://API.Example.com:8443/v2/").unwrap();
        assert_eq!((route.host.as_str(), route.port), ("api.example.com", 8443));
        assert_eq!((route.base_path.as_str(), route.upstream().as_str()), ("/v2", "api.example.com:8443"));
        let route = Route::unencrypted("local", "http://localhost").unwrap();
        assert_eq!((route.port, route.base_path.as_str()), (80, ""));
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        for url in [
            "http://api.example",
            "ftp://api.example",
            "api.example",
            "https://user@api.example/",
            "https://api.example/?key=a",
            "https://api.example/a/../b",
            "https://api.example/a/%2e%2e/b",
            "https://127.0.0.1/",
            "https:///v1",
        ] {
            assert!(Route::new("a", url).is_err(), "{url}");
        }
        assert!(Route::unencrypted("a", "https://api.example").is_err());
        for prefix in ["", "a/b", "..", "a b", "a%2f"] {
            assert!(Route::new(prefix, "https://api.example").is_err(), "{prefix}");
        }
    }
}
