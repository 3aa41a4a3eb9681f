//! `agentos chat`: a conversation with an agent in a VM, line by line.
//!
//! ```text
//! line ─► prompt ─► steps as they happen ─► next line ... end of input
//!                    │ request for permission ─► y, a or n
//!                    │ Ctrl-C ─► the turn is cancelled; a second one ends the conversation
//! ```
//! Between turns Ctrl-C ends it, too. What was said is kept: `agentos sessions resume` goes on with it.
//!
//! Lines may be typed ahead at a terminal. They are prompts: only what is typed after a question was shown answers it.
//! A question drops what the terminal itself still holds by then, such as the beginning of a line. In lines from elsewhere
//! the answers stand between the prompts.

mod lines;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use agentos::{
    ErrorKind, ModelKind, PermissionPolicy, PermissionReply, PermissionRequest, PermissionRequests, Session,
    SessionEvent, SessionEvents,
};
use clap::Args;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::guest::{Guest, VmArgs};
use crate::install::Progress;
use crate::run::model::{Keys, ModelArg};
use crate::run::steps::{Steps, whole_diff};
use crate::signals::Signals;
use crate::terminal::{Palette, harmless_line, notice, print};
use lines::Lines;

/// The events of a turn that has ended are all there; this is for a sidecar that has died.
const LAST_EVENTS: Duration = Duration::from_secs(10);
/// The event that ends a turn.
const TURN_END: &str = "_agentos/turn_end";
const QUESTION: &str = "Allow it? [y]es, [a]lways, [n]o: ";

#[derive(Debug, Args)]
#[command(
    after_help = "A line is a prompt. Ctrl-C cancels the turn that runs, and ends the conversation between turns; so does the
end of the input (Ctrl-D).

Examples:
  agentos chat claude --project .:rw
  agentos chat pi --allow-all --project .:rw
  echo \"Explain this project\" | agentos chat opencode --project ."
)]
pub(crate) struct ChatArgs {
    /// The agent, as `agentos agents list` shows it
    agent: String,
    #[command(flatten)]
    vm: VmArgs,
    /// The model the agent talks to
    #[arg(long, value_enum, default_value_t, value_name = "MODEL")]
    model: ModelArg,
    /// Let the agent act without asking; its VM is the sandbox
    #[arg(long)]
    allow_all: bool,
}

pub(crate) async fn run(args: ChatArgs) -> Result<u8, Failure> {
    let mut signals = Signals::watch()?;
    let (keys, guest) = tokio::select! {
        created = guest(&args.agent, args.model, &args.vm) => created?,
        signal = signals.next() => return Err(Failure::Interrupted { signal }),
    };
    let outcome = async {
        let policy = if args.allow_all { PermissionPolicy::AllowAll } else { PermissionPolicy::Ask };
        let mut progress = Progress::new();
        keys.tell();
        let create = guest
            .vm
            .create_session(&args.agent)
            .cwd(args.vm.cwd())
            .permission_policy(policy)
            .model(args.model.into())
            .envs(keys.given())
            .on_install_progress(move |step| progress.show(&step));
        let session = tokio::select! {
            session = create.into_future() => session?,
            signal = signals.next() => return Err(Failure::Interrupted { signal }),
        };
        if session.model() != ModelKind::Provider || !keys.tell_provider() {
            notice(&format!("{} model: {}", session.model(), harmless_line(session.model_reason())));
        }
        converse(session, 1, &mut signals).await
    };
    let outcome = outcome.await;
    guest.leave(outcome).await?;
    Ok(0)
}

/// A conversation that is kept, taken up again in a VM of these flags.
pub(crate) async fn resume(stored: &agentos::StoredSession, vm: &VmArgs) -> Result<(), Failure> {
    let mut signals = Signals::watch()?;
    let (keys, guest) = tokio::select! {
        created = guest(&stored.agent_type, ModelArg::Auto, vm) => created?,
        signal = signals.next() => return Err(Failure::Interrupted { signal }),
    };
    let outcome = async {
        keys.tell();
        let session = tokio::select! {
            session = guest.vm.restore_session(&stored.session_id) => session?,
            signal = signals.next() => return Err(Failure::Interrupted { signal }),
        };
        notice(&format!("{} model: {}", session.model(), harmless_line(session.model_reason())));
        converse(session, stored.events + 1, &mut signals).await
    };
    let outcome = outcome.await;
    guest.leave(outcome).await
}

async fn guest(agent: &str, model: ModelArg, vm: &VmArgs) -> Result<(Keys, Guest), Failure> {
    let keys = Keys::find(agent, model, vm).await?;
    let guest = Guest::create_with(vm, |options| keys.declare(options)).await?;
    Ok((keys, guest))
}

/// Prompts from standard input until it ends. Events are shown from this number on.
async fn converse(session: Session, since: u64, signals: &mut Signals) -> Result<(), Failure> {
    let mut chat = Chat {
        events: session.events_since(since),
        requests: session.permission_requests(),
        lines: Lines::of_stdin()?,
        steps: Steps::new(Palette::for_stdout()).with_diffs(),
        palette: Palette::for_stdout(),
        asks: std::io::stdin().is_terminal(),
        session,
    };
    let outcome = chat.run(signals).await;
    // One that died is closed already.
    let _ = chat.session.close().await;
    outcome
}

