//! The agent's requests for permission: who answers them, with what, and until when.
//!
//! ```text
//! session/request_permission ─► policy, rules, what is always allowed ─► answered
//!                                    │ none decides
//!                                    ▼
//!                                 waiting ─► the host's reply / cancelled / nobody there / out of time
//! ```
//! Only the host's reply, by an id of ours that works once, can allow what no rule allows; nothing that an agent sends
//! is taken for one. "Always" is remembered here and never told the agent, whose own idea of it may be wider than what
//! was asked.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::PermissionError;
use crate::permission::{PermissionPolicy, PermissionReply, PermissionRule, RuleAction};
use crate::transcript::Event;

/// How long a request waits for a reply.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long it waits for somebody who could reply: a handler may be on its way when the prompt is.
const HANDLER_GRACE: Duration = Duration::from_millis(500);
/// Requests that may wait at once; agents ask for one thing, or for a few.
const MAX_WAITING: usize = 64;
/// Things that may be allowed for good.
const MAX_ALWAYS: usize = 4096;
/// What of a title is repeated in events of ours.
const MAX_TITLE_CHARS: usize = 300;
/// What is said to whoever wonders why everything was rejected.
const HINT: &str = "nobody answers requests for permission in this session: read its permission requests, give it rules, \
                    or let it act unasked with the policy allow_all";

/// What a session's requests are answered by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PermissionSetup {
    /// The policy.
    pub policy: PermissionPolicy,
    /// The rules beside [`PermissionPolicy::Ask`]; of several that fit the last one decides.
    pub rules: Vec<PermissionRule>,
}

/// What waits for the host, for all who can answer: shared by the session's handles.
#[derive(Debug, Default)]
pub(super) struct Board {
    // Held for single look-ups, never across an await.
    waiting: Mutex<BTreeMap<u64, Event>>,
    changed: watch::Sender<()>,
    handlers: watch::Sender<usize>,
}

impl Board {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Event>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when somebody comes or goes who could answer.
    pub(super) fn handlers(&self) -> watch::Receiver<usize> {
        self.handlers.subscribe()
    }

    fn has_handler(&self) -> bool {
        *self.handlers.borrow() > 0
    }
}

/// A reader of what waits for the host. While it lives the session has somebody who answers.
#[derive(Debug)]
pub struct PermissionRequests {
    board: Arc<Board>,
    changed: watch::Receiver<()>,
    next: u64,
}

impl PermissionRequests {
    pub(super) fn new(board: &Arc<Board>) -> Self {
        board.handlers.send_modify(|handlers| *handlers += 1);
        Self { board: Arc::clone(board), changed: board.changed.subscribe(), next: 0 }
    }

