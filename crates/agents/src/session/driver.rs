//! The owner of one session: reads the agent, answers the handles, ends with the agent or before it.
//!
//! Everything that a session knows changes here and nowhere else. One step waits for whatever comes first: output of
//! the agent, a request of a handle, the agent's exit, a deadline, the caller of a prompt going away. Events are kept
//! before anything that follows them is answered, so a caller that has its reply finds its whole turn in the events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::content::PiPrompt;
use super::error::{AgentFault, PromptError, StartError};
use super::link::Link;
use super::process::AgentProcess;
use super::profile::{Change, Next, Profile, Reaction};
use super::{PromptReply, Reply, Request, Shared};
use crate::wire::acp;
use crate::wire::pi_rpc::{Command, MessageEnd, Output, Turn};

/// How long an agent may take to be ready. Pi takes a third of a second; a busy machine is slower, not forever.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// A cancelled turn is answered after this, whether the agent has stopped or not.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// An abort that reaches the agent before it has begun its run finds nothing to abort: it is repeated.
const ABORT_AGAIN: Duration = Duration::from_millis(250);
/// How long an agent may go on with a turn that was answered without it. Aborted agents stop within a second; one that
/// never does would leave its session busy for ever.
const SETTLE_GRACE: Duration = Duration::from_secs(10);
/// How long a polite end may take.
const EXIT_GRACE: Duration = Duration::from_secs(3);
/// How long a killed process may take to be gone before it is given up.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// The id of aborts; nothing waits for their answers.
const ABORT: &str = "abort";

/// What ends the owner's loop.
enum End {
    Fault(AgentFault),
    Close { graceful: bool },
}

impl From<AgentFault> for End {
    fn from(fault: AgentFault) -> Self {
        Self::Fault(fault)
    }
}

/// The running prompt.
struct Running {
    /// The id of its command.
    command: String,
    /// The number of its JSON-RPC response.
    number: u64,
    /// Whether the agent has taken it. Before that, a turn that ends is not this one.
    taken: bool,
    reply: Reply<PromptReply>,
    idle: Duration,
    cancelled: Option<Cancelled>,
    rejected: u32,
}

/// A prompt that is being cancelled.
struct Cancelled {
    /// When it is answered even if the agent hasn't stopped.
    answer_at: Instant,
    abort_again_at: Instant,
}

/// A turn that was answered before the agent was done with it.
struct Settling {
    /// The id of its command, where the agent hasn't taken it yet: an answer that no turn follows is its end then.
    untaken: Option<String>,
    /// When the agent must be done.
    until: Instant,
}

impl Settling {
    fn after(running: &Running, now: Instant) -> Self {
        let untaken = (!running.taken).then(|| running.command.clone());
        Self { untaken, until: now + SETTLE_GRACE }
    }
}

/// A request that waits for pi's answer.
struct Asked {
    number: u64,
    change: Change,
    reply: Reply<Value>,
}

pub(super) struct Driver {
    shared: Arc<Shared>,
    link: Link,
    profile: Profile,
    next_number: u64,
    running: Option<Running>,
    settling: Option<Settling>,
    /// By the id of their command.
    asked: HashMap<String, Asked>,
}

