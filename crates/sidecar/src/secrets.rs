//! Secrets as a VM's creator declares them, and the ways out that follow from that.
//!
//! ```text
//! NAME, destinations ──────────────► interception of TLS at those
//! NAME that a provider's key bears ─► a route of the gateway, and the base URL of the provider in the VM is that
//! ```
//! A provider's own address is where its key goes, unless the caller's environment points its clients elsewhere: then it
//! goes there, as it would without a VM. Of a key whose destinations lead to other hosts we know no better.

use std::collections::BTreeMap;

use agentos_agents::Agent;
use agentos_agents::provider::{self, KeyScheme, Provider, Redirect};
use agentos_proto::v1;
use agentos_vm::name::HostName;
use agentos_vm::network::{Destination, GATEWAY, HeaderScheme, Route, RouteError, Secret};
use http::Uri;
use http::header::HeaderName;
use zeroize::Zeroizing;

use crate::errors::Failure;

/// The port of a destination that names none.
const HTTPS: u16 = 443;

/// The secrets of one VM.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    pub(crate) secrets: Vec<Secret>,
    pub(crate) routes: Vec<Route>,
    pub(crate) keys: Vec<ProviderKey>,
}

/// A secret that is a provider's key, and goes there through the gateway.
#[derive(Debug, Clone)]
pub(crate) struct ProviderKey {
    pub(crate) provider: &'static Provider,
    /// Where it goes.
    pub(crate) host: String,
}

/// Reads the secrets. The variables that point a provider's clients elsewhere are replaced by the gateway's address.
pub(crate) fn declare(
    wishes: Vec<v1::Secret>,
    env: &mut BTreeMap<String, String>,
) -> Result<Declared, Failure> {
    let mut declared = Declared::default();
    for mut wish in wishes {
        // The message wipes what is left in it; this takes the value out whole.
        let value = Zeroizing::new(std::mem::take(&mut wish.value));
        let refused = |problem: &dyn std::fmt::Display| {
            Failure::invalid(&wish.name, format!("Secret {}: {problem}", wish.name))
        };
        if declared.secrets.iter().any(|other| other.name() == wish.name) {
            return Err(refused(&"it is given twice"));
        }
        let provider = provider::of_key(&wish.name).filter(|provider| leads_to(&wish, provider));
        let prefix = provider.map_or("", |provider| provider.key_prefix);
        let prefix = wish.placeholder_prefix.as_deref().unwrap_or(prefix);
        let mut secret = Secret::new(&wish.name, value)
            .and_then(|secret| secret.placeholder_prefix(prefix))
            .map_err(|error| refused(&error))?;
        for destination in &wish.destinations {
            let read = destination_of(destination).map_err(|error| refused(&error))?;
            secret = secret.destination(read).map_err(|error| refused(&error))?;
        }
        if let Some(provider) = provider {
            let (route, host) = route_of(provider, env.get(provider.base_url))
                .map_err(|error| refused(&format!("{}: {error}", provider.base_url)))?;
            declared.routes.push(route);
            declared.keys.push(ProviderKey { provider, host });
            env.insert(provider.base_url.to_owned(), gateway_of(provider));
        } else if wish.destinations.is_empty() {
            let known: Vec<&str> = provider::PROVIDERS.iter().map(|provider| provider.key).collect();
            return Err(refused(&format!(
                "it has no destination; those that need none are {}",
                known.join(", ")
            )));
        }
        declared.secrets.push(secret);
    }
    Ok(declared)
}

impl ProviderKey {
    /// How an agent that has no key of its own is pointed to the gateway for these keys.
    pub(crate) fn redirects(keys: &[Self], agent: &Agent, env: &BTreeMap<String, String>) -> Vec<Redirect> {
        let declared = |provider: &Provider| keys.iter().any(|key| key.provider == provider);
        let known = agent.providers.iter().filter(|known| declared(known.provider));
        known
            .filter(|known| !env.contains_key(known.provider.key))
            .map(|known| Redirect { provider: known.clone(), gateway: gateway_of(known.provider) })
            .collect()
    }
}

