//! `agentos sessions show`: a transcript as `run` would have shown it, with the prompts.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use agentos::{AgentOsSidecar, StoredSession};
use serde_json::Value;

use super::note::{Note, Notes};
use crate::failure::Failure;
use crate::net_log::time;
use crate::run::steps::Steps;
use crate::terminal::{Palette, harmless, harmless_line, print};

pub(super) async fn run(sidecar: &AgentOsSidecar, session: &StoredSession) -> Result<(), Failure> {
    let palette = Palette::for_stdout();
    print(&head(session, palette))?;
    let mut shown = Shown { steps: Steps::new(palette), notes: Notes::default(), palette };
    let mut events = sidecar.read_history(&session.session_id).events();
    while let Some(event) = events.next().await {
        let text = shown.event(&event?.notification);
        if !text.is_empty() {
            print(&text)?;
        }
    }
    print(shown.steps.end_line())
}

/// The facts of a session: a name and a value each, none of it harmless yet.
pub(super) fn facts(session: &StoredSession) -> Vec<(&'static str, String)> {
    let at = |ms: u64| time(UNIX_EPOCH + Duration::from_millis(ms));
    let mut agent = session.agent_type.clone();
    if let Some(version) = &session.agent_version {
        agent.push_str(&format!(" {version}"));
    }
    let mut model = session.model.to_string();
    if let Some(reason) = &session.model_reason {
        model.push_str(&format!(": {reason}"));
    }
    let mut facts = vec![("session", session.session_id.clone()), ("agent", agent), ("model", model)];
    if let Some(cwd) = &session.cwd {
        facts.push(("directory", cwd.clone()));
    }
    if let Some(vm) = &session.vm {
        facts.push(("VM", vm.clone()));
    }
    facts.push(("began", at(session.created_at_ms)));
    match &session.ended {
        Some(end) => facts.push(("ended", format!("{} ({})", at(end.at_ms), end.reason))),
        None => facts.push(("last event", at(session.updated_at_ms))),
    }
    facts
}

fn head(session: &StoredSession, palette: Palette) -> String {
    let title = session.title.as_deref().unwrap_or("(no title)");
    let mut text = format!("{}\n", palette.bold(&harmless_line(title)));
    for (name, value) in facts(session) {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{}", palette.dim(&format!("  {name:<10}  {}", harmless_line(&value))));
    }
    text
}

#[derive(Debug)]
struct Shown {
    steps: Steps,
    notes: Notes,
    palette: Palette,
}

impl Shown {
    /// What to print for an event.
    fn event(&mut self, notification: &Value) -> String {
        let Some(note) = self.notes.read(notification) else { return self.steps.show(notification) };
        let mut text = self.steps.end_line().to_owned();
        let line = match note {
            Note::Prompt(prompt) => {
                text.push('\n');
                self.palette.bold(&format!("you: {}", harmless(prompt.trim_end())))
            }
            Note::TurnFailed(error) => self.palette.red(&format!("the turn failed: {}", harmless(&error))),
            Note::TurnEnded(reason) => {
                self.palette.yellow(&format!("the turn ended: {}", harmless_line(&reason)))
            }
            Note::Permission(what) => self.palette.yellow(&format!("? {}", harmless_line(&what))),
            Note::Other(what) => self.palette.dim(&format!("* {}", harmless_line(&what))),
        };
        text.push_str(&line);
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn show(events: &[Value]) -> String {
        let palette = Palette::plain();
        let mut shown = Shown { steps: Steps::new(palette), notes: Notes::default(), palette };
        let text: String = events.iter().map(|event| shown.event(event)).collect();
        text + shown.steps.end_line()
    }

    fn prompt(text: &str) -> Value {
        json!({ "method": "_agentos/prompt", "params": { "content": [{ "type": "text", "text": text }] } })
    }

    fn said(text: &str) -> Value {
        json!({ "method": "session/update", "params": { "update": {
            "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } } } })
    }

    #[test]
    fn a_conversation_reads_as_one() {
        let failed = json!({ "method": "_agentos/turn_end", "params": { "error": { "message": "the model said 429" } } });
        let shown = show(&[prompt("Hello\n"), said("Hi, "), said("you."), prompt("More"), failed]);
        assert_eq!(shown, "\nyou: Hello\nHi, you.\n\nyou: More\nthe turn failed: the model said 429\n");
    }

    #[test]
    fn nothing_in_a_transcript_controls_the_terminal() {
        let evil = "\x1b]0;x\x07\u{9b}31m\u{202e}\r";
        let shown = show(&[
            prompt(evil),
            said(evil),
            json!({ "method": "_agentos/turn_end", "params": { "error": { "message": evil } } }),
            json!({ "method": "_agentos/turn_end", "params": { "stopReason": evil } }),
            json!({ "method": "_agentos/permission_rejected", "params": { "description": evil, "reason": evil } }),
            json!({ "method": "_agentos/other", "params": { "x": evil } }),
            json!({ "method": format!("_agentos/{evil}") }),
        ]);
        let bad = |c: char| (c.is_control() && c != '\n') || ('\u{200b}'..='\u{202e}').contains(&c);
        assert!(!shown.contains(bad), "{shown:?}");
    }
}
