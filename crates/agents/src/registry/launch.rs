//! How an agent is started, as layers of data of which a session takes those that concern it.
//!
//! ```text
//! always ─► store ─► moved ─► provider or demo ─► gateway (each provider) ─► ask or allow_all ─► instructions
//!        ─► resume ─► the user's
//! ```
//! Each layer adds arguments, variables, files and parameters of the session; where two say something of the same table,
//! they are put together. The user's environment wins over all of them, but for the demo model's variables: a
//! configuration elsewhere would name another model than the session says it has.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::template::{Template, Tree};

/// What one circumstance adds to a launch.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Arguments behind the command.
    #[serde(default)]
    pub args: Vec<Template>,
    /// Variables. A table becomes JSON.
    #[serde(default)]
    pub env: BTreeMap<String, Tree>,
    /// Files by their path in the VM. A table is written as what the name ends in, `.json` or `.toml`; texts for the
    /// same file follow each other.
    #[serde(default)]
    pub files: BTreeMap<Template, Tree>,
    /// Members of the parameters of `session/new`, `session/load` and `session/resume`.
    #[serde(default)]
    pub session: BTreeMap<Template, Tree>,
    /// The mode that the session is put into, by the agent's name for it.
    #[serde(default)]
    pub mode: Option<String>,
}

/// How an agent gets the tool servers of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToolServers {
    /// As ACP has it.
    #[default]
    Acp,
    /// By an extension of pi's that registers them.
    PiExtension,
    /// Not at all.
    None,
}

/// Everything between an agent's packages and its running process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LaunchData {
    /// The command.
    pub command: Vec<Template>,
    /// What every launch has.
    pub always: Layer,
    /// Where its packages are the store's and not the user's own.
    pub store: Layer,
    /// Where its configuration is moved to the session.
    pub moved: Layer,
    /// With the offline model.
    pub demo: Layer,
    /// With a provider.
    pub provider: Layer,
    /// Where it asks before it acts.
    pub ask: Layer,
    /// Where it asks nothing.
    pub allow_all: Layer,
    /// With OS instructions.
    pub instructions: Layer,
    /// Where it goes on with a session of its own, which it has to know before it is spoken to.
    pub resume: Layer,
    /// In a run that compiles the agent's code and ends by itself at the end of its input; none where nothing is gained
    /// by one.
    pub warm_up: Option<Layer>,
}
