//! Events of our own that every session has, and what the transcript reads out of events.
//!
//! ACP has no notification for what the user says and none for how a turn ends. Without them a transcript would be half
//! a conversation, so both are events: `_agentos/prompt` before the agent sees the prompt, `_agentos/turn_end` after
//! the last event of the turn.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::wire::acp;

/// The user has asked for something: `{content}`, ACP's blocks.
pub const PROMPT: &str = "_agentos/prompt";
/// A turn is over: `{stopReason}` or `{error}`.
pub const TURN_END: &str = "_agentos/turn_end";

/// A title is for a line in a list.
const MAX_TITLE_CHARS: usize = 80;

/// The event of a prompt.
#[must_use]
pub fn prompt(content: &[Value]) -> String {
    acp::notification(PROMPT, &json!({ "content": content }))
}

/// The event of a turn that ended: its stop reason, or why it failed.
#[must_use]
pub fn turn_end(outcome: Result<&str, &str>) -> String {
    let params = match outcome {
        Ok(stop_reason) => json!({ "stopReason": stop_reason }),
        Err(error) => json!({ "error": error }),
    };
    acp::notification(TURN_END, &params)
}

/// What an event says the session is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Title {
    /// The agent's own words: they win.
    Agent(String),
    /// The beginning of a prompt: the first one counts.
    Prompt(String),
}

/// The title in an event. Almost no event has one, so that most are not parsed for it.
pub(super) fn title(notification: &str) -> Option<Title> {
    #[derive(Deserialize)]
    struct Notification {
        method: String,
        #[serde(default)]
        params: Value,
    }
    if !notification.contains("session_info_update") && !notification.contains(PROMPT) {
        return None;
    }
    let Notification { method, params } = serde_json::from_str(notification).ok()?;
    if method == PROMPT {
        let texts = params["content"].as_array()?.iter().filter_map(|block| block["text"].as_str());
        return texts.filter_map(one_line).map(Title::Prompt).next();
    }
    let update = &params["update"];
    let names = method == "session/update" && update["sessionUpdate"] == "session_info_update";
    names.then(|| one_line(update["title"].as_str()?)).flatten().map(Title::Agent)
}

/// The first line that says anything, its spaces single.
fn one_line(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    let mut title = String::new();
    for word in line.split_whitespace() {
        if !title.is_empty() {
            title.push(' ');
        }
        title.push_str(word);
        if title.len() > MAX_TITLE_CHARS * 4 {
            break;
        }
    }
    if let Some((cut, _)) = title.char_indices().nth(MAX_TITLE_CHARS) {
        title.truncate(cut);
        title.push('…');
    }
    Some(title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        json!({ "type": "text", "text": text })
    }

    #[test]
    fn a_prompt_names_its_session_by_its_first_line() {
        let named = |content: &[Value]| title(&prompt(content));
        let image = json!({ "type": "image", "data": "x" });
        let content = [image.clone(), text("\n  Fix   the\ttest \nplease")];
        assert_eq!(named(&content), Some(Title::Prompt("Fix the test".into())));
        assert_eq!(named(&[image]), None);
        assert_eq!(named(&[text(" \n ")]), None);
        let Some(Title::Prompt(long)) = named(&[text(&"ü".repeat(5000))]) else { panic!() };
        assert_eq!(long.chars().count(), MAX_TITLE_CHARS + 1);
    }

    #[test]
    fn an_agent_names_its_session_and_nothing_else_does() {
        let update = |update: Value| acp::session_update("s", &update);
        let info = json!({ "sessionUpdate": "session_info_update", "title": "Tests" });
        assert_eq!(title(&update(info)), Some(Title::Agent("Tests".into())));
        let unnamed = json!({ "sessionUpdate": "session_info_update", "title": null });
        assert_eq!(title(&update(unnamed)), None);
        let said = json!({ "sessionUpdate": "agent_message_chunk", "content": text("session_info_update _agentos/prompt"),
            "title": "x" });
        assert_eq!(title(&update(said)), None);
        assert_eq!(title("session_info_update, not JSON"), None);
    }

    #[test]
    fn a_turn_ends_with_a_reason_or_an_error() {
        let read = |event: String| serde_json::from_str::<Value>(&event).unwrap();
        assert_eq!(read(turn_end(Ok("end_turn")))["params"], json!({ "stopReason": "end_turn" }));
        assert_eq!(read(turn_end(Err("no key")))["params"], json!({ "error": "no key" }));
    }
}
