//! `agentos agents`: which agents there are, and their installation.

use agentos::{AgentOs, AgentOsSharedSidecarOptions, AgentRegistryEntry};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::failure::Failure;
use crate::install::Progress;
use crate::terminal::{harmless_line, print, table};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  agentos agents list
  agentos agents install pi")]
pub(crate) struct AgentsArgs {
    #[command(subcommand)]
    command: AgentsCommand,
}

#[derive(Debug, Subcommand)]
enum AgentsCommand {
    /// List the agents that can be asked for
    List {
        /// One JSON object per agent and line
        #[arg(long)]
        json: bool,
    },
    /// Install an agent now; `run` does it by itself when it is needed
    Install {
        /// The agent's id, as `list` shows it
        #[arg(value_name = "AGENT")]
        agent: String,
    },
}

pub(crate) async fn run(args: AgentsArgs) -> Result<u8, Failure> {
    let sidecar = AgentOs::get_shared_sidecar(AgentOsSharedSidecarOptions::default()).await?;
    match args.command {
        AgentsCommand::List { json } => {
            let agents = sidecar.list_agents().await?;
            print(&if json { as_json(&agents) } else { as_table(&agents) })?;
        }
        AgentsCommand::Install { agent } => {
            let mut progress = Progress::new();
            sidecar.install_agent(&agent).on_install_progress(move |step| progress.show(&step)).await?;
            print(&format!("{} is installed\n", harmless_line(&agent)))?;
        }
    }
    Ok(0)
}

fn as_json(agents: &[AgentRegistryEntry]) -> String {
    let line = |agent: &AgentRegistryEntry| {
        let object = json!({
            "id": agent.id,
            "acpAdapter": agent.acp_adapter,
            "agentPackage": agent.agent_package,
            "installed": agent.installed,
            "version": agent.version,
        });
        format!("{object}\n")
    };
    agents.iter().map(line).collect()
}

fn as_table(agents: &[AgentRegistryEntry]) -> String {
    let mut rows = vec![["AGENT", "INSTALLED", "VERSION", "PACKAGE"].map(str::to_owned)];
    rows.extend(agents.iter().map(|agent| {
        let installed = if agent.installed { "yes" } else { "no" };
        let version = agent.version.as_deref().filter(|version| !version.is_empty()).unwrap_or("-");
        [&agent.id, installed, version, &agent.agent_package].map(harmless_line)
    }));
    table(&rows)
}