struct Chat {
    session: Session,
    events: SessionEvents,
    requests: PermissionRequests,
    lines: Lines,
    steps: Steps,
    palette: Palette,
    /// Whether somebody sits there and wants to be asked for the next line.
    asks: bool,
}

impl Chat {
    async fn run(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        loop {
            self.invite("> ")?;
            let was_ahead = self.lines.is_ahead();
            let line = tokio::select! {
                line = self.lines.next() => line?,
                signal = signals.next() => return Err(Failure::Interrupted { signal }),
            };
            if was_ahead && self.asks {
                // It was shown where it was typed, in the middle of something else.
                print(&format!("{}\n", harmless_line(line.as_deref().unwrap_or_default())))?;
            }
            match line.as_deref().map(str::trim) {
                None => return Ok(()),
                Some("") => {}
                Some(text) => {
                    let text = text.to_owned();
                    self.turn(&text, signals).await?;
                }
            }
        }
    }

    fn invite(&self, text: &str) -> Result<(), Failure> {
        if self.asks { print(&self.palette.bold(text)) } else { Ok(()) }
    }

    /// One prompt, everything that it brings, and its end.
    async fn turn(&mut self, text: &str, signals: &mut Signals) -> Result<(), Failure> {
        let session = self.session.clone();
        let mut prompt = std::pin::pin!(session.prompt(text).into_future());
        let (mut cancelled, mut ended) = (false, false);
        let outcome = loop {
            tokio::select! {
                biased;
                signal = signals.next() => {
                    if std::mem::replace(&mut cancelled, true) {
                        return Err(Failure::Interrupted { signal });
                    }
                    // The prompt then resolves; asking again ends it without waiting for that.
                    let _ = session.cancel().await;
                }
                Some(request) = self.requests.next() => {
                    cancelled |= self.decide(request, signals).await?;
                }
                Some(event) = self.events.next() => ended |= self.show(event)?,
                outcome = prompt.as_mut() => break outcome,
            }
        };
        if !ended {
            let _ = timeout(LAST_EVENTS, self.drain()).await;
        }
        print(self.steps.end_line())?;
        match outcome {
            Ok(reply) if reply.stop_reason == "end_turn" => Ok(()),
            Ok(reply) => {
                notice(&format!("the turn ended: {}", harmless_line(&reply.stop_reason)));
                Ok(())
            }
            // The agent goes on after these, and so does the conversation.
            Err(error)
                if matches!(error.kind(), ErrorKind::Model | ErrorKind::EmptyTurn | ErrorKind::Timeout) =>
            {
                notice(&error.to_string());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Shows what is left of a turn.
    async fn drain(&mut self) -> Result<(), Failure> {
        while let Some(event) = self.events.next().await {
            if self.show(event)? {
                break;
            }
        }
        Ok(())
    }

    /// True where it was the end of a turn.
    fn show(&mut self, event: Result<SessionEvent, agentos::Error>) -> Result<bool, Failure> {
        match event {
            Ok(event) => {
                let text = self.steps.show(&event.notification);
                if !text.is_empty() {
                    print(&text)?;
                }
                Ok(event.method() == TURN_END)
            }
            // The agent was faster than the terminal, which now catches up; nothing is missing.
            Err(error) if error.kind() == ErrorKind::Lagged => Ok(false),
            Err(error) => {
                notice(&error.to_string());
                Ok(true)
            }
        }
    }

    /// Asks whether the agent may do something. True where the turn was cancelled instead.
    async fn decide(&mut self, request: PermissionRequest, signals: &mut Signals) -> Result<bool, Failure> {
        print(self.steps.end_line())?;
        if self.asks && self.lines.set_aside() {
            notice("lines that were typed before this question are kept for after this turn");
        }
        let tool = &request.params()["toolCall"];
        let what = harmless_line(request.description().unwrap_or("something that it does not name"));
        print(&format!("{} {what}\n", self.palette.yellow("The agent asks:")))?;
        if let Some(command) = tool["rawInput"]["command"].as_str().filter(|command| *command != what) {
            print(&format!("  $ {}\n", harmless_line(command)))?;
        }
        if let Some(diff) = whole_diff(&tool["content"]) {
            for line in diff.lines() {
                print(&format!("  | {line}\n"))?;
            }
        }
        self.invite(QUESTION)?;
        let shown = Instant::now();
        loop {
            let line = tokio::select! {
                line = self.next_answer(shown) => line?,
                _ = signals.next() => {
                    let _ = self.session.cancel().await;
                    return Ok(true);
                }
            };
            let reply = match line.as_deref().map(str::trim) {
                Some("y" | "yes") => PermissionReply::Once,
                Some("a" | "always") => PermissionReply::Always,
                // Nobody is left to say yes.
                None | Some("n" | "no") => PermissionReply::Reject,
                Some(_) if self.asks => {
                    self.invite(QUESTION)?;
                    continue;
                }
                // A list of prompts has no answers in it.
                Some(_) => {
                    self.lines.put_back(line.unwrap_or_default());
                    PermissionReply::Reject
                }
            };
            return match request.reply(reply).await {
                Ok(()) => Ok(false),
                // It was cancelled, or has waited for too long.
                Err(error) => {
                    notice(&error.to_string());
                    Ok(false)
                }
            };
        }
    }

    async fn next_answer(&mut self, shown: Instant) -> Result<Option<String>, Failure> {
        if self.asks { self.lines.answer(shown).await } else { self.lines.next().await }
    }
}