/// What of a destination can't be read.
#[derive(Debug, thiserror::Error)]
enum DestinationError {
    #[error("'{0}' is no HOST or HOST:PORT")]
    Host(String),
    #[error("'{0}' is no header")]
    Header(String),
}

/// Whether the gateway may send the key to the provider: its owner has said nothing else of where it goes.
fn leads_to(wish: &v1::Secret, provider: &Provider) -> bool {
    let own = provider.upstream.parse::<Uri>().ok();
    let port = own.as_ref().and_then(Uri::port_u16).unwrap_or(HTTPS);
    let host = own.as_ref().and_then(Uri::host).and_then(|host| HostName::parse(host).ok());
    let is_own = |destination: &v1::SecretDestination| {
        destination_of(destination).is_ok_and(|to| Some(&to.host) == host.as_ref() && to.port == port)
    };
    wish.destinations.is_empty() || wish.destinations.iter().any(is_own)
}

fn destination_of(destination: &v1::SecretDestination) -> Result<Destination, DestinationError> {
    let text = &destination.host;
    let unreadable = || DestinationError::Host(text.clone());
    let (host, port) = match text.split_once(':') {
        None => (text.as_str(), HTTPS),
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0).ok_or_else(unreadable)?),
    };
    let host = HostName::parse(host).map_err(|_| unreadable())?;
    let header = HeaderName::try_from(&destination.header);
    let header = header.map_err(|_| DestinationError::Header(destination.header.clone()))?;
    Ok(Destination { host, port, header })
}

/// The route to a provider, or to where the caller points its clients, and the host that is behind it.
fn route_of(provider: &Provider, base_url: Option<&String>) -> Result<(Route, String), RouteError> {
    let upstream = base_url.filter(|url| !url.is_empty()).map_or(provider.upstream, String::as_str);
    let route = match upstream.starts_with("http://") {
        true => Route::unencrypted(provider.prefix, upstream)?,
        false => Route::new(provider.prefix, upstream)?,
    };
    let scheme = match provider.scheme {
        KeyScheme::Plain => HeaderScheme::Plain,
        KeyScheme::Bearer => HeaderScheme::Bearer,
    };
    let host = route.upstream();
    Ok((route.credential(HeaderName::from_static(provider.header), scheme, provider.key)?, host))
}

/// What a provider's clients in the VM are pointed to.
fn gateway_of(provider: &Provider) -> String {
    format!("http://{GATEWAY}/{}", provider.prefix)
}

#[cfg(test)]
mod tests {
    use agentos_agents::Registry;

    use super::*;

    const VALUE: &str = "sk-ant-api03-the-real-one";

    fn wish(name: &str, destinations: &[(&str, &str)]) -> v1::Secret {
        let mut wish = v1::Secret::default();
        name.clone_into(&mut wish.name);
        VALUE.clone_into(&mut wish.value);
        wish.destinations = destinations
            .iter()
            .map(|(host, header)| v1::SecretDestination { host: (*host).into(), header: (*header).into() })
            .collect();
        wish
    }

    fn refusal(wish: v1::Secret, env: &[(&str, &str)]) -> String {
        let mut env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let detail = declare(vec![wish], &mut env).unwrap_err().into_detail();
        assert!(!detail.message.contains(VALUE), "{}", detail.message);
        detail.message
    }

    #[test]
    fn a_providers_key_has_a_route_and_its_clients_are_pointed_there() {
        let mut env = BTreeMap::new();
        let declared = declare(vec![wish("ANTHROPIC_API_KEY", &[])], &mut env).unwrap();
        assert_eq!(env["ANTHROPIC_BASE_URL"], "http://10.0.2.4/anthropic");
        assert_eq!((declared.routes.len(), declared.keys[0].host.as_str()), (1, "api.anthropic.com"));
        assert!(declared.secrets[0].destinations().is_empty());
        assert!(!format!("{declared:?}").contains(VALUE));
    }

