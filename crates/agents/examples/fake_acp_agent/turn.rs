//! One request on its way to its answer: a script, obeyed step by step.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, INVALID_PARAMS, error};
use crate::script::Step;
use crate::state::Role;
use crate::{ask, mischief, speech, tools};

/// What a step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Step,
    /// The request is not answered, and nothing more happens.
    Silence,
    /// The client has cancelled the turn.
    Cancelled,
}

/// What came of a step; an error is a script that makes no sense.
pub(crate) type Done = Result<Next, String>;

pub(crate) struct Turn {
    pub(crate) agent: Arc<Agent>,
    pub(crate) session: String,
    /// The request; absent at the agent's start.
    pub(crate) request: Option<Value>,
    /// What it is answered with.
    pub(crate) result: Value,
    /// Whether it is a prompt's: these can be cancelled.
    is_prompt: bool,
    pub(crate) answered: bool,
    pub(crate) ignores_cancel: bool,
    /// What was said.
    pub(crate) said: String,
    /// How many tool calls there were.
    pub(crate) calls: u64,
}

impl Turn {
    pub(crate) fn new(agent: &Arc<Agent>, request: Option<Value>, session: &str, result: Value) -> Self {
        Self {
            agent: Arc::clone(agent),
            session: session.to_owned(),
            request,
            is_prompt: result["stopReason"].is_string(),
            result,
            answered: false,
            ignores_cancel: agent.profile.ignore_cancel,
            said: String::new(),
            calls: 0,
        }
    }

    /// Obeys a script on a thread of its own and answers.
    pub(crate) fn spawn(mut self, steps: Vec<Step>) {
        std::thread::spawn(move || {
            if let Err(reason) = self.obey(&steps) {
                self.fail(&error(INVALID_PARAMS, &reason));
            }
        });
    }

    /// Obeys a script, and answers unless that was done or forbidden.
    pub(crate) fn obey(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            let step = Step { name: step.name.clone(), rest: self.fill_in(&step.rest) };
            match self.step(&step)? {
                Next::Step => {}
                Next::Silence => {
                    self.over();
                    return Ok(());
                }
                Next::Cancelled => {
                    self.result["stopReason"] = json!("cancelled");
                    break;
                }
            }
        }
        if !self.answered {
            self.answer();
        }
        self.over();
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Done {
        let done = speech::perform(self, step)
            .or_else(|| tools::perform(self, step))
            .or_else(|| ask::perform(self, step))
            .or_else(|| mischief::perform(self, step))
            .or_else(|| self.end(step));
        done.unwrap_or_else(|| Err(format!("no such directive: {}", step.name)))
    }

    /// The directives about the answer and about time.
    fn end(&mut self, step: &Step) -> Option<Done> {
        Some(match step.name.as_str() {
            "end" => {
                if !step.rest.is_empty() {
                    self.result["stopReason"] = json!(step.rest);
                }
                self.answer();
                Ok(Next::Step)
            }
            "result" => parsed(&step.rest).map(|result| {
                self.result = result;
                self.answer();
                Next::Step
            }),
            "error" => self.error(step),
            "twice" => {
                self.answer();
                self.answer();
                Ok(Next::Step)
            }
            "never" => Ok(Next::Silence),
            "sleep" => step.needed_size(0).map(|ms| self.pause(Duration::from_millis(ms))),
            "hang" => {
                while self.pause(Duration::from_secs(60)) == Next::Step {}
                Ok(Next::Cancelled)
            }
            "ignore-cancel" => {
                self.ignores_cancel = true;
                Ok(Next::Step)
            }
            _ => return None,
        })
    }

    fn error(&mut self, step: &Step) -> Done {
        let error = if step.rest.starts_with('{') {
            parsed(&step.rest)?
        } else {
            let (code, rest) = step.split();
            let code: i64 = code.parse().map_err(|_| format!("{code} is no code"))?;
            // The data begins where JSON does.
            let at = rest.find('{').unwrap_or(rest.len());
            let mut error = error(code, rest[..at].trim());
            if at < rest.len() {
                error["data"] = parsed(&rest[at..])?;
            }
            error
        };
        self.fail(&error);
        Ok(Next::Step)
    }

    fn fail(&mut self, error: &Value) {
        self.over();
        self.answered = true;
        if let Some(id) = &self.request {
            self.agent.wire.error(id, error);
        }
    }

    fn answer(&mut self) {
        // The next prompt may come as soon as this one is answered.
        self.over();
        self.answered = true;
        if let Some(id) = &self.request {
            self.agent.wire.result(id, &self.result);
        }
    }

    /// The session is free, and what was said is remembered.
    fn over(&mut self) {
        let said = std::mem::take(&mut self.said);
        let mut known = self.agent.known();
        let ends = self.is_prompt && !self.answered;
        if let Some(session) = known.sessions.get_mut(&self.session).filter(|_| ends) {
            session.running = false;
            session.remember(Role::Agent, &said);
            self.agent.store.save(&self.session, session);
        }
    }

    /// Waits, unless it is cancelled.
    pub(crate) fn pause(&self, time: Duration) -> Next {
        let cancelled = self.agent.wait(time, |known| {
            let cancelled = known.sessions.get(&self.session).is_none_or(|session| session.cancelled);
            (cancelled && self.is_prompt && !self.ignores_cancel).then_some(())
        });
        if cancelled.is_some() { Next::Cancelled } else { Next::Step }
    }

    fn fill_in(&self, text: &str) -> String {
        let cwd = self.agent.known().sessions.get(&self.session).map(|session| session.cwd.clone());
        let request = self.request.as_ref().unwrap_or(&Value::Null).to_string();
        text.replace("${session}", &self.session)
            .replace("${request}", &request)
            .replace("${cwd}", &cwd.unwrap_or_default())
    }
}

pub(crate) fn parsed(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))
}
