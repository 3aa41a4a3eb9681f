//! Agents that can be asked for, and their installation.

use std::fmt;

use agentos_proto::v1;

use crate::builder::into_future;
use crate::convert;
use crate::error::Error;
use crate::session_options::InstallProgress;
use crate::sidecar::AgentOsSidecar;
use crate::vm::AgentOs;

/// An agent that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentRegistryEntry {
    /// What `create_session` takes.
    pub id: String,
    /// The package that speaks ACP for it.
    pub acp_adapter: String,
    /// The agent's own package.
    pub agent_package: String,
    /// Whether it is on this host.
    pub installed: bool,
    /// The installed version, or the one that would be installed.
    pub version: Option<String>,
    /// The variables with keys and base URLs of models that it looks for.
    pub model_env: Vec<String>,
    /// The providers whose keys can be [secrets](crate::Secret) without a destination, those it prefers first.
    pub providers: Vec<AgentProvider>,
}

/// A model provider that an agent is pointed away from, so that its key can stay outside of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentProvider {
    /// The variable with its key.
    pub key: String,
    /// The variable with another address of it.
    pub base_url: String,
    /// Where the key goes unless that is set.
    pub host: String,
}

impl AgentOs {
    /// The agents this VM can launch, with their state of installation.
    ///
    /// # Errors
    ///
    /// When the VM cannot be asked.
    pub async fn list_agents(&self) -> Result<Vec<AgentRegistryEntry>, Error> {
        let request = v1::ListAgentsRequest { vm_id: self.id().to_owned() };
        let reply =
            self.live()?.session().list_agents(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().agents.into_iter().map(convert::session::agent).collect())
    }
}

impl AgentOsSidecar {
    /// The built-in agents, with their state of installation.
    ///
    /// # Errors
    ///
    /// When the sidecar cannot be asked.
    pub async fn list_agents(&self) -> Result<Vec<AgentRegistryEntry>, Error> {
        let request = v1::ListAgentsRequest { vm_id: String::new() };
        let reply =
            self.connection().session().list_agents(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().agents.into_iter().map(convert::session::agent).collect())
    }

    /// Installs a built-in agent, or finds that it is installed.
    #[must_use = "does nothing until awaited"]
    pub fn install_agent(&self, agent_type: impl Into<String>) -> InstallAgent {
        InstallAgent { sidecar: self.clone(), agent_type: agent_type.into(), on_install_progress: None }
    }
}

/// An installation; await it for its end. What is fetched when the future is dropped is used by the next attempt.
///
/// Fails with `NotFound` (`Unknown agent type: X`) and with what the registry or the disk refused.
pub struct InstallAgent {
    sidecar: AgentOsSidecar,
    agent_type: String,
    on_install_progress: Option<Box<dyn FnMut(InstallProgress) + Send>>,
}

impl InstallAgent {
    /// Called as the installation proceeds.
    #[must_use]
    pub fn on_install_progress(mut self, handler: impl FnMut(InstallProgress) + Send + 'static) -> Self {
        self.on_install_progress = Some(Box::new(handler));
        self
    }

    async fn run(self) -> Result<(), Error> {
        let Self { sidecar, agent_type, mut on_install_progress } = self;
        let request = v1::InstallAgentRequest { agent_type };
        let failed = |status| sidecar.failed(status);
        let mut steps =
            sidecar.connection().session().install_agent(request).await.map_err(failed)?.into_inner();
        while let Some(step) = steps.message().await.map_err(failed)? {
            if let Some(handler) = &mut on_install_progress {
                handler(convert::session::install_progress(step));
            }
        }
        Ok(())
    }
}

into_future!(InstallAgent => ());

impl fmt::Debug for InstallAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstallAgent").field("agent_type", &self.agent_type).finish_non_exhaustive()
    }
}
