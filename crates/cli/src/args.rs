//! The command line.

use clap::{Parser, Subcommand};

use crate::daemon::SidecarArgs;
use crate::demo_model::DemoModelArgs;
use crate::exec::ExecArgs;
use crate::vms::{DisposeArgs, VmsArgs};

#[derive(Debug, Parser)]
#[command(
    name = "agentos",
    version,
    about = "Coding agents and programs in isolated VMs that start in milliseconds",
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a VM
    Exec(ExecArgs),
    /// List the VMs that run
    Vms(VmsArgs),
    /// End kept VMs
    Dispose(DisposeArgs),
    /// Serve the offline scripted model
    DemoModel(DemoModelArgs),
    /// Serve VMs; started by the SDK when it is needed
    #[command(hide = true)]
    Sidecar(SidecarArgs),
}
