//! The events that are not the agent's words: what the user said, how turns ended, what was permitted.

use serde_json::Value;

const OURS: &str = "_agentos/";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Note {
    Prompt(String),
    TurnFailed(String),
    /// A turn that ended otherwise than usual.
    TurnEnded(String),
    /// A request for permission, or the answer to one.
    Permission(String),
    /// Any other event of our own.
    Other(String),
}

/// Reads the notes of one transcript, in order.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Whether prompts are events of their own, as they are since transcripts keep them: what an agent repeats of them
    /// is then not told again.
    has_prompts: bool,
}

impl Notes {
    /// The note that an event is. Nothing in it is harmless yet.
    pub(super) fn read(&mut self, notification: &Value) -> Option<Note> {
        let method = notification["method"].as_str()?;
        let params = &notification["params"];
        if method == "session/update" {
            let update = &params["update"];
            let repeated = update["sessionUpdate"] == "user_message_chunk" && !self.has_prompts;
            return repeated.then(|| Note::Prompt(block(&update["content"])));
        }
        match method.strip_prefix(OURS)? {
            // The head of what is shown says so.
            "model" => None,
            "prompt" => {
                self.has_prompts = true;
                let blocks: Vec<String> = params["content"].as_array()?.iter().map(block).collect();
                Some(Note::Prompt(blocks.join("\n")))
            }
            "turn_end" => match (params["error"]["message"].as_str(), params["stopReason"].as_str()) {
                (Some(error), _) => Some(Note::TurnFailed(error.to_owned())),
                (None, Some("end_turn") | None) => None,
                (None, Some(reason)) => Some(Note::TurnEnded(reason.to_owned())),
            },
            name if name.starts_with("permission_") => Some(Note::Permission(permission(name, params))),
            name if params.is_null() => Some(Note::Other(name.to_owned())),
            name => Some(Note::Other(format!("{name} {params}"))),
        }
    }
}

/// A block of a prompt, as text.
fn block(block: &Value) -> String {
    let kind = block["type"].as_str().unwrap_or("unknown");
    match (kind, block["text"].as_str()) {
        ("text", Some(text)) => text.to_owned(),
        _ => {
            let uri = block["uri"].as_str().or_else(|| block["resource"]["uri"].as_str());
            uri.map_or_else(|| format!("[{kind}]"), |uri| format!("[{kind} {uri}]"))
        }
    }
}

/// What was asked, and what became of it.
fn permission(name: &str, params: &Value) -> String {
    let texts = |names: [&str; 3]| names.into_iter().find_map(|name| params[name].as_str());
    let mut text = name.replace('_', " ");
    let asked = texts(["description", "title", "permissionId"]);
    let asked = params["params"]["toolCall"]["title"].as_str().or(asked);
    if let Some(asked) = asked {
        text.push_str(": ");
        text.push_str(asked);
    }
    if let Some(answer) = texts(["reply", "outcome", "reason"]) {
        let by = params["by"].as_str().map(|by| format!(", by {by}")).unwrap_or_default();
        text.push_str(&format!(" ({answer}{by})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn note(method: &str, params: Value) -> Option<Note> {
        Notes::default().read(&json!({ "method": method, "params": params }))
    }

    #[test]
    fn a_prompt_is_its_text_and_names_what_is_no_text() {
        let content = json!([{ "type": "text", "text": "Look:" }, { "type": "image", "data": "x" },
            { "type": "resource_link", "uri": "file:///a" }, { "type": "resource", "resource": { "uri": "b" } }, 7]);
        let text = "Look:\n[image]\n[resource_link file:///a]\n[resource b]\n[unknown]";
        assert_eq!(note("_agentos/prompt", json!({ "content": content })), Some(Note::Prompt(text.into())));
    }

    #[test]
    fn what_an_agent_repeats_of_the_user_is_told_only_where_nothing_else_is() {
        let mut notes = Notes::default();
        let repeated = json!({ "method": "session/update", "params": { "update": {
            "sessionUpdate": "user_message_chunk", "content": { "type": "text", "text": "hi" } } } });
        assert_eq!(notes.read(&repeated), Some(Note::Prompt("hi".into())));
        let prompt = json!({ "method": "_agentos/prompt", "params": { "content": [] } });
        assert_eq!(notes.read(&prompt), Some(Note::Prompt(String::new())));
        assert_eq!(notes.read(&repeated), None);
    }

    #[test]
    fn turns_that_end_well_need_no_word() {
        assert_eq!(note("_agentos/turn_end", json!({ "stopReason": "end_turn" })), None);
        let cancelled = note("_agentos/turn_end", json!({ "stopReason": "cancelled" }));
        assert_eq!(cancelled, Some(Note::TurnEnded("cancelled".into())));
        let failed = note("_agentos/turn_end", json!({ "error": { "kind": "model", "message": "429" } }));
        assert_eq!(failed, Some(Note::TurnFailed("429".into())));
    }

    #[test]
    fn permissions_say_what_was_asked_and_what_became_of_it() {
        let rejected =
            json!({ "permissionId": "p1", "description": "rm -r /", "reason": "no one can answer" });
        let text = "permission rejected: rm -r / (no one can answer)";
        assert_eq!(note("_agentos/permission_rejected", rejected), Some(Note::Permission(text.into())));
        let resolved = json!({ "permissionId": "p1", "description": "ls", "reply": "once", "by": "handler" });
        let text = "permission resolved: ls (once, by handler)";
        assert_eq!(note("_agentos/permission_resolved", resolved), Some(Note::Permission(text.into())));
        let asked = json!({ "permissionId": "p1", "params": { "toolCall": { "title": "bash: ls" } } });
        let text = "permission request: bash: ls";
        assert_eq!(note("_agentos/permission_request", asked), Some(Note::Permission(text.into())));
    }

    #[test]
    fn other_events_of_ours_are_told_as_they_are() {
        assert_eq!(note("_agentos/model", json!({ "kind": "demo" })), None);
        let full = note("_agentos/transcript_full", json!({ "limitBytes": 1 }));
        assert_eq!(full, Some(Note::Other("transcript_full {\"limitBytes\":1}".into())));
        assert_eq!(note("_auth/status_update", json!({})), None);
        assert_eq!(Notes::default().read(&json!([1])), None);
    }
}
