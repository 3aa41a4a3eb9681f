//! A transcript as text for an agent that remembers nothing of it.
//!
//! Only what was said and which tools ran: thoughts and results of tools would fill any model's window. Of a long
//! conversation the end is told, and that something is missing before it.
//!
//! An agent may speak of other sessions of its own, whose talk is none of this one's. By which ids it has known this one
//! is what is kept of the session, for its last life, and what the event of each restoration says for the life before.

use std::collections::HashSet;

use serde_json::Value;

use super::{EventFilter, PROMPT, RESTORED, TranscriptError, Transcripts, is_worth_reading};

/// What an agent is told at most; some twenty thousand words.
const MAX_BYTES: usize = 128 << 10;
/// Events read at once.
const PAGE: usize = 512;

/// Who spoke last, so that the pieces of one text are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Nobody,
    User,
    Agent,
    Tool,
}

#[derive(Debug)]
struct Conversation {
    text: String,
    speaker: Speaker,
    cut: bool,
    /// The agent's ids of the session; where one is unknown, any may be its own.
    own: Option<HashSet<String>>,
}

impl Conversation {
    fn new(own: Option<HashSet<String>>) -> Self {
        Self { text: String::new(), speaker: Speaker::Nobody, cut: false, own }
    }

    fn say(&mut self, speaker: Speaker, text: &str) {
        let goes_on = speaker == Speaker::Agent && self.speaker == speaker;
        if !goes_on {
            let name = match speaker {
                Speaker::User => "User: ",
                Speaker::Agent => "You: ",
                Speaker::Tool => "You used a tool: ",
                Speaker::Nobody => "",
            };
            let end = if self.text.is_empty() { "" } else { "\n\n" };
            self.text.push_str(end);
            self.text.push_str(name);
        }
        self.speaker = speaker;
        self.text.push_str(text);
        // Twice the bound before it is cut, so that not every piece moves all of it.
        if self.text.len() > 2 * MAX_BYTES {
            self.cut_to(MAX_BYTES);
        }
    }

    fn cut_to(&mut self, bytes: usize) {
        if self.text.len() > bytes {
            let from = (self.text.len() - bytes..).find(|at| self.text.is_char_boundary(*at));
            self.text.drain(..from.unwrap_or(0));
            self.cut = true;
        }
    }

    /// Takes in one event.
    fn hear(&mut self, event: &Value) {
        let named = event["params"]["sessionId"].as_str();
        if let (Some(own), Some(id)) = (&self.own, named)
            && !own.contains(id)
        {
            return;
        }
        let update = &event["params"]["update"];
        match (event["method"].as_str(), update["sessionUpdate"].as_str()) {
            (Some(PROMPT), _) => {
                let blocks = event["params"]["content"].as_array().into_iter().flatten();
                let texts = blocks.map(|block| block["text"].as_str().or_else(|| block["uri"].as_str()));
                let texts: Vec<&str> = texts.map(|text| text.unwrap_or("(an attachment)")).collect();
                self.say(Speaker::User, &texts.join("\n"));
            }
            (Some("session/update"), Some("agent_message_chunk")) => {
                if let Some(text) = update["content"]["text"].as_str() {
                    self.say(Speaker::Agent, text);
                }
            }
            (Some("session/update"), Some("tool_call")) => {
                self.say(Speaker::Tool, update["title"].as_str().unwrap_or("without a title"));
            }
            _ => {}
        }
    }
}

/// The ids by which the agent has known the session since this event, where `last` is the last one; `None` where it is
/// not known of every life.
async fn own_ids(
    transcripts: &Transcripts,
    session: &str,
    since: u64,
    last: Option<&str>,
) -> Result<Option<HashSet<String>>, TranscriptError> {
    let Some(last) = last else { return Ok(None) };
    let mut ids = HashSet::from([last.to_owned()]);
    let mut next = Some(since);
    while let Some(since) = next {
        let filter = EventFilter { since, limit: PAGE, method: Some(RESTORED.to_owned()) };
        let page = transcripts.page(session, filter).await?;
        for event in &page.events {
            let restored: Value = serde_json::from_str(&event.notification).unwrap_or_default();
            match restored["params"]["formerAgentSessionId"].as_str() {
                Some(id) => ids.insert(id.to_owned()),
                None => return Ok(None),
            };
        }
        next = page.next;
    }
    Ok(Some(ids))
}

/// What a session's events from this number on say, as an agent may be told that knew the session by `last`; `None` where
/// they say nothing.
pub(crate) async fn of(
    transcripts: &Transcripts,
    session: &str,
    since: u64,
    last: Option<&str>,
) -> Result<Option<String>, TranscriptError> {
    let mut conversation = Conversation::new(own_ids(transcripts, session, since, last).await?);
    let mut next = Some(since);
    while let Some(since) = next {
        let page = transcripts.page(session, EventFilter { since, limit: PAGE, method: None }).await?;
        for event in &page.events {
            // Ours are JSON, and an agent's were when they were kept.
            if is_worth_reading(&event.notification)
                && let Ok(event) = serde_json::from_str(&event.notification)
            {
                conversation.hear(&event);
            }
        }
        next = page.next;
    }
    conversation.cut_to(MAX_BYTES);
    if conversation.text.is_empty() {
        return Ok(None);
    }
    let cut = if conversation.cut { "(the beginning is left out)\n" } else { "" };
    Ok(Some(format!(
        "This conversation was interrupted and goes on now. What was said in it before, as far as you may not remember it:\n\
         <transcript>\n{cut}{}\n</transcript>",
        conversation.text
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(events: &[Value]) -> Conversation {
        let mut conversation = Conversation::new(Some(HashSet::from(["s".to_owned()])));
        events.iter().for_each(|event| conversation.hear(event));
        conversation
    }

    fn update(update: Value) -> Value {
        json!({ "method": "session/update", "params": { "update": update } })
    }

    #[test]
    fn a_conversation_is_what_was_said_and_which_tools_ran() {
        let chunk = |text: &str| {
            update(json!({ "sessionUpdate": "agent_message_chunk", "content": { "text": text } }))
        };
        let conversation = told(&[
            json!({ "method": PROMPT, "params": { "content": [{ "type": "text", "text": "Hi" }, { "type": "image" }] } }),
            chunk("Hel"),
            chunk("lo"),
            update(json!({ "sessionUpdate": "tool_call", "title": "ls" })),
            update(json!({ "sessionUpdate": "tool_call_update", "title": "ls -l" })),
            chunk("Done"),
            json!({ "method": "_agentos/turn_end" }),
            json!("odd"),
        ]);
        assert_eq!(
            conversation.text,
            "User: Hi\n(an attachment)\n\nYou: Hello\n\nYou used a tool: ls\n\nYou: Done"
        );
    }

    #[test]
    fn of_a_long_one_the_end_is_told() {
        let piece = "é".repeat(1000);
        let chunk = update(json!({ "sessionUpdate": "agent_message_chunk", "content": { "text": piece } }));
        let mut conversation = told(&vec![chunk; 500]);
        conversation.cut_to(MAX_BYTES);
        assert!(conversation.cut && conversation.text.len() <= MAX_BYTES);
    }
}
