//! What one turn has brought so far, and what it may bring.

use std::collections::HashSet;

use super::error::{AgentFault, Trouble};
use crate::wire::message::Update;

/// What of a turn may be text for the user: the reply repeats all of it, so all of it is kept in memory. A model's
/// longest answer is a few hundred kilobytes.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Tool calls that may be open at once; a model asks for a handful. What is beyond holds up no deadline.
const MAX_OPEN_CALLS: usize = 4096;
/// An id is the agent's own and may be as long as a record; models use a few dozen bytes.
const MAX_ID_BYTES: usize = 256;
/// What is kept of an agent's words for what went wrong; the transcript has all of them.
const MAX_REASON_CHARS: usize = 2000;

/// One turn of an agent.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// All text of the agent.
    pub(super) text: String,
    /// How many tool calls there were.
    pub(super) tool_calls: u64,
    /// Those that have not ended.
    open: HashSet<String>,
    /// Where in the text the agent began to say why the turn fails.
    failing: Option<usize>,
    /// Why it has failed, where the agent has said it at once.
    failed: Option<String>,
    /// What keeps the agent from its model, as it has said last.
    trouble: Option<String>,
}

impl Turn {
    /// Takes in one update.
    pub(super) fn apply(&mut self, update: &Update) -> Result<(), AgentFault> {
        match update {
            Update::Text(text) => {
                self.text.push_str(text);
                if self.text.len() > MAX_TEXT_BYTES {
                    return Err(AgentFault::TooMuchText { limit_bytes: MAX_TEXT_BYTES });
                }
            }
            Update::Tool { id, new, over } => {
                self.tool_calls += u64::from(*new);
                // Its model has answered after all.
                self.trouble = None;
                if *over == Some(true) {
                    self.open.remove(id);
                } else if (*new || *over == Some(false))
                    && self.open.len() < MAX_OPEN_CALLS
                    && id.len() <= MAX_ID_BYTES
                {
                    self.open.insert(id.clone());
                }
            }
            Update::Failing => self.failing = Some(self.text.len()),
            Update::Failed(reason) => self.failed = Some(bounded(reason)),
            Update::Trouble(reason) => self.trouble = Some(bounded(reason)),
            Update::Mode(_) | Update::Options(_) | Update::Other => {}
        }
        Ok(())
    }

    /// Whether a tool runs, as far as the agent has said.
    pub(super) fn tool_runs(&self) -> bool {
        !self.open.is_empty()
    }

    /// Why the turn has failed, where the agent has said so without failing the request.
    pub(super) fn failure(&self) -> Option<String> {
        let reason = match &self.failed {
            Some(reason) => reason.trim(),
            None => self.text.get(self.failing?..)?.trim(),
        };
        Some(if reason.is_empty() {
            "the agent's turn failed without a reason".to_owned()
        } else {
            reason.to_owned()
        })
    }

    /// What is known of why it gets nowhere.
    pub(super) fn trouble(&self, log: String) -> Trouble {
        Trouble { told: self.trouble.clone(), log }
    }

    /// Whether it has brought nothing that a user could see.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tool_calls == 0
    }
}

fn bounded(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(id: &str, new: bool, over: Option<bool>) -> Update {
        Update::Tool { id: id.to_owned(), new, over }
    }

    #[test]
    fn tools_run_until_they_have_ended() {
        let mut turn = Turn::default();
        turn.apply(&tool("a", true, None)).unwrap();
        // Some agents announce a call by its first update.
        turn.apply(&tool("b", false, Some(false))).unwrap();
        turn.apply(&tool("a", false, Some(true))).unwrap();
        assert!(turn.tool_runs());
        turn.apply(&tool("b", false, Some(true))).unwrap();
        assert!(!turn.tool_runs() && !turn.is_empty());
    }

    #[test]
    fn what_is_said_after_a_failure_is_its_reason() {
        let mut turn = Turn::default();
        turn.apply(&Update::Text("so far".to_owned())).unwrap();
        assert_eq!(turn.failure(), None);
        turn.apply(&Update::Failing).unwrap();
        turn.apply(&Update::Text("\n429 too many requests".to_owned())).unwrap();
        assert_eq!(turn.failure().as_deref(), Some("429 too many requests"));
    }

    #[test]
    fn an_agents_trouble_is_known_until_its_model_answers() {
        let mut turn = Turn::default();
        let told = |turn: &Turn| turn.trouble(String::new()).told;
        turn.apply(&Update::Trouble("429 slow down".to_owned())).unwrap();
        turn.apply(&Update::Text("half of an answer".to_owned())).unwrap();
        assert_eq!(told(&turn).as_deref(), Some("429 slow down"), "it may break off again");
        turn.apply(&tool("a", true, None)).unwrap();
        assert_eq!(told(&turn), None);
        turn.apply(&Update::Trouble("x".repeat(3 * MAX_REASON_CHARS))).unwrap();
        assert_eq!(told(&turn).unwrap().len(), MAX_REASON_CHARS);
        assert_eq!(turn.failure(), None, "trouble is no end");
        turn.apply(&Update::Failed("400 no".to_owned())).unwrap();
        assert_eq!(turn.failure().as_deref(), Some("400 no"));
    }

    #[test]
    fn a_million_open_calls_cost_no_more_than_the_bound() {
        let mut turn = Turn::default();
        for number in 0..10_000 {
            turn.apply(&tool(&number.to_string(), true, Some(false))).unwrap();
        }
        assert_eq!((turn.open.len(), turn.tool_calls), (MAX_OPEN_CALLS, 10_000));
    }
}