    #[test]
    fn a_base_url_of_the_callers_becomes_the_upstream() {
        let mut env = BTreeMap::from([(
            "ANTHROPIC_BASE_URL".to_owned(),
            "https://proxy.example:8443/anthropic".to_owned(),
        )]);
        let declared = declare(vec![wish("ANTHROPIC_API_KEY", &[])], &mut env).unwrap();
        assert_eq!(declared.keys[0].host, "proxy.example:8443");
        assert_eq!(env["ANTHROPIC_BASE_URL"], "http://10.0.2.4/anthropic");
        let refused = refusal(wish("OPENAI_API_KEY", &[]), &[("OPENAI_BASE_URL", "ftp://x")]);
        assert!(refused.contains("OPENAI_API_KEY") && refused.contains("OPENAI_BASE_URL"), "{refused}");
    }

    #[test]
    fn a_key_with_destinations_of_its_own_goes_nowhere_else() {
        let mut env = BTreeMap::new();
        let elsewhere = wish("ANTHROPIC_API_KEY", &[("proxy.example", "x-api-key")]);
        let declared = declare(vec![elsewhere], &mut env).unwrap();
        assert!(declared.routes.is_empty() && declared.keys.is_empty() && env.is_empty());
        // Another port is another server.
        let beside = wish("ANTHROPIC_API_KEY", &[("api.anthropic.com:8443", "x-api-key")]);
        assert!(declare(vec![beside], &mut env).unwrap().routes.is_empty() && env.is_empty());
        let both = wish("ANTHROPIC_API_KEY", &[("API.anthropic.com:443", "x-api-key")]);
        let declared = declare(vec![both], &mut env).unwrap();
        assert_eq!((declared.routes.len(), declared.secrets[0].destinations().len()), (1, 1));
    }

    #[test]
    fn what_is_no_secret_is_refused_by_name() {
        for (wish, reason) in [
            (wish("TOKEN", &[]), "no destination"),
            (wish("TOKEN", &[("a b", "x-key")]), "'a b' is no HOST"),
            (wish("TOKEN", &[("a.example:0", "x-key")]), "is no HOST"),
            (wish("TOKEN", &[("10.0.0.1", "x-key")]), "is no HOST"),
            (wish("TOKEN", &[("*.a.example", "x-key")]), "is no HOST"),
            (wish("TOKEN", &[("a.example/path", "x-key")]), "is no HOST"),
            (wish("TOKEN", &[("a.example", "x-key\r\nhost")]), "is no header"),
            (wish("TOKEN", &[("a.example", "transfer-encoding")]), "frames or routes"),
            (wish("TOKEN", &[("a.example", "x key")]), "'x key' is no header"),
            (wish("TOKEN", &[("a.example", "host")]), "frames or routes"),
        ] {
            let refused = refusal(wish, &[]);
            assert!(refused.starts_with("Secret TOKEN: ") && refused.contains(reason), "{refused}");
        }
        for (value, reason) in [
            ("brief", "at least 8 bytes"),
            ("0123456789\r\nhost: b.example", "visible ASCII"),
            ("\0\0\0\0\0\0\0\0", "visible"),
        ] {
            let mut wish = wish("TOKEN", &[("a.example", "x-key")]);
            wish.value = value.to_owned();
            let refused = refusal(wish, &[]);
            assert!(refused.contains(reason) && !refused.contains(value), "{refused}");
        }
    }

    #[test]
    fn an_agent_with_a_key_of_its_own_is_left_alone() {
        let registry = Registry::built_in();
        let pi = registry.find("pi").unwrap();
        let keys = declare(vec![wish("GEMINI_API_KEY", &[])], &mut BTreeMap::new()).unwrap().keys;
        let redirects = ProviderKey::redirects(&keys, pi, &BTreeMap::new());
        assert_eq!(
            (redirects[0].provider.id.as_str(), redirects[0].gateway.as_str()),
            ("google", "http://10.0.2.4/gemini")
        );
        let own = BTreeMap::from([("GEMINI_API_KEY".to_owned(), "own".to_owned())]);
        assert!(ProviderKey::redirects(&keys, pi, &own).is_empty());
    }
}
