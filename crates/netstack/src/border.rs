//! Where secrets are put in.
//!
//! The host has a secret, the VM has a [placeholder](Secret) in its place. On the way out, here, the one becomes the
//! other; on the way back, what an upstream echoes of it is starred out. There are two ways out:
//!
//! - **The gateway**: plain HTTP inside, at an address of the VM's network. `http://10.0.2.4/<prefix>/…` goes on to the
//!   upstream of that [`Route`] over TLS, with the real key in the provider's header.
//! - **Interception**, of the [destinations](Destination) that the user declared and nothing else: the guest's TLS ends
//!   here, with a certificate of the VM's own authority. The secret goes in only where the address that the guest
//!   connected to, the name in its TLS hello, the upstream's certificate and the request's host all agree, and only in
//!   the declared header. A placeholder anywhere else stays one.
//!
//! ```text
//!  guest ──► [TLS of the VM's authority] ──► head judged ──► secret in ──► TLS, certificate checked ──► upstream
//!  guest ◄── [TLS] ◄── secret starred out ◄── head judged ◄─────────────────────────────────────────── upstream
//! ```
//!
//! Beside them, for policies by name, plain HTTP goes through here without any secret: [each request](Border::check_hosts)
//! of a connection must be for a host that is allowed, not only the first.
//!
//! A request that is refused is answered with a JSON error and told to the host; not a byte of it has left. The border
//! opens no sockets: the stack [dials](Outside::dial).
//!
//! In reading order: `secret` and `route` are what the user declares, `authority`, `stores` and `trust` the
//! certificates of the two sides, `relay` is the life of a connection, `target` and `head` are what becomes of a request's first part,
//! `upstream` the connections outside, `body`, `scrub` and `tunnel` what follows the heads, `refusal` what can be wrong.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{Entry, HeaderMap, HeaderValue};
use memchr::memmem;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::name::HostName;
use crate::policy;
use authority::Authority;
use relay::{Relay, Side};
use scrub::Patterns;

mod authority;
mod body;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod head;
mod refusal;
mod relay;
mod route;
mod scrub;
mod secret;
mod stores;
mod target;
mod trust;
mod tunnel;
mod upstream;

pub use authority::AuthorityError;
pub use refusal::Refusal;
pub use route::{Route, RouteError};
pub use secret::{Destination, HeaderScheme, MAX_VALUE_BYTES, MIN_VALUE_BYTES, Secret, SecretError};
pub use stores::{java_store, pem_bundle};
pub use target::TargetError;
pub use trust::{Trust, TrustError};

/// What a guest can make of a request by repeating a placeholder: as much as servers take of a head.
const MAX_PUT_IN_BYTES: usize = 16 * 1024;

/// Guests answer a TLS hello at once; what doesn't is no client.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(15);

/// The secrets of one VM and the ways out for them.
pub struct Border {
    secrets: Vec<Held>,
    routes: Vec<Route>,
    trust: Trust,
    /// `None` if nothing is intercepted.
    authority: Option<Authority>,
    patterns: Arc<Patterns>,
}

struct Held {
    secret: Secret,
    placeholder: String,
}

/// What the stack does for the border.
#[derive(Clone)]
pub struct Outside {
    /// Connects to an upstream. One with an address is connected to there and nowhere else: the policy has let the
    /// guest's connection to it pass, and for an interception the address is pinned to the name. One without is a route
    /// of the gateway, which the host has declared: its name is resolved, and no policy of the VM is asked. An error of
    /// the kind [`PermissionDenied`](io::ErrorKind::PermissionDenied) is told to the guest as a refusal.
    pub dial: Arc<dyn Fn(Upstream) -> Dialing + Send + Sync>,
    /// Is told what happens. Called in the middle of things: it must not wait.
    pub events: Arc<dyn Fn(BorderEvent) + Send + Sync>,
}

/// Says whether a request for this host may leave, or for none where it names none.
pub type Allowed<'a> = &'a (dyn Fn(Option<&HostName>) -> Result<(), policy::Refusal> + Send + Sync);

/// A connection to an upstream, which does not wait for more before it sends.
pub type Connected = Box<dyn Stream>;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Connected>> + Send>>;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// `None` for a plain request that names no host: then there is an address.
    pub name: Option<HostName>,
    pub port: u16,
    /// Where the guest itself had connected to, if it was on its way there.
    pub address: Option<SocketAddr>,
}

