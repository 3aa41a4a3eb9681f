//! The command line.

use clap::{Parser, Subcommand};

use crate::agents::AgentsArgs;
use crate::chat::ChatArgs;
use crate::daemon::SidecarArgs;
use crate::demo_model::DemoModelArgs;
use crate::doctor::DoctorArgs;
use crate::exec::ExecArgs;
use crate::net_log::NetCommandArgs;
use crate::ports::{ForwardArgs, PortsArgs};
use crate::run::RunArgs;
use crate::sessions::SessionsArgs;
use crate::shell::ShellArgs;
use crate::vms::{DisposeArgs, VmsArgs};

const AFTER_HELP: &str = "Examples:
  agentos run pi \"Explain this project\" --project .
  agentos run pi \"Write a hello world in TypeScript to hello.ts\" --out .
  agentos exec -- sh -c 'id; ls /'
  agentos shell --project .:rw
  agentos sessions list
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
    /// Talk with an agent in a VM
    Chat(ChatArgs),
    /// Run a command in a VM
    Exec(ExecArgs),
    /// Open a terminal in a VM
    Shell(ShellArgs),
    /// List the VMs that run
    Vms(VmsArgs),
    /// End kept VMs
    Dispose(DisposeArgs),
    /// List what listens in a kept VM
    Ports(PortsArgs),
    /// Show ports of a kept VM on this host
    Forward(ForwardArgs),
    /// Show what a kept VM may not reach and what it has reached, or change it
    Net(NetCommandArgs),
    /// List, show, resume, export and delete what is kept of sessions
    Sessions(SessionsArgs),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// As a shell would split it: quotes group, and that is all the examples use.
    fn split(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        let (mut word, mut quote) = (String::new(), None);
        for c in line.chars() {
            match (c, quote) {
                (c, Some(open)) if c == open => quote = None,
                (c, None) if c == '"' || c == '\'' => quote = Some(c),
                (' ', None) if !word.is_empty() => words.push(std::mem::take(&mut word)),
                (' ', None) => {}
                (c, _) => word.push(c),
            }
        }
        words.push(word);
        words
    }

    fn examples(help: &str) -> Vec<String> {
        let lines = help.lines().map(str::trim);
        let commands = lines.filter_map(|line| line.split(" | ").find(|part| part.starts_with("agentos ")));
        commands.map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_they_parse() {
        let cli = Cli::command();
        let own = cli.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut seen = examples(&own);
        for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let found = examples(&help);
            assert!(!found.is_empty(), "`agentos {}` has no example", command.get_name());
            seen.extend(found);
        }
        for example in seen {
            if let Err(error) = Cli::try_parse_from(split(&example)) {
                panic!("{example}: {error}");
            }
        }
    }

    #[test]
    fn the_readme_s_commands_parse() {
        let readme = include_str!("../../../README.md");
        let commands: Vec<&str> = readme
            .lines()
            .filter_map(|line| match line.strip_prefix("cargo run --release -- ") {
                Some(rest) => Some(rest),
                None => line.strip_prefix("agentos "),
            })
            .map(|line| line.split("  #").next().unwrap_or(line).trim())
            .filter(|line| !line.contains("runs coding agents"))
            .collect();
        assert!(commands.len() > 3, "{commands:?}");
        for command in commands {
            let line = format!("agentos {command}");
            if let Err(error) = Cli::try_parse_from(split(&line)) {
                panic!("{line}: {error}");
            }
        }
    }
}