/// Takes over a process, asks pi what it is and waits for its answers; they come when it is ready to work.
pub(super) async fn start(
    shared: Arc<Shared>,
    process: AgentProcess,
    cwd: &str,
    version: Option<&str>,
) -> Result<Driver, StartError> {
    const QUESTIONS: [(&str, Command); 4] = [
        ("get_state", Command::GetState),
        ("get_available_models", Command::GetModels),
        ("get_available_thinking_levels", Command::GetThinkingLevels),
        ("get_commands", Command::GetCommands),
    ];
    let mut link = Link::new(process, cwd);
    let agent = || shared.agent_type.clone();
    let failed = |source| StartError::Agent { agent: agent(), source };
    for (name, question) in &QUESTIONS {
        link.send(question, name).map_err(failed)?;
    }
    let mut answers: [Option<Value>; 4] = Default::default();
    let deadline = Instant::now() + READY_TIMEOUT;
    while answers.iter().any(Option::is_none) {
        let Ok(outputs) = timeout_at(deadline, link.read()).await else {
            return Err(StartError::NotReady { agent: agent(), waited: READY_TIMEOUT, log: link.log() });
        };
        for output in outputs.map_err(failed)? {
            let Output::Response { id, outcome } = output else { continue };
            let Some(at) = QUESTIONS.iter().position(|(name, _)| *name == id) else { continue };
            let command = QUESTIONS[at].0;
            answers[at] =
                Some(outcome.map_err(|reason| StartError::Refused { agent: agent(), command, reason })?);
        }
    }
    let profile = Profile::new(version, &answers.map(Option::unwrap_or_default));
    link.translator.session(&profile.session_id, profile.context_window());
    let commands = profile.commands_update().map(|update| acp::session_update(&profile.session_id, &update));
    let published = shared.log.publish(commands.into_iter().collect()).await;
    published.map_err(|error| failed(AgentFault::Transcript(error)))?;
    Ok(Driver { shared, link, profile, next_number: 1, running: None, settling: None, asked: HashMap::new() })
}

impl Driver {
    /// The answer to `initialize`.
    pub(super) fn initialize(&self) -> Value {
        self.profile.initialize()
    }

    /// The answer to `session/new`.
    pub(super) fn session_new(&self) -> Value {
        self.profile.session_new()
    }