/// What the host may want to know.
#[derive(Debug)]
#[non_exhaustive]
pub enum BorderEvent {
    /// A request with the secret of this name in it is about to leave.
    PutIn { secret: String, upstream: Upstream },
    /// The guest got an error. Without an upstream: the gateway found none in the request.
    Refused { upstream: Option<Upstream>, refusal: Refusal },
    /// The answer held a secret, which was starred out.
    Echoed { upstream: Upstream },
    /// The guest broke the TLS handshake off: most likely it doesn't know the VM's authority.
    Handshake { upstream: Upstream, error: io::Error },
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BorderError {
    #[error("two secrets have the name '{0}'")]
    TwoSecrets(String),
    #[error("two routes have the prefix '{0}'")]
    TwoRoutes(String),
    #[error("the route '{route}' needs the secret '{secret}', which isn't declared")]
    NoSecret { route: String, secret: String },
    #[error("the system gives no random numbers")]
    Random(#[source] Errno),
    #[error("the VM's certificate authority can't be made")]
    Authority(#[from] AuthorityError),
}

impl Upstream {
    fn pinned(name: &HostName, address: SocketAddr) -> Self {
        Self { name: Some(name.clone()), port: address.port(), address: Some(address) }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.address) {
            (Some(name), _) => write!(f, "{name}:{}", self.port),
            (None, Some(address)) => address.fmt(f),
            (None, None) => write!(f, "port {}", self.port),
        }
    }
}

impl Destination {
    fn is(&self, upstream: &Upstream) -> bool {
        upstream.name.as_ref() == Some(&self.host) && upstream.port == self.port
    }
}

impl Border {
    /// Makes the placeholders, and an authority if there is something to intercept.
    ///
    /// # Errors
    ///
    /// If secrets and routes don't fit together, or there is no randomness to be had.
    pub fn new(secrets: Vec<Secret>, routes: Vec<Route>, trust: Trust) -> Result<Self, BorderError> {
        let mut held: Vec<Held> = Vec::with_capacity(secrets.len());
        for secret in secrets {
            if held.iter().any(|other| other.secret.name() == secret.name()) {
                return Err(BorderError::TwoSecrets(secret.name().to_owned()));
            }
            let placeholder = secret.new_placeholder().map_err(BorderError::Random)?;
            held.push(Held { secret, placeholder });
        }
        check_routes(&routes, &held)?;
        let destinations = held.iter().flat_map(|held| held.secret.destinations());
        let names: BTreeSet<HostName> = destinations.map(|destination| destination.host.clone()).collect();
        let authority = if names.is_empty() { None } else { Some(Authority::new(&names)?) };
        let patterns = Arc::new(Patterns::of(held.iter().map(|held| held.secret.value())));
        Ok(Self { secrets: held, routes, trust, authority, patterns })
    }

    /// The placeholders by the names of their secrets: what the VM gets instead of them.
    pub fn placeholders(&self) -> impl Iterator<Item = (&str, &str)> {
        self.secrets.iter().map(|held| (held.secret.name(), held.placeholder.as_str()))
    }

    /// Whether connections to this name and port are to be [intercepted](Self::intercept).
    pub fn intercepts(&self, name: &HostName, port: u16) -> bool {
        let mut destinations = self.secrets.iter().flat_map(|held| held.secret.destinations());
        destinations.any(|destination| destination.host == *name && destination.port == port)
    }

    /// The certificate of the VM's authority, to be installed in the VM; `None` if nothing is intercepted.
    pub fn authority_pem(&self) -> Option<&str> {
        self.authority.as_ref().map(Authority::pem)
    }

    /// Serves a connection of the guest to the gateway until it ends. Dropped, everything that it does ends.
    pub async fn serve_gateway<S>(&self, guest: S, outside: &Outside)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Relay::new(self, outside, Side::Gateway).serve(guest).await;
    }

    /// Serves a connection of the guest to `destination`, which begins with a TLS hello that names `sni`, until it
    /// ends. That `sni` has led to `destination` is for the caller to know. Dropped, everything that it does ends.
    ///
    /// A connection that isn't to be intercepted is ended at once, with an event.
    pub async fn intercept<S>(&self, guest: S, destination: SocketAddr, sni: HostName, outside: &Outside)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let upstream = Upstream::pinned(&sni, destination);
        let authority = self.authority.as_ref().filter(|_| self.intercepts(&sni, destination.port()));
        let Some(authority) = authority else {
            let refused = BorderEvent::Refused { upstream: Some(upstream), refusal: Refusal::OtherHost };
            return (outside.events)(refused);
        };
        let accepted = TlsAcceptor::from(authority.server()).accept(guest);
        let accepted = timeout(HANDSHAKE_DEADLINE, accepted).await;
        match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            // The hello was read twice, by the stack and by rustls: whoever finds two readings of one gains nothing.
            Ok(stream) if claimed_name(&stream).as_ref() == Some(&sni) => {
                let side = Side::Intercepted { name: sni, address: destination };
                Relay::new(self, outside, side).serve(stream).await;
            }
            Ok(_) => {
                let refusal = Refusal::OtherHost;
                (outside.events)(BorderEvent::Refused { upstream: Some(upstream), refusal });
            }
            Err(error) => (outside.events)(BorderEvent::Handshake { upstream, error }),
        }
    }

    /// Serves a connection of the guest to `destination`, which begins with plain HTTP, until it ends: every request of
    /// it must be for a host that is `allowed`. What passes goes to that very address as it is, without any secret.
    pub async fn check_hosts<S>(
        &self,
        guest: S,
        destination: SocketAddr,
        allowed: Allowed<'_>,
        outside: &Outside,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Relay::new(self, outside, Side::Plain { address: destination, allowed }).serve(guest).await;
    }

    /// Sets the headers of a route. The names of the secrets that are now in them.
    fn set_credentials(&self, route: &Route, headers: &mut HeaderMap) -> Result<Vec<String>, Refusal> {
        let mut used = Vec::new();
        for credential in &route.credentials {
            let held = self.secrets.iter().find(|held| held.secret.name() == credential.secret);
            let value = held.and_then(|held| credential.scheme.header(held.secret.value()).ok());
            headers.insert(credential.header.clone(), value.ok_or(Refusal::Request)?);
            used.push(credential.secret.clone());
        }
        Ok(used)
    }

    /// Puts secrets in the places of their placeholders, in the headers that are declared for this upstream. The names
    /// of those that were put in.
    fn fill_placeholders(
        &self,
        upstream: &Upstream,
        headers: &mut HeaderMap,
    ) -> Result<Vec<String>, Refusal> {
        let (mut used, mut room) = (Vec::new(), MAX_PUT_IN_BYTES);
        for held in &self.secrets {
            let declared = held.secret.destinations().iter();
            for destination in declared.filter(|to| to.is(upstream)) {
                let Entry::Occupied(mut entry) = headers.entry(&destination.header) else { continue };
                for value in entry.iter_mut() {
                    if let Some(filled) = held.fill(value) {
                        room = room.checked_sub(filled.len()).ok_or(Refusal::Request)?;
                        *value = filled;
                        used.push(held.secret.name().to_owned());
                    }
                }
            }
        }
        Ok(used)
    }
}

