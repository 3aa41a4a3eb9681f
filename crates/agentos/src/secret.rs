//! Secrets that never enter a VM.

use std::ffi::OsStr;
use std::fmt;

use zeroize::Zeroizing;

/// How variables end that hold keys of model providers. A sidecar is told of those that VMs are to have; it looks for
/// none.
const KEY_ENDINGS: [&str; 3] = ["_API_KEY", "_AUTH_TOKEN", "_OAUTH_TOKEN"];

/// Whether a variable of the environment holds a provider's key, by its name.
pub(crate) fn is_provider_key(name: &OsStr) -> bool {
    KEY_ENDINGS.iter().any(|ending| name.as_encoded_bytes().ends_with(ending.as_bytes()))
}

/// A credential that the VM's programs use without having it: in the VM, the variable of its name holds a placeholder,
/// which becomes the real value on the way out, outside of the VM, and only where the secret is declared for.
///
/// ```
/// use agentos::{AgentOsOptions, Secret};
///
/// # let (key, token) = ("sk-ant-api03-...", "ghp_0123456789");
/// let options = AgentOsOptions::default()
///     .secret(Secret::new("ANTHROPIC_API_KEY", key).header("api.anthropic.com", "x-api-key"))
///     .secret(Secret::new("GITHUB_TOKEN", token).bearer("api.github.com").header("github.com", "authorization"));
/// ```
///
/// For each destination the VM's own certificate authority answers in the place of the server, and programs in the VM
/// are made to trust it. A placeholder sent anywhere else, or in another header, stays one.
///
/// The key of a model provider that agents know (`ANTHROPIC_API_KEY`, `OPENAI_API_KEY`, `GEMINI_API_KEY`,
/// `OPENROUTER_API_KEY`) needs no destination: agents, and the provider's own clients, are pointed to a gateway that
/// adds the key. It goes to the provider, or to where the VM's environment points its clients (`ANTHROPIC_BASE_URL`).
/// If it has destinations and none is the provider's host, it goes to those alone.
///
/// The value is never shown, can't be read back, and is wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Secret {
    pub(crate) name: String,
    pub(crate) value: Zeroizing<String>,
    pub(crate) placeholder_prefix: Option<String>,
    /// Hosts and headers.
    pub(crate) destinations: Vec<(String, String)>,
}

impl Secret {
    /// A secret under the name of the variable that the VM has instead of it. The value has at least 8 bytes of visible
    /// ASCII.
    #[must_use]
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: Zeroizing::new(value.into()),
            placeholder_prefix: None,
            destinations: Vec::new(),
        }
    }

    /// Declares a destination, `HOST` or `HOST:PORT`, whose requests may carry the secret in this header: as the whole
    /// value, within it (`Bearer …`), or as the user or password of basic authentication.
    #[must_use]
    pub fn header(mut self, host: impl Into<String>, header: impl Into<String>) -> Self {
        self.destinations.push((host.into(), header.into()));
        self
    }

    /// Declares a destination whose requests may carry the secret in `Authorization`.
    #[must_use]
    pub fn bearer(self, host: impl Into<String>) -> Self {
        self.header(host, "authorization")
    }

    /// Lets the placeholder begin like the real thing, for programs that look at that before they send anything. Keys of
    /// known providers have theirs by default.
    #[must_use]
    pub fn placeholder_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.placeholder_prefix = Some(prefix.into());
        self
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AgentOsOptions;

    #[test]
    fn options_show_the_names_of_secrets_alone() {
        let secret = Secret::new("API_KEY", "hidden-value").bearer("api.example");
        let shown = format!("{:?}", AgentOsOptions::default().secret(secret));
        assert!(shown.contains("API_KEY") && shown.contains("api.example"), "{shown}");
        assert!(!shown.contains("hidden"), "{shown}");
    }
}