    /// The next request that waits: the event that it was kept as. A dropped call loses nothing.
    pub async fn next(&mut self) -> Event {
        loop {
            // Looked at before the board: a request that comes after this look wakes the wait below.
            self.changed.mark_unchanged();
            let found =
                self.board.waiting().range(self.next..).next().map(|(at, event)| (*at, event.clone()));
            if let Some((at, event)) = found {
                self.next = at + 1;
                return event;
            }
            if self.changed.changed().await.is_err() {
                // The sender lives in the board, so that this can't happen.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for PermissionRequests {
    fn drop(&mut self) {
        self.board.handlers.send_modify(|handlers| *handlers -= 1);
    }
}

/// One option of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice {
    id: String,
    kind: String,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    /// The id to answer the agent with.
    agent_id: Value,
    permission_id: String,
    title: String,
    choices: Vec<Choice>,
    /// What "the same again" means: the kind with its paths, or the very command.
    key: String,
}

#[derive(Debug)]
struct Waiting {
    asked: Asked,
    since: Instant,
}

/// An answer for the agent, and the event that tells of it.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) agent_id: Value,
    pub(super) result: Value,
    pub(super) event: (&'static str, Value),
    /// Rejected although nobody of the host has said so.
    pub(super) unasked_rejection: bool,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is answered.
    Answered(Box<Answer>),
    /// It waits for the host, who is told with this event under this number.
    Waits { number: u64, event: (&'static str, Value) },
}

/// One session's desk for such requests.
#[derive(Debug)]
pub(super) struct Desk {
    setup: PermissionSetup,
    cwd: String,
    always: HashSet<String>,
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
    board: Arc<Board>,
}

impl Desk {
    pub(super) fn new(setup: PermissionSetup, cwd: &str, board: Arc<Board>) -> Self {
        let (always, waiting) = (HashSet::new(), BTreeMap::new());
        Self { setup, cwd: cwd.to_owned(), always, waiting, last: 0, board }
    }

    /// Whether the agent may act at all on the host's side: write files, start programs.
    pub(super) fn lets_act(&self) -> bool {
        self.setup.policy != PermissionPolicy::RejectAll
    }

    /// Takes a request in.
    pub(super) fn judge(&mut self, agent_id: Value, params: Value) -> Verdict {
        self.last += 1;
        let tool = &params["toolCall"];
        let paths = self.paths_of(tool);
        let kind = tool["kind"].as_str().unwrap_or("other");
        let asked = Asked {
            agent_id,
            permission_id: format!("permission-{}", self.last),
            title: tool["title"]
                .as_str()
                .unwrap_or("an action without a title")
                .chars()
                .take(MAX_TITLE_CHARS)
                .collect(),
            choices: choices(&params["options"]),
            key: key(kind, tool, &paths),
        };
        let rule = self.setup.rules.iter().rev().find(|rule| rule.fits(kind, &paths));
        match (self.setup.policy, rule.map(|rule| rule.action)) {
            (PermissionPolicy::AllowAll, _) => return decided(&asked, PermissionReply::Once, "policy"),
            (PermissionPolicy::RejectAll, _) => return decided(&asked, PermissionReply::Reject, "policy"),
            (PermissionPolicy::Ask, Some(RuleAction::Allow)) => {
                return decided(&asked, PermissionReply::Once, "rule");
            }
            (PermissionPolicy::Ask, Some(RuleAction::Reject)) => {
                return decided(&asked, PermissionReply::Reject, "rule");
            }
            (PermissionPolicy::Ask, _) if self.always.contains(&asked.key) => {
                return decided(&asked, PermissionReply::Once, "always");
            }
            (PermissionPolicy::Ask, _) => {}
        }
        if self.waiting.len() >= MAX_WAITING {
            return Verdict::Answered(Box::new(unanswered(&asked, "too many requests wait already")));
        }
        let told =
            json!({ "permissionId": asked.permission_id, "description": asked.title, "params": params });
        self.waiting.insert(self.last, Waiting { asked, since: Instant::now() });
        Verdict::Waits { number: self.last, event: ("_agentos/permission_request", told) }
    }

    /// Shows a request, whose event is kept by now, to those who can answer.
    pub(super) fn show(&self, number: u64, event: Event) {
        self.board.waiting().insert(number, event);
        self.board.changed.send_replace(());
    }

    /// The host's reply. An id works once.
    pub(super) fn reply(
        &mut self,
        permission_id: &str,
        reply: PermissionReply,
    ) -> Result<Answer, PermissionError> {
        let found = self.waiting.iter().find(|(_, waiting)| waiting.asked.permission_id == permission_id);
        let not_found = || PermissionError::NotFound { id: permission_id.chars().take(80).collect() };
        let number = *found.ok_or_else(not_found)?.0;
        let asked = &self.waiting.get(&number).ok_or_else(not_found)?.asked;
        let Some(result) = outcome(asked, reply) else {
            let offered = asked.choices.iter().map(|choice| choice.kind.clone()).collect();
            return Err(PermissionError::NotOffered { reply: reply.as_str(), offered });
        };
        let asked = self.take(number).ok_or_else(not_found)?;
        if reply == PermissionReply::Always && self.always.len() < MAX_ALWAYS {
            self.always.insert(asked.key.clone());
        }
        Ok(answer(&asked, result, reply, "host"))
    }

    /// When the next request has waited long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = if self.board.has_handler() { REPLY_TIMEOUT } else { HANDLER_GRACE };
        self.waiting.values().map(|waiting| waiting.since + patience).min()
    }

    /// Rejects what has waited long enough.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Answer> {
        let has_handler = self.board.has_handler();
        let patience = if has_handler { REPLY_TIMEOUT } else { HANDLER_GRACE };
        let over = self.waiting.iter().filter(|(_, waiting)| waiting.since + patience <= now);
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        let reason = if has_handler { "no reply in time" } else { "no one can answer" };
        over.into_iter()
            .filter_map(|number| self.take(number))
            .map(|asked| unanswered(&asked, reason))
            .collect()
    }

    /// Cancels all that waits: its turn is over.
    pub(super) fn cancel(&mut self) -> Vec<Answer> {
        let all: Vec<u64> = self.waiting.keys().copied().collect();
        let cancelled = |asked: Asked| Answer {
            event: resolved(&asked, "cancelled", "cancel"),
            agent_id: asked.agent_id,
            result: json!({ "outcome": { "outcome": "cancelled" } }),
            unasked_rejection: false,
        };
        all.into_iter().filter_map(|number| self.take(number)).map(cancelled).collect()
    }

    /// Whether the host is being asked.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn take(&mut self, number: u64) -> Option<Asked> {
        self.board.waiting().remove(&number);
        self.waiting.remove(&number).map(|waiting| waiting.asked)
    }

    /// The paths that a tool call says it touches.
    fn paths_of(&self, tool: &Value) -> Vec<String> {
        let list = |name: &str| tool[name].as_array().map(Vec::as_slice).unwrap_or_default();
        let located = list("locations").iter().filter_map(|location| location["path"].as_str());
        let changed = list("content").iter().filter(|content| content["type"] == "diff");
        let changed = changed.filter_map(|content| content["path"].as_str());
        let absolute = |path: &str| match path.strip_prefix('/') {
            Some(_) => path.to_owned(),
            None => format!("{}/{path}", self.cwd.trim_end_matches('/')),
        };
        let mut paths: Vec<String> = located.chain(changed).map(absolute).collect();
        paths.sort();
        paths.dedup();
        paths
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.board.waiting().clear();
        self.board.changed.send_replace(());
    }
}

fn choices(options: &Value) -> Vec<Choice> {
    let choice = |option: &Value| {
        let text = |name: &str| option[name].as_str().map(str::to_owned);
        Some(Choice { id: text("optionId")?, kind: text("kind").unwrap_or_default() })
    };
    options.as_array().into_iter().flatten().filter_map(choice).collect()
}

/// A change of files is the same again where it is of the same files; anything else where it is the same to the letter.
fn key(kind: &str, tool: &Value, paths: &[String]) -> String {
    let input = &tool["rawInput"];
    let what = match kind {
        "edit" | "delete" | "move" | "read" if !paths.is_empty() => json!(paths),
        "execute" if !input["command"].is_null() => {
            json!({ "command": input["command"], "cwd": input["cwd"] })
        }
        _ => json!({ "title": tool["title"], "rawInput": input, "paths": paths }),
    };
    format!("{kind} {what}")
}

/// The agent's option for a reply; `None` where it offers none that means no more than the reply.
fn outcome(asked: &Asked, reply: PermissionReply) -> Option<Value> {
    let option = |kind: &str| asked.choices.iter().find(|choice| choice.kind == kind);
    let chosen = match reply {
        PermissionReply::Once => option("allow_once"),
        PermissionReply::Always => option("allow_once").or_else(|| option("allow_always")),
        PermissionReply::Reject => match option("reject_once").or_else(|| option("reject_always")) {
            Some(choice) => Some(choice),
            // Whatever it offers, no is always possible.
            None => return Some(json!({ "outcome": { "outcome": "cancelled" } })),
        },
    };
    chosen.map(|choice| json!({ "outcome": { "outcome": "selected", "optionId": choice.id } }))
}

fn decided(asked: &Asked, reply: PermissionReply, by: &'static str) -> Verdict {
    // Who may do everything may also do it for good, where the agent knows nothing less.
    let stronger = if by == "policy" { outcome(asked, PermissionReply::Always) } else { None };
    match outcome(asked, reply).or(stronger.filter(|_| reply == PermissionReply::Once)) {
        Some(result) => {
            let mut answer = answer(asked, result, reply, by);
            answer.unasked_rejection = reply == PermissionReply::Reject;
            Verdict::Answered(Box::new(answer))
        }
        None => {
            Verdict::Answered(Box::new(unanswered(asked, "the agent offers no option that allows it once")))
        }
    }
}

fn answer(asked: &Asked, result: Value, reply: PermissionReply, by: &str) -> Answer {
    let event = resolved(asked, reply.as_str(), by);
    Answer { agent_id: asked.agent_id.clone(), result, event, unasked_rejection: false }
}

fn resolved(asked: &Asked, reply: &str, by: &str) -> (&'static str, Value) {
    let params =
        json!({ "permissionId": asked.permission_id, "description": asked.title, "reply": reply, "by": by });
    ("_agentos/permission_resolved", params)
}

/// A rejection because nobody has answered.
fn unanswered(asked: &Asked, reason: &str) -> Answer {
    let params = json!({
        "permissionId": asked.permission_id, "description": asked.title, "reason": reason, "hint": HINT,
    });
    let result = outcome(asked, PermissionReply::Reject).unwrap_or_default();
    let event = ("_agentos/permission_rejected", params);
    Answer { agent_id: asked.agent_id.clone(), result, event, unasked_rejection: true }
}

#[cfg(test)]
mod tests;
