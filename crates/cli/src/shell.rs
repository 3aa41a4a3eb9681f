//! `agentos shell`: this terminal, in a VM.

use std::ffi::OsString;

use agentos::ErrorKind;
use clap::Args;

use crate::failure::Failure;
use crate::guest::{AttachArgs, Guest, VmArgs};
use crate::signals::SIGTERM;

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: those of `agentos exec`.

Examples:
  agentos shell
  agentos shell --project .:rw
  agentos shell --net public --allow 10.0.0.5:5432
  agentos shell --vm box
  agentos shell --project . -- vim README.md")]
pub(crate) struct ShellArgs {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    attach: AttachArgs,
    /// A command to run instead of the login shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) async fn run(args: ShellArgs) -> Result<u8, Failure> {
    let guest = Guest::create_or_attach(&args.vm, &args.attach).await?;
    let mut terminal = guest.vm.connect_terminal();
    if let Some((program, arguments)) = args.command.split_first() {
        terminal = terminal.command(program, arguments);
    }
    if args.attach.vm.is_none() || args.vm.cwd.is_some() {
        terminal = terminal.cwd(args.vm.cwd());
    }
    if args.attach.vm.is_some() {
        terminal = terminal.envs(args.vm.env.iter().map(|env| (&env.name, &env.value)));
    }
    let outcome = match terminal.await {
        Ok(code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        // SIGTERM or SIGHUP; the terminal has been restored.
        Err(error) if error.kind() == ErrorKind::Cancelled => Err(Failure::Interrupted { signal: SIGTERM }),
        Err(error) => Err(error.into()),
    };
    guest.leave(outcome).await
}
