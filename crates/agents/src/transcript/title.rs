//! What a session is about, read out of its events.

use serde::Deserialize;
use serde_json::Value;

use super::{PROMPT, is_worth_reading};

/// A title is for a line in a list.
const MAX_TITLE_CHARS: usize = 80;

/// What an event says the session is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Title {
    /// The agent's own words: they win.
    Agent(String),
    /// The beginning of a prompt: the first one counts.
    Prompt(String),
}

/// The title in an event. Almost no event has one, so that most are not parsed for it. What the agent says of a session
/// that it knows by another id than `own` is not about this one.
pub(super) fn of(notification: &str, own: Option<&str>) -> Option<Title> {
    #[derive(Deserialize)]
    struct Notification {
        method: String,
        #[serde(default)]
        params: Value,
    }
    if !notification.contains("session_info_update") && !notification.contains(PROMPT) {
        return None;
    }
    if !is_worth_reading(notification) {
        return None;
    }
    let Notification { method, params } = serde_json::from_str(notification).ok()?;
    if method == PROMPT {
        let texts = params["content"].as_array()?.iter().filter_map(|block| block["text"].as_str());
        return texts.filter_map(one_line).map(Title::Prompt).next();
    }
    let update = &params["update"];
    let other = own.is_some_and(|own| params["sessionId"].as_str().is_some_and(|id| id != own));
    let names = !other && method == "session/update" && update["sessionUpdate"] == "session_info_update";
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
    use serde_json::json;

    use super::*;
    use crate::wire::acp;

    fn title(notification: &str) -> Option<Title> {
        of(notification, Some("s"))
    }

    fn prompt(content: &[Value]) -> String {
        acp::notification(PROMPT, &json!({ "content": content }))
    }

    fn text(text: &str) -> Value {
        json!({ "type": "text", "text": text })
    }

    #[test]
    fn what_is_too_large_is_not_read_unless_the_user_said_it() {
        let large = "x".repeat(super::super::MAX_READ_BYTES);
        let image = json!({ "type": "image", "data": large });
        assert_eq!(title(&prompt(&[image, text("Look")])), Some(Title::Prompt("Look".into())));
        let update = json!({ "sessionUpdate": "session_info_update", "title": "mine", "more": large });
        assert_eq!(title(&acp::session_update("s", &update)), None);
        let forged = json!({ "content": [text("mine")], "more": large });
        assert_eq!(title(&acp::notification("_agent/_agentos/prompt", &forged)), None);
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
    fn the_name_of_another_session_is_not_this_ones() {
        let info = json!({ "sessionUpdate": "session_info_update", "title": "Tests" });
        let (theirs, nobodys) = (
            acp::session_update("t", &info),
            acp::notification("session/update", &json!({ "update": info })),
        );
        assert_eq!(title(&theirs), None);
        assert_eq!(title(&nobodys), Some(Title::Agent("Tests".into())), "an agent may have only one");
        assert_eq!(
            of(&theirs, None),
            Some(Title::Agent("Tests".into())),
            "nobody knows yet how it calls this one"
        );
    }
}
