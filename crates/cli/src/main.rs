//! The `agentos` command: agents and programs in isolated VMs, from a terminal or a script.
//!
//! One binary is everything: the command, the sidecar it talks to and the launcher the sidecar starts. In reading
//! order: [`args`] is the command line and [`spec`] the values of its flags; [`guest`] is the VM a command works in;
//! then one module per command. [`terminal`] makes what is shown harmless, [`failure`] is what can go wrong and the
//! exit codes.
//!
//! ```text
//! main ─┬─ argv[0] says launcher ──► agentos_init          (before any thread, any allocation worth speaking of)
//!       ├─ argv[0] says agentos-tools ──► tools             (in a VM: calls functions of the host application)
//!       ├─ sidecar ──► agentos_sidecar::run                 (on the main thread: launchers die with it)
//!       └─ the rest ──► a runtime on this thread ──► the SDK, as any program would use it
//! ```

mod agents;
mod args;
mod chat;
mod daemon;
mod demo_model;
mod diff;
mod doctor;
mod exec;
mod failure;
mod guest;
mod install;
mod net;
mod net_log;
mod output;
mod ports;
mod read_only;
mod run;
mod sessions;
mod shell;
mod signals;
mod spec;
mod terminal;
mod tools;
mod vms;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    // Before anything else: the launcher must find no thread and little memory.
    if let Some(code) = agentos_init::run_if_launcher(std::env::args_os().next().as_deref()) {
        return code;
    }
    if let Some(code) = tools::run_if_called(std::env::args_os().next().as_deref()) {
        return ExitCode::from(code);
    }
    let command = Cli::parse().command;
    let code = match command {
        Command::Sidecar(args) => daemon::run(args).unwrap_or_else(|failure| tell(&failure, Failure::code)),
        command => on_runtime(command).unwrap_or_else(|failure| tell(&failure, Failure::code)),
    };
    ExitCode::from(code)
}

fn on_runtime(command: Command) -> Result<u8, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    let code = runtime.block_on(dispatch(command));
    // A read of a terminal or pipe that nobody answers must not hold up the end.
    runtime.shutdown_background();
    code
}

async fn dispatch(command: Command) -> Result<u8, Failure> {
    let beside = |failure: Failure| tell(&failure, Failure::code_beside_a_command);
    match command {
        // Done before there was a runtime.
        Command::Sidecar(_) => Ok(0),
        Command::Exec(args) => Ok(exec::run(args).await.unwrap_or_else(beside)),
        Command::Shell(args) => Ok(shell::run(args).await.unwrap_or_else(beside)),
        Command::Run(args) => run::run(args).await,
        Command::Chat(args) => chat::run(args).await,
        Command::Sessions(args) => sessions::run(args).await,
        Command::Agents(args) => agents::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Vms(args) => vms::list(args).await,
        Command::Dispose(args) => vms::dispose(args).await,
        Command::Ports(args) => ports::list(args).await,
        Command::Forward(args) => ports::forward(args).await,
        Command::Net(args) => net_log::run(args).await,
        Command::DemoModel(args) => demo_model::run(args).await,
    }
}

fn tell(failure: &Failure, code: fn(&Failure) -> u8) -> u8 {
    failure.report();
    code(failure)
}
