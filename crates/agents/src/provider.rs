//! The model providers whose keys a gateway can keep out of a VM, as data.
//!
//! Each says under which variable its key goes by, where it is, and how it wants the key. What an agent calls it, and
//! how it is pointed to the gateway, is the [agent's](crate::registry) own.

use crate::registry::launch::Layer;

/// One provider.
#[derive(Debug, PartialEq, Eq)]
pub struct Provider {
    /// The variable that its key goes by.
    pub key: &'static str,
    /// The variable by which its own clients are pointed elsewhere.
    pub base_url: &'static str,
    /// Where that points unless it is set.
    pub upstream: &'static str,
    /// Its name at the gateway: `http://GATEWAY/PREFIX` stands for the upstream.
    pub prefix: &'static str,
    /// The header that its key is sent in.
    pub header: &'static str,
    /// How it stands there.
    pub scheme: KeyScheme,
    /// What its keys begin with. Clients look at that before they send anything.
    pub key_prefix: &'static str,
}

/// How a key stands in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyScheme {
    /// Alone.
    Plain,
    /// Behind `Bearer`.
    Bearer,
}

/// All of them, the usual first: of two that could serve, a session gets the earlier.
pub static PROVIDERS: [Provider; 4] = [
    Provider {
        key: "ANTHROPIC_API_KEY",
        base_url: "ANTHROPIC_BASE_URL",
        upstream: "https://api.anthropic.com",
        prefix: "anthropic",
        header: "x-api-key",
        scheme: KeyScheme::Plain,
        key_prefix: "sk-ant-api03-",
    },
    Provider {
        key: "OPENAI_API_KEY",
        base_url: "OPENAI_BASE_URL",
        upstream: "https://api.openai.com/v1",
        prefix: "openai",
        header: "authorization",
        scheme: KeyScheme::Bearer,
        key_prefix: "sk-proj-",
    },
    Provider {
        key: "GEMINI_API_KEY",
        base_url: "GOOGLE_GEMINI_BASE_URL",
        upstream: "https://generativelanguage.googleapis.com",
        prefix: "gemini",
        header: "x-goog-api-key",
        scheme: KeyScheme::Plain,
        key_prefix: "AIza",
    },
    Provider {
        key: "OPENROUTER_API_KEY",
        base_url: "OPENROUTER_BASE_URL",
        upstream: "https://openrouter.ai/api/v1",
        prefix: "openrouter",
        header: "authorization",
        scheme: KeyScheme::Bearer,
        key_prefix: "sk-or-v1-",
    },
];

/// The provider whose key goes by this name.
#[must_use]
pub fn of_key(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.key == name)
}

/// How one agent knows a provider.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentProvider {
    /// The provider.
    pub provider: &'static Provider,
    /// The agent's own name for it.
    pub id: String,
    /// What its launch has where the gateway stands for the provider.
    pub gateway: Layer,
}

/// A provider of an agent that is reached through the gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// The provider, as the agent knows it.
    pub provider: AgentProvider,
    /// The gateway's address for it: `http://10.0.2.4/anthropic`.
    pub gateway: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_provider_has_names_of_its_own() {
        for (index, provider) in PROVIDERS.iter().enumerate() {
            assert_eq!(of_key(provider.key), Some(provider));
            assert!(provider.upstream.starts_with("https://") && !provider.upstream.ends_with('/'));
            assert!(provider.header.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'));
            let earlier = &PROVIDERS[..index];
            assert!(earlier.iter().all(|other| other.prefix != provider.prefix));
            assert!(earlier.iter().all(|other| other.base_url != provider.base_url));
        }
        assert_eq!(of_key("PATH"), None);
    }
}