    /// The owner's life.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let end = loop {
            if let Err(end) = self.step(&mut requests).await {
                break end;
            }
        };
        self.finish(end, requests).await;
    }

    async fn step(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), End> {
        let deadline = self.deadline();
        let Self { link, running, .. } = self;
        let caller_left = async {
            match running {
                Some(running) if running.cancelled.is_none() => running.reply.closed().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            outputs = link.read() => {
                let outputs = outputs?;
                self.on_outputs(outputs).await?;
            }
            request = requests.recv() => match request {
                Some(request) => self.on_request(request)?,
                // Nobody can ask for anything any more.
                None => return Err(End::Close { graceful: false }),
            },
            () = caller_left => drop(self.cancel()?),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => self.on_deadline()?,
        }
        Ok(())
    }

    async fn on_outputs(&mut self, outputs: Vec<Output>) -> Result<(), AgentFault> {
        let mut events = Vec::new();
        for output in outputs {
            match output {
                Output::Event(event) => events.push(event),
                Output::Dialog { id, title } => events.push(self.decline(&id, &title)?),
                Output::Response { id, outcome } => {
                    self.publish(std::mem::take(&mut events)).await?;
                    self.on_response(&id, outcome)?;
                }
                Output::Settled { aborted, turn } => {
                    self.publish(std::mem::take(&mut events)).await?;
                    self.settled(aborted, turn);
                }
                // The link has dealt with them.
                Output::Garbage | Output::TooLong { .. } => {}
            }
        }
        self.publish(events).await
    }

    async fn publish(&mut self, events: Vec<String>) -> Result<(), AgentFault> {
        self.shared.log.publish(events).await.map_err(AgentFault::Transcript)
    }

    /// An extension asks its user: nobody is there, so it is told no, and the events say so.
    fn decline(&mut self, id: &str, title: &str) -> Result<String, AgentFault> {
        if let Some(running) = &mut self.running {
            running.rejected += 1;
        }
        self.link.send(&Command::DeclineDialog, id)?;
        let params = json!({ "permissionId": id, "description": title, "reason": "no one can answer" });
        Ok(acp::notification("_agentos/permission_rejected", &params))
    }

    fn on_response(&mut self, id: &str, outcome: Result<Value, String>) -> Result<(), AgentFault> {
        if let Some(asked) = self.asked.remove(id) {
            return self.on_agreement(asked, outcome);
        }
        // A command of an extension has done its work already; no turn follows.
        let handled = matches!(&outcome, Ok(data) if data["disposition"] == "handled");
        if let Some(settling) = &mut self.settling
            && settling.untaken.take_if(|command| command == id).is_some()
            && (handled || outcome.is_err())
        {
            self.settling = None;
        }
        let Some(mut running) = self.running.take_if(|running| running.command == id) else { return Ok(()) };
        running.taken = true;
        match outcome {
            Ok(_) if handled => {
                let text = self.link.translator.take_turn().text;
                self.answer(running, Ok((text, "end_turn")));
            }
            Ok(_) => self.running = Some(running),
            // Pi refuses every prompt when it has no key, and says so: that is a matter of the model, not of the agent.
            Err(reason) if self.profile.has_no_model() => {
                self.answer(running, Err(PromptError::Model { reason }))
            }
            Err(reason) => self.answer(running, Err(PromptError::Refused { reason })),
        }
        Ok(())
    }

    /// Pi has agreed to a change, or not.
    fn on_agreement(&mut self, asked: Asked, outcome: Result<Value, String>) -> Result<(), AgentFault> {
        let Asked { number, change, reply } = asked;
        let next = match outcome {
            Ok(data) => self.profile.apply(number, change, data),
            Err(reason) => {
                Next::Answer(acp::error_response(number, acp::INTERNAL_ERROR, &reason, &Value::Null))
            }
        };
        match next {
            Next::Ask(command, change) => self.ask(&command, Asked { number, change, reply }),
            Next::Answer(answer) => {
                // A caller that left doesn't want it.
                let _ = reply.send(Ok(answer));
                Ok(())
            }
        }
    }

    fn ask(&mut self, command: &Command, asked: Asked) -> Result<(), AgentFault> {
        let id = format!("request-{}", self.number());
        self.link.send(command, &id)?;
        self.asked.insert(id, asked);
        Ok(())
    }

    fn on_request(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Prompt { prompt, idle, reply } => self.begin(prompt, idle, reply)?,
            Request::Cancel { reply } => drop(reply.send(self.cancel()?)),
            Request::Raw { method, params, reply } => self.raw(&method, &params, reply)?,
            Request::Close { graceful } => return Err(End::Close { graceful }),
        }
        Ok(())
    }

    fn begin(
        &mut self,
        prompt: PiPrompt,
        idle: Duration,
        reply: Reply<PromptReply>,
    ) -> Result<(), AgentFault> {
        if self.running.is_some() || self.settling.is_some() {
            let _ = reply.send(Err(PromptError::Busy { session: self.shared.id.to_string() }));
            return Ok(());
        }
        self.link.begin_turn();
        let number = self.number();
        let command = format!("prompt-{number}");
        self.link.send(&Command::Prompt { message: prompt.message, images: prompt.images }, &command)?;
        self.running =
            Some(Running { command, number, taken: false, reply, idle, cancelled: None, rejected: 0 });
        Ok(())
    }

    fn raw(&mut self, method: &str, params: &Value, reply: Reply<Value>) -> Result<(), AgentFault> {
        let number = self.number();
        match self.profile.request(number, method, params) {
            Reaction::Answer(answer) => drop(reply.send(Ok(answer))),
            Reaction::Cancel => {
                let cancelled = self.cancel()?;
                let _ = reply.send(Ok(acp::response(number, &json!({ "cancelled": cancelled }))));
            }
            Reaction::Ask(command, change) => self.ask(&command, Asked { number, change, reply })?,
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Begins to cancel the running turn; false where there is none.
    fn cancel(&mut self) -> Result<bool, AgentFault> {
        let Some(running) = &mut self.running else { return Ok(false) };
        if running.cancelled.is_none() {
            let now = Instant::now();
            running.cancelled =
                Some(Cancelled { answer_at: now + CANCEL_GRACE, abort_again_at: now + ABORT_AGAIN });
            self.link.send(&Command::Abort, ABORT)?;
        }
        Ok(true)
    }

    /// When something must happen although nothing comes.
    fn deadline(&self) -> Option<Instant> {
        // No prompt runs while a turn settles.
        let Some(running) = &self.running else {
            return self.settling.as_ref().map(|settling| settling.until);
        };
        match &running.cancelled {
            Some(cancelled) => Some(cancelled.answer_at.min(cancelled.abort_again_at)),
            None if self.link.translator.running_tools() > 0 => None,
            // A time that is too far away to be told is no deadline.
            None => self.link.heard().checked_add(running.idle),
        }
    }

    fn on_deadline(&mut self) -> Result<(), AgentFault> {
        let now = Instant::now();
        let Some(mut running) = self.running.take() else {
            return Err(AgentFault::Unstoppable { waited: SETTLE_GRACE });
        };
        match &mut running.cancelled {
            Some(cancelled) if now < cancelled.answer_at => {
                cancelled.abort_again_at = now + ABORT_AGAIN;
                self.running = Some(running);
                return self.link.send(&Command::Abort, ABORT);
            }
            Some(_) => {
                self.settling = Some(Settling::after(&running, now));
                let text = self.link.translator.take_turn().text;
                self.answer(running, Ok((text, "cancelled")));
            }
            None => {
                self.settling = Some(Settling::after(&running, now));
                let idle = running.idle;
                self.answer(running, Err(PromptError::IdleTimeout { idle }));
                return self.link.send(&Command::Abort, ABORT);
            }
        }
        Ok(())
    }

    /// The turn is over: its prompt, if it still waits, is answered.
    fn settled(&mut self, aborted: bool, turn: Turn) {
        self.settling = None;
        let Some(running) = self.running.take_if(|running| running.taken) else { return };
        let silent = turn.text.is_empty() && turn.tool_calls == 0;
        let result = match turn.end {
            _ if aborted || running.cancelled.is_some() => Ok((turn.text, "cancelled")),
            MessageEnd::Aborted => Ok((turn.text, "cancelled")),
            MessageEnd::Error(reason) => Err(PromptError::Model { reason }),
            _ if silent => Err(PromptError::EmptyTurn { log: self.link.log() }),
            MessageEnd::Length => Ok((turn.text, "max_tokens")),
            MessageEnd::Stop | MessageEnd::None => Ok((turn.text, "end_turn")),
        };
        self.answer(running, result);
    }

    fn answer(&self, running: Running, result: Result<(String, &'static str), PromptError>) {
        let reply = result.map(|(text, stop_reason)| PromptReply {
            text,
            stop_reason,
            response: acp::response(running.number, &json!({ "stopReason": stop_reason })),
            model: self.shared.model.kind,
            rejected_permissions: running.rejected,
        });
        // A caller that left doesn't want it.
        let _ = running.reply.send(reply);
    }

    /// Ends the agent and everything that waits for it.
    async fn finish(mut self, end: End, mut requests: mpsc::Receiver<Request>) {
        requests.close();
        let fault = match end {
            End::Fault(fault) => fault,
            End::Close { graceful } => {
                if graceful {
                    self.part().await;
                }
                AgentFault::Closed
            }
        };
        self.link.kill(KILL_GRACE).await;
        let _ = self.shared.fate.set(fault.clone());
        if let Some(running) = self.running.take() {
            self.answer(running, Err(fault.clone().into()));
        }
        for (_, asked) in self.asked.drain() {
            let _ = asked.reply.send(Err(fault.clone().into()));
        }
        while let Some(request) = requests.recv().await {
            match request {
                Request::Prompt { reply, .. } => drop(reply.send(Err(fault.clone().into()))),
                Request::Raw { reply, .. } => drop(reply.send(Err(fault.clone().into()))),
                Request::Cancel { reply } => drop(reply.send(false)),
                Request::Close { .. } => {}
            }
        }
        self.shared.log.close();
    }

    /// The polite end: the turn is cancelled, the input ends, what the agent still says is kept.
    async fn part(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = self.link.send(&Command::Abort, ABORT);
            let text = self.link.translator.take_turn().text;
            self.answer(running, Ok((text, "cancelled")));
        }
        self.link.hang_up();
        let farewell = async {
            while let Ok(outputs) = self.link.read().await {
                if self.on_outputs(outputs).await.is_err() {
                    break;
                }
            }
        };
        // Beyond the grace the agent is killed like any other.
        let _ = timeout(EXIT_GRACE, farewell).await;
    }
}