impl Held {
    /// The header's value with the secret in the place of the placeholder, also where that is the user or the password
    /// of basic authentication; `None` if it isn't in there.
    fn fill(&self, value: &HeaderValue) -> Option<HeaderValue> {
        let text = value.as_bytes();
        let filled = self.replace(text).or_else(|| {
            let (scheme, encoded) = text.split_at_checked(b"Basic ".len())?;
            let encoded = scheme.eq_ignore_ascii_case(b"Basic ").then(|| encoded.trim_ascii())?;
            let decoded = Zeroizing::new(BASE64.decode(encoded).ok()?);
            let encoded = Zeroizing::new(BASE64.encode(self.replace(&decoded)?));
            Some(Zeroizing::new([b"Basic ", encoded.as_bytes()].concat()))
        })?;
        let mut value = HeaderValue::from_bytes(&filled).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn replace(&self, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let finder = memmem::Finder::new(self.placeholder.as_bytes());
        let added = finder.find_iter(text).count().checked_mul(self.secret.value().len())?;
        if added == 0 || added > MAX_PUT_IN_BYTES {
            return None;
        }
        // With room for all, so that no copy is left behind by growing.
        let mut filled = Zeroizing::new(Vec::with_capacity(text.len() + added));
        let mut rest = text;
        while let Some(start) = finder.find(rest) {
            filled.extend_from_slice(&rest[..start]);
            filled.extend_from_slice(self.secret.value().as_bytes());
            rest = &rest[start + self.placeholder.len()..];
        }
        filled.extend_from_slice(rest);
        Some(filled)
    }
}

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn check_routes(routes: &[Route], secrets: &[Held]) -> Result<(), BorderError> {
    for (index, route) in routes.iter().enumerate() {
        if routes[..index].iter().any(|other| other.prefix == route.prefix) {
            return Err(BorderError::TwoRoutes(route.prefix.clone()));
        }
        for credential in &route.credentials {
            if !secrets.iter().any(|held| held.secret.name() == credential.secret) {
                let (route, secret) = (route.prefix.clone(), credential.secret.clone());
                return Err(BorderError::NoSecret { route, secret });
            }
        }
    }
    Ok(())
}

fn claimed_name<S>(stream: &tokio_rustls::server::TlsStream<S>) -> Option<HostName> {
    let name = stream.get_ref().1.server_name()?;
    HostName::parse(name).ok()
}

impl fmt::Debug for Border {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets: Vec<&Secret> = self.secrets.iter().map(|held| &held.secret).collect();
        f.debug_struct("Border")
            .field("secrets", &secrets)
            .field("routes", &self.routes)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}
