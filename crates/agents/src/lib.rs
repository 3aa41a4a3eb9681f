//! Agents: which there are, where their programs come from, how they are started, what a session with one is.
//!
//! In reading order: [`registry`] lists the agents as data, and [`provider`] the models' providers; [`store`] fetches their packages from the npm registry;
//! [`configuration`] tells whether an agent's own files name a provider; [`model`] decides which model a session talks
//! to; [`plan`] turns all of that into a command line, files and mounts; [`wire`] translates an agent's own protocol to
//! ACP's shapes without doing any I/O; [`session`] owns one running agent and its prompts; [`transcript`] keeps every
//! event in SQLite. [`home`] names the directories.
//!
//! This crate is given paths and byte streams. It knows no VM, no namespace and no gRPC: whoever executes a
//! [`plan::LaunchPlan`] decides where.

pub mod configuration;
pub mod home;
pub mod model;
pub mod permission;
pub mod plan;
pub mod provider;
pub mod registry;
pub mod session;
pub mod store;
pub mod transcript;
pub mod wire;

pub use home::{Home, HomeError};
pub use permission::PermissionPolicy;
pub use registry::{Agent, AgentConfig, Registry, UnknownAgent};
pub use session::{AgentExit, AgentProcess, Session, SessionId, SessionNotFound, Sessions};
pub use store::Store;
pub use transcript::Transcripts;

/// One row of the list of agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentEntry {
    /// The id that sessions are created by.
    pub id: String,
    /// What speaks ACP for it.
    pub acp_adapter: String,
    /// Its npm package.
    pub agent_package: String,
    /// Whether the store holds everything it needs.
    pub installed: bool,
    /// The pinned version, where there is one.
    pub version: Option<String>,
}

/// The agents of a registry with what the store knows of each.
#[must_use]
pub fn list_agents(registry: &Registry, store: &Store) -> Vec<AgentEntry> {
    let entry = |agent: &Agent| AgentEntry {
        id: agent.id.clone(),
        acp_adapter: agent.acp_adapter.clone(),
        agent_package: agent.agent_package.clone(),
        installed: agent.source != registry::Source::Modules && store.installed(agent).is_some(),
        version: agent.version().map(str::to_owned),
    };
    registry.agents().iter().map(entry).collect()
}
