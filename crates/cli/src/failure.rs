//! Why a command failed, and the exit code that says so to scripts.

use std::error::Error as StdError;
use std::io::{self, Write};
use std::path::PathBuf;

use agentos::ErrorKind;
use thiserror::Error;

use crate::terminal::{Palette, harmless};

/// Anything without a code of its own.
pub(crate) const OTHER: u8 = 1;
/// The command line or an argument is wrong; clap's own code too.
pub(crate) const USAGE: u8 = 2;
/// This host can't run VMs.
pub(crate) const HOST: u8 = 3;
/// The agent or its model failed.
pub(crate) const AGENT: u8 = 4;
/// The run went well, but a file that was there already was not overwritten.
pub(crate) const EXISTS: u8 = 5;
/// `exec` and `shell`: agentos itself failed, and not the command. docker and env use it in the same way.
pub(crate) const NOT_STARTED: u8 = 125;
/// Ended by a signal: 128 and its number.
pub(crate) const SIGNALED: u8 = 128;
const SIGPIPE: u8 = 13;

#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Sdk(#[from] agentos::Error),
    /// A real model, not the offline one.
    #[error(transparent)]
    Provider(agentos::Error),
    /// Nobody reads what we print any more: no message, as of any command in a pipe.
    #[error("standard output is closed")]
    OutputClosed,
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    #[error("cannot read standard input")]
    Input(#[source] io::Error),
    #[error("cannot use {} for --out", .path.display())]
    OutDir { path: PathBuf, source: io::Error },
    #[error("--out {} is not a directory", .path.display())]
    OutIsFile { path: PathBuf },
    #[error("Session not found: {name}")]
    NoSuchSession { name: String },
    #[error("several sessions have an id that begins with {name}")]
    AmbiguousSession { name: String },
    #[error("{} is there already", .path.display())]
    ExportExists { path: PathBuf },
    #[error("cannot write {}", .path.display())]
    Export { path: PathBuf, source: io::Error },
    #[error("a policy is needed: --net, and --allow for what is added to it")]
    NoPolicy,
    #[error("a prompt is needed: what the agent is to do")]
    NoPrompt,
    #[error("the agent is either {agent} or the --command")]
    TwoAgents { agent: String },
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    #[error("the sidecar failed")]
    Sidecar(#[from] agentos_sidecar::SidecarError),
    #[error("the offline model failed")]
    DemoModel(#[from] agentos_demo_model::Error),
    /// A signal ended this command before its work was done.
    #[error("interrupted")]
    Interrupted { signal: u8 },
}

impl Failure {
    pub(crate) fn from_stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Output(error),
        }
    }

    pub(crate) fn sdk_kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Sdk(error) | Self::Provider(error) => Some(error.kind()),
            _ => None,
        }
    }

    /// The exit code of commands that have no command's code to hand on.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Sdk(error) => match error.kind() {
                ErrorKind::InvalidInput => USAGE,
                ErrorKind::HostUnsupported => HOST,
                ErrorKind::AgentFailed
                | ErrorKind::AgentNotInstalled
                | ErrorKind::Model
                | ErrorKind::NoModel
                | ErrorKind::EmptyTurn => AGENT,
                _ => OTHER,
            },
            Self::Provider(_) => AGENT,
            Self::OutIsFile { .. }
            | Self::NoPolicy
            | Self::NoPrompt
            | Self::TwoAgents { .. }
            | Self::AmbiguousSession { .. } => USAGE,
            Self::OutputClosed => SIGNALED + SIGPIPE,
            Self::Interrupted { signal } => SIGNALED + signal,
            _ => OTHER,
        }
    }

    /// The exit code of `exec` and `shell`, whose other codes are the command's.
    pub(crate) fn code_beside_a_command(&self) -> u8 {
        match self {
            Self::OutputClosed | Self::Interrupted { .. } => self.code(),
            _ => NOT_STARTED,
        }
    }

    /// What to do about it, where the message doesn't say.
    fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Sdk(error) => match error.kind() {
                ErrorKind::HostUnsupported => {
                    Some("`agentos doctor` lists what this host has and what it lacks")
                }
                ErrorKind::SidecarNotFound => Some("set AGENTOS_SIDECAR to the path of the agentos binary"),
                _ => None,
            },
            Self::Provider(_) => Some(
                "`agentos net log` tells what a kept VM was refused, `agentos doctor` whether VMs have a network here; \
                 `--model demo` needs no provider",
            ),
            Self::OutIsFile { .. } => Some("name a directory; it is made where it is missing"),
            Self::NoSuchSession { .. } => Some("`agentos sessions list` shows which there are"),
            Self::AmbiguousSession { .. } => {
                Some("give more of it; `agentos sessions list --json` has whole ids")
            }
            Self::ExportExists { .. } => Some("--force overwrites it"),
            _ => None,
        }
    }

    /// Tells it on standard error. A closed pipe is nothing to tell.
    pub(crate) fn report(&self) {
        if matches!(self, Self::OutputClosed | Self::Interrupted { .. }) {
            return;
        }
        tell("agentos", self, self.remedy());
    }
}

/// Tells an error and its causes on standard error.
pub(crate) fn tell(program: &str, failure: &dyn StdError, remedy: Option<&str>) {
    let palette = Palette::for_stderr();
    let mut said = failure.to_string();
    let mut text = format!("{} {}\n", palette.red(&format!("{program}:")), harmless(&said));
    // A transparent variant's source begins below the error it shows.
    let mut cause = failure.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !line.is_empty() && !said.contains(&line) {
            text.push_str(&format!("  caused by: {}\n", harmless(&line)));
        }
        said = line;
        cause = error.source();
    }
    if let Some(remedy) = remedy {
        text.push_str(&format!("  try: {remedy}\n"));
    }
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// The exit code for how a process of a VM ended.
pub(crate) fn code_of(exit: &agentos::Exit) -> u8 {
    u8::try_from(exit.code()).unwrap_or(u8::MAX)
}
