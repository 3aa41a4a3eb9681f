//! Pi as an ACP agent: requests of ACP become commands of `pi --mode rpc`, its records become ACP's messages.
//!
//! ```text
//! initialize         get_state, get_available_models, get_available_thinking_levels, get_commands
//! session/new, load  answered from those
//! session/prompt     prompt; answered at agent_settled, or at once where pi refuses or an extension has done the work
//! session/cancel     abort
//! session/set_*      set_model, set_thinking_level
//! ```
//! A turn that settles before pi has taken the prompt is not this prompt's.

mod content;
mod profile;

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Step;
use super::acp;
use super::lines::Line;
use super::message::{Message, Notification, RpcError};
use super::pi_rpc::{Command, MessageEnd, Output, Translator, Turn};
use profile::{Change, Next, Profile, Reaction};

/// The id of aborts; nothing waits for their answers.
const ABORT: &str = "abort";
/// What is asked of pi at its start.
const QUESTIONS: [(&str, Command); 4] = [
    ("get_state", Command::GetState),
    ("get_available_models", Command::GetModels),
    ("get_available_thinking_levels", Command::GetThinkingLevels),
    ("get_commands", Command::GetCommands),
];

/// The start: who asked, and what pi has answered so far.
#[derive(Debug)]
struct Starting {
    id: u64,
    answers: [Option<Value>; 4],
}

/// The prompt that pi has, taken or not.
#[derive(Debug)]
struct Running {
    id: u64,
    /// The id of its command.
    command: String,
    taken: bool,
}

/// A change that waits for pi's consent.
#[derive(Debug)]
struct Asked {
    id: u64,
    change: Change,
}

/// One pi process.
#[derive(Debug)]
pub struct PiWire {
    translator: Translator,
    version: Option<String>,
    profile: Option<Profile>,
    starting: Option<Starting>,
    running: Option<Running>,
    asked: HashMap<String, Asked>,
    commands: u64,
}

impl PiWire {
    /// A process of this version that works in `cwd`.
    #[must_use]
    pub fn new(cwd: &str, version: Option<&str>) -> Self {
        Self {
            translator: Translator::new(cwd),
            version: version.map(str::to_owned),
            profile: None,
            starting: None,
            running: None,
            asked: HashMap::new(),
            commands: 0,
        }
    }

    pub(super) fn request(&mut self, id: u64, method: &str, params: &Value) -> Step {
        match (method, &self.profile) {
            ("initialize", _) => self.start(id),
            (_, None) => {
                Step::response(id, Err(RpcError::new(acp::INVALID_REQUEST, "pi is not initialized")))
            }
            ("session/new", Some(profile)) => {
                let mut step = Step::response(id, Ok(profile.session_new()));
                if let Some(update) = profile.commands_update() {
                    let text = acp::session_update(&profile.session_id, &update);
                    step.messages.push(Message::Notification(Notification::read(text)));
                }
                step
            }
            // Pi has opened it at its launch, or a new one where it knew of none.
            ("session/load", Some(profile)) => Step::response(id, profile.session_load(&params["sessionId"])),
            ("session/prompt", Some(_)) => self.prompt(id, &params["prompt"]),
            (method, Some(profile)) => match profile.request(method, params) {
                Reaction::Answer(outcome) => Step::response(id, outcome),
                Reaction::Ask(command, change) => self.ask(&command, Asked { id, change }),
            },
        }
    }

    pub(super) fn notify(&mut self, method: &str) -> Step {
        match method {
            "session/cancel" => Step { lines: vec![Command::Abort.encode(ABORT)], messages: Vec::new() },
            _ => Step::default(),
        }
    }

    pub(super) fn line(&mut self, line: &Line) -> Step {
        let mut step = Step::default();
        for output in self.translator.line(line) {
            match output {
                Output::Event(text) => {
                    step.messages.push(Message::Notification(Notification::read(text)));
                }
                // An extension asks its user, and there is no way to pass that on.
                Output::Dialog { id, title } => {
                    step.lines.push(Command::DeclineDialog.encode(&id));
                    step.messages.push(Message::Declined { id, title });
                }
                Output::Response { id, outcome } => {
                    let follows = self.on_response(&id, outcome);
                    step.lines.extend(follows.lines);
                    step.messages.extend(follows.messages);
                }
                Output::Settled { aborted, turn } => step.messages.extend(self.settled(aborted, turn)),
                Output::Garbage => step.messages.push(Message::Garbage),
                Output::TooLong { length } => step.messages.push(Message::TooLong { length }),
            }
        }
        step
    }

    fn start(&mut self, id: u64) -> Step {
        self.starting = Some(Starting { id, answers: Default::default() });
        let lines = QUESTIONS.iter().map(|(name, question)| question.encode(name)).collect();
        Step { lines, messages: Vec::new() }
    }

