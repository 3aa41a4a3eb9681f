//! `agentos run`: an agent at work in a VM, from the prompt to the files.
//!
//! ```text
//! --out checked ─► VM ─► session ─► look at the files ─► prompt, steps as they happen ─► session closed
//!      ─► look again ─► copy to --out ─► say what changed ─► VM disposed, or kept
//! ```
//! What was made is collected also where the agent failed or was interrupted: the VM is about to go.

mod changes;
pub(crate) mod model;
mod out;
mod report;
pub(crate) mod steps;

use std::path::PathBuf;
use std::time::Duration;

use agentos::{
    AgentConfig, AgentOsOptions, ErrorKind, ModelKind, PermissionPolicy, PromptResult, Session, SessionEvent,
    SessionEvents,
};
use clap::Args;
use tokio::time::timeout;

use crate::failure::{EXISTS, Failure, OTHER};
use crate::guest::{Guest, VmArgs};
use crate::install::Progress;
use crate::read_only::ReadOnly;
use crate::run::changes::Snapshot;
use crate::run::model::{Keys, ModelArg};
use crate::run::out::OutDir;
use crate::run::report::{Ending, Output, texts};
use crate::signals::Signals;
use crate::terminal::{harmless_line, notice};

/// The events of a session that is closed are all there; this is for a sidecar that has died.
const LAST_EVENTS: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "Exit codes:
  0 done; 1 failed; 2 wrong usage; 3 this host can't run VMs; 4 the agent or its model failed;
  5 done, but --out kept files that were there; 130 and 143 interrupted

Examples:
  agentos run pi \"Write a hello world in TypeScript to hello.ts\" --out .
  agentos run pi \"Explain this project\" --project .
  agentos run pi \"Fix the failing test\" --project .:rw
  agentos run pi \"Summarize the notes\" --mount ~/notes:/notes --json
  agentos run pi \"Clean up without the internet\" --project .:rw --net none
  agentos run pi \"Try it\" --model demo --keep=box
  agentos run --command \"my-agent --acp\" --mount ~/my-agent:/opt/my-agent \"Say hello\"")]
pub(crate) struct RunArgs {
    /// The agent, as `agentos agents list` shows it; left out with --command
    #[arg(required_unless_present = "command")]
    agent: Option<String>,
    /// What it is to do
    #[arg(required_unless_present = "command")]
    prompt: Option<String>,
    /// The agent is this command of the VM's shell, which speaks the Agent Client Protocol over its input and output
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    #[command(flatten)]
    vm: VmArgs,
    /// Copy the files the run made or changed in the VM's working directory and home to this directory; .git and
    /// node_modules stay
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Let --out overwrite files that are there
    #[arg(long, requires = "out")]
    force: bool,
    /// The model the agent talks to
    #[arg(long, value_enum, default_value_t, value_name = "MODEL")]
    model: ModelArg,
    /// One JSON object per line: what happens, and at last the result
    #[arg(long)]
    json: bool,
}

/// The id of an agent that is a command.
const COMMAND: &str = "command";

impl RunArgs {
    /// The agent's id and the prompt. With a command the only text is the prompt.
    fn asked(&self) -> Result<(&str, &str), Failure> {
        match (&self.command, &self.agent, &self.prompt) {
            (None, Some(agent), Some(prompt)) => Ok((agent, prompt)),
            (Some(_), Some(prompt), None) => Ok((COMMAND, prompt)),
            (Some(_), None, _) | (None, _, _) => Err(Failure::NoPrompt),
            (Some(_), Some(agent), Some(_)) => Err(Failure::TwoAgents { agent: agent.clone() }),
        }
    }

    fn declare(&self, options: AgentOsOptions) -> AgentOsOptions {
        let Some(command) = &self.command else { return options };
        let argv = ["/bin/sh".to_owned(), "-c".to_owned(), format!("exec {command}")];
        options.agent(COMMAND, AgentConfig::command(argv))
    }
}

pub(crate) async fn run(args: RunArgs) -> Result<u8, Failure> {
    let mut output = Output::new(args.json);
    let outcome = whole(&args, &mut output).await;
    if let Err(failure) = &outcome
        && !matches!(failure, Failure::OutputClosed)
    {
        output.failed(failure)?;
    }
    outcome
}

async fn whole(args: &RunArgs, output: &mut Output) -> Result<u8, Failure> {
    let (agent, prompt) = args.asked()?;
    let out = args.out.as_deref().map(|path| OutDir::prepare(path, args.force)).transpose()?;
    let mut signals = Signals::watch()?;
    let create = async {
        let keys = Keys::find(agent, args.model, &args.vm).await?;
        let guest = Guest::create_with(&args.vm, |options| args.declare(keys.declare(options))).await?;
        Ok::<_, Failure>((keys, guest))
    };
    let (keys, guest) = tokio::select! {
        created = create => created?,
        signal = signals.next() => return Err(Failure::Interrupted { signal }),
    };
    let work = Work { args, agent, prompt, keys, guest: &guest, out };
    let outcome = work.run(&mut signals, output).await;
    guest.leave(outcome).await
}

/// How the turn ended, once there was one.
struct Turn {
    outcome: Result<PromptResult, Failure>,
    /// The signal that cancelled it.
    interrupted: Option<u8>,
}

