//! The command line.

use clap::{Parser, Subcommand};

use crate::agents::AgentsArgs;
use crate::daemon::SidecarArgs;
use crate::demo_model::DemoModelArgs;
use crate::doctor::DoctorArgs;
use crate::exec::ExecArgs;
use crate::run::RunArgs;
use crate::shell::ShellArgs;
use crate::vms::{DisposeArgs, VmsArgs};

const AFTER_HELP: &str = "Examples:
  agentos run pi \"Explain this project\" --project .
  agentos run pi \"Write a hello world in TypeScript to hello.ts\" --out .
  agentos exec -- sh -c 'id; ls /'
  agentos shell --project .:rw
  agentos doctor

Exit codes:
  0 done; 1 failed; 2 wrong usage; 3 this host can't run VMs; 4 the agent or its model failed;
  5 done, but --out kept files that were there; 130 and 143 interrupted.
  exec and shell have the command's own: see `agentos help exec`.

Environment:
  AGENTOS_HOME     where agents and sessions are kept [default: ~/.local/share/agentos]
  AGENTOS_SIDECAR  the agentos binary to start a sidecar with
  AGENTOS_MODEL    `provider`: never fall back to the offline model
  AGENTOS_LOG      level of the sidecar's log [default: warn]
  NO_COLOR         any value: no colours";

#[derive(Debug, Parser)]
#[command(
    name = "agentos",
    version,
    about = "Coding agents and programs in isolated VMs that start in milliseconds",
    max_term_width = 100,
    after_help = AFTER_HELP
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Put an agent to work in a VM and show what it does
    Run(RunArgs),
    /// Run a command in a VM
    Exec(ExecArgs),
    /// Open a terminal in a VM
    Shell(ShellArgs),
    /// List the VMs that run
    Vms(VmsArgs),
    /// End kept VMs
    Dispose(DisposeArgs),
    /// List and install agents
    Agents(AgentsArgs),
    /// Say what this host can and can't do for VMs, and the cure
    Doctor(DoctorArgs),
    /// Serve the offline scripted model
    DemoModel(DemoModelArgs),
    /// Serve VMs; started by the SDK when it is needed
    #[command(hide = true)]
    Sidecar(SidecarArgs),
}