    fn prompt(&mut self, id: u64, blocks: &Value) -> Step {
        let blocks = blocks.as_array().map(Vec::as_slice).unwrap_or_default();
        let prompt = match content::for_pi(blocks) {
            Ok(prompt) => prompt,
            Err(reason) => return Step::response(id, Err(RpcError::new(acp::INVALID_PARAMS, reason))),
        };
        self.translator.take_turn();
        let command = self.command("prompt");
        let line = Command::Prompt { message: prompt.message, images: prompt.images }.encode(&command);
        self.running = Some(Running { id, command, taken: false });
        Step { lines: vec![line], messages: Vec::new() }
    }

    fn ask(&mut self, command: &Command, asked: Asked) -> Step {
        let id = self.command("request");
        let lines = vec![command.encode(&id)];
        self.asked.insert(id, asked);
        Step { lines, messages: Vec::new() }
    }

    fn command(&mut self, kind: &str) -> String {
        self.commands += 1;
        format!("{kind}-{}", self.commands)
    }

    fn on_response(&mut self, id: &str, outcome: Result<Value, String>) -> Step {
        if let Some(asked) = self.asked.remove(id) {
            return self.on_consent(asked, outcome);
        }
        if let Some(at) = QUESTIONS.iter().position(|(name, _)| *name == id) {
            return self.on_answer(at, outcome);
        }
        let Some(mut running) = self.running.take_if(|running| running.command == id) else {
            return if id == ABORT { Step::default() } else { Step::message(Message::Unasked) };
        };
        running.taken = true;
        match outcome {
            // A command of an extension has done its work already; no turn follows.
            Ok(data) if data["disposition"] == "handled" => {
                let result = json!({ "stopReason": "end_turn", "_meta": { acp::HANDLED: true } });
                Step::response(running.id, Ok(result))
            }
            Ok(_) => {
                self.running = Some(running);
                Step::default()
            }
            // Pi refuses every prompt when it has no key, and says so: that is a matter of the model, not of the agent.
            Err(reason) => {
                let no_model = self.profile.as_ref().is_some_and(Profile::has_no_model);
                let code = if no_model { acp::INTERNAL_ERROR } else { acp::INVALID_REQUEST };
                Step::response(running.id, Err(RpcError::new(code, reason)))
            }
        }
    }

    /// One of the four answers of the start.
    fn on_answer(&mut self, at: usize, outcome: Result<Value, String>) -> Step {
        let Some(mut starting) = self.starting.take() else { return Step::default() };
        match outcome {
            Ok(answer) => starting.answers[at] = Some(answer),
            Err(reason) => {
                let message = format!("{}: {reason}", QUESTIONS[at].0);
                return Step::response(starting.id, Err(RpcError::new(acp::INTERNAL_ERROR, message)));
            }
        }
        if starting.answers.iter().any(Option::is_none) {
            self.starting = Some(starting);
            return Step::default();
        }
        let profile = Profile::new(self.version.as_deref(), &starting.answers.map(Option::unwrap_or_default));
        self.translator.session(&profile.session_id, profile.context_window());
        let initialize = profile.initialize();
        self.profile = Some(profile);
        Step::response(starting.id, Ok(initialize))
    }

    /// Pi has agreed to a change, or not.
    fn on_consent(&mut self, asked: Asked, outcome: Result<Value, String>) -> Step {
        let Asked { id, change } = asked;
        let next = match (outcome, &mut self.profile) {
            (Ok(data), Some(profile)) => profile.apply(change, data),
            (Ok(_), None) => Next::Answer(Value::Null),
            (Err(reason), _) => {
                return Step::response(id, Err(RpcError::new(acp::INTERNAL_ERROR, reason)));
            }
        };
        match next {
            Next::Ask(command, change) => self.ask(&command, Asked { id, change }),
            Next::Answer(result) => Step::response(id, Ok(result)),
        }
    }

    /// The turn is over: its prompt is answered.
    fn settled(&mut self, aborted: bool, turn: Turn) -> Option<Message> {
        let running = self.running.take_if(|running| running.taken)?;
        let stopped = |reason: &str| Ok(json!({ "stopReason": reason }));
        let outcome = match turn.end {
            _ if aborted => stopped("cancelled"),
            MessageEnd::Aborted => stopped("cancelled"),
            MessageEnd::Error(reason) => Err(RpcError::new(acp::INTERNAL_ERROR, reason)),
            MessageEnd::Length => stopped("max_tokens"),
            MessageEnd::Stop | MessageEnd::None => stopped("end_turn"),
        };
        Some(Message::Response { id: running.id, outcome })
    }
}