struct Work<'a> {
    args: &'a RunArgs,
    agent: &'a str,
    prompt: &'a str,
    keys: Keys,
    guest: &'a Guest,
    out: Option<OutDir>,
}

impl Work<'_> {
    async fn run(&self, signals: &mut Signals, output: &mut Output) -> Result<u8, Failure> {
        let session = tokio::select! {
            session = self.open_session(output) => session?,
            signal = signals.next() => return Err(Failure::Interrupted { signal }),
        };
        output.session(&session, self.guest)?;
        let vm = &self.guest.vm;
        let before = Snapshot::take(vm, &self.args.vm).await?;
        let mut read_only = ReadOnly::new(&self.args.vm);
        let turn = self.turn(&session, signals, output, &mut read_only).await?;
        let mut ending = self.ending(&before).await?;
        ending.read_only = read_only.hint();
        if turn.outcome.is_ok() || !ending.files.is_empty() {
            output.ending(&ending, self.out.as_ref(), self.guest)?;
        }
        let refused = ending.refused();
        match turn {
            Turn { interrupted: Some(signal), .. } => Err(Failure::Interrupted { signal }),
            Turn { outcome, .. } => {
                let code = if refused > 0 {
                    OTHER
                } else if ending.beside() > 0 {
                    EXISTS
                } else {
                    0
                };
                output.result(&outcome?, &ending, self.guest, code)?;
                Ok(code)
            }
        }
    }

    async fn open_session(&self, output: &Output) -> Result<Session, Failure> {
        let RunArgs { vm: vm_args, model, .. } = self.args;
        let vm = &self.guest.vm;
        self.keys.tell();
        let json = output.is_json();
        let mut progress = Progress::new();
        let create = vm
            .create_session(self.agent)
            .cwd(vm_args.cwd())
            .permission_policy(PermissionPolicy::AllowAll)
            .model((*model).into())
            .envs(self.keys.given())
            .on_install_progress(move |step| {
                progress.show(&step);
                if json {
                    report::install(&step);
                }
            });
        let session = create.await?;
        if session.model() != ModelKind::Provider || !self.keys.tell_provider() {
            notice(&format!("{} model: {}", session.model(), harmless_line(session.model_reason())));
        }
        Ok(session)
    }

    /// One prompt, its steps shown as they happen, and everything that was still under way when it ended.
    async fn turn(
        &self,
        session: &Session,
        signals: &mut Signals,
        output: &mut Output,
        read_only: &mut ReadOnly<'_>,
    ) -> Result<Turn, Failure> {
        let mut events = session.events();
        let mut prompt = std::pin::pin!(session.prompt(self.prompt).into_future());
        let mut interrupted = None;
        let outcome = loop {
            tokio::select! {
                biased;
                signal = signals.next() => {
                    if interrupted.replace(signal).is_some() {
                        return Err(Failure::Interrupted { signal });
                    }
                    // The prompt then resolves; asking again ends it without waiting for that.
                    let _ = session.cancel().await;
                }
                event = events.next() => match event {
                    Some(event) => show(event, output, read_only)?,
                    None => break prompt.as_mut().await,
                },
                outcome = prompt.as_mut() => break outcome,
            }
        };
        // What is closed has no more to say: then all of it has been seen. One that died is closed already.
        let _ = session.close().await;
        let _ = timeout(LAST_EVENTS, drain(&mut events, output, read_only)).await;
        output.end_line()?;
        let outcome = outcome.map_err(|error| match (error.kind(), session.model()) {
            (ErrorKind::Model, ModelKind::Provider) => Failure::Provider(error),
            _ => error.into(),
        });
        Ok(Turn { outcome, interrupted })
    }

    async fn ending(&self, before: &Snapshot) -> Result<Ending, Failure> {
        let vm = &self.guest.vm;
        let after = Snapshot::take(vm, &self.args.vm).await?;
        let changed = before.changed(&after);
        let mut ending = Ending { too_large: after.too_large().to_vec(), ..Ending::default() };
        for file in changed {
            let put = match &self.out {
                Some(out) => Some(out.copy(vm, &file).await),
                None => None,
            };
            ending.files.push((file, put));
        }
        if self.out.is_none() && self.args.vm.project.is_none() {
            ending.texts = texts(vm, &ending).await;
        }
        Ok(ending)
    }
}

fn show(
    event: Result<SessionEvent, agentos::Error>,
    output: &mut Output,
    read_only: &mut ReadOnly<'_>,
) -> Result<(), Failure> {
    match event {
        Ok(event) => {
            read_only.look(&event.notification);
            output.event(&event)
        }
        // The agent was faster than the terminal, which now catches up; nothing is missing.
        Err(error) if error.kind() == ErrorKind::Lagged => Ok(()),
        Err(error) => {
            notice(&error.to_string());
            Ok(())
        }
    }
}

async fn drain(
    events: &mut SessionEvents,
    output: &mut Output,
    read_only: &mut ReadOnly<'_>,
) -> Result<(), Failure> {
    while let Some(event) = events.next().await {
        show(event, output, read_only)?;
    }
    Ok(())
}
