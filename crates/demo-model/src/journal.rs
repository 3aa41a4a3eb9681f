//! What was asked and what was decided: evidence for tests that an agent itself made the call.
//!
//! The last requests are kept in memory, bounded in number and bytes; with a log file every request is one JSON line,
//! written and flushed before its answer begins, so that whoever has the answer can read the line. Headers are not
//! recorded except the user agent: they carry keys.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::conversation::{Answer, Arguments, Content, Conversation, Reply, ToolInput};

const KEPT_ENTRIES: usize = 256;
const KEPT_BYTES: usize = 16 << 20;

/// A request body above this is recorded by its size alone.
const RECORDED_BODY_BYTES: usize = 4 << 20;
const _: () = assert!(RECORDED_BODY_BYTES * 2 < KEPT_BYTES, "a large request must not empty the memory");

#[derive(Debug)]
pub(crate) struct Journal {
    /// Held only to push or copy lines, never over an await.
    kept: Mutex<Kept>,
    file: Option<tokio::sync::Mutex<File>>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

/// What is recorded of one request.
pub(crate) struct Entry<'a> {
    pub(crate) at_ms: u64,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) wire: Option<&'static str>,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) conversation: Option<&'a Conversation>,
    pub(crate) body: Option<&'a Value>,
    pub(crate) body_bytes: usize,
    pub(crate) decision: Value,
}

impl Journal {
    pub(crate) async fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = match path {
            Some(path) => {
                Some(tokio::sync::Mutex::new(File::options().create(true).append(true).open(path).await?))
            }
            None => None,
        };
        Ok(Self { kept: Mutex::default(), file })
    }

    pub(crate) async fn record(&self, entry: &Entry<'_>) -> io::Result<()> {
        let line = entry.to_json().to_string();
        if let Some(file) = &self.file {
            let mut file = file.lock().await;
            file.write_all(format!("{line}\n").as_bytes()).await?;
            file.flush().await?;
        }
        self.keep(line);
        Ok(())
    }

    /// The requests in memory, oldest first: `{"requests": [...]}`.
    pub(crate) fn recent(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut text = String::with_capacity(kept.bytes + kept.lines.len() + 16);
        text.push_str("{\"requests\":[");
        for (i, line) in kept.lines.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            text.push_str(line);
        }
        text.push_str("]}");
        text
    }

    fn keep(&self, line: String) {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.lines.len() > KEPT_ENTRIES || kept.bytes > KEPT_BYTES {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
        }
    }
}

impl Entry<'_> {
    fn to_json(&self) -> Value {
        let body = match self.body {
            Some(body) if self.body_bytes <= RECORDED_BODY_BYTES => body.clone(),
            Some(_) => json!({ "omitted_bytes": self.body_bytes }),
            None => Value::Null,
        };
        let recorded = self.conversation.filter(|_| self.body_bytes <= RECORDED_BODY_BYTES);
        json!({
            "at_ms": self.at_ms,
            "method": self.method,
            "path": self.path,
            "wire": self.wire,
            "user_agent": self.user_agent,
            "system": recorded.map(|c| c.system.as_str()),
            "tools": recorded.map(tools),
            "messages": self.conversation.map(|c| c.turns.len()),
            "body": body,
            "decision": self.decision
        })
    }
}

fn tools(conversation: &Conversation) -> Vec<Value> {
    let one = |tool: &crate::conversation::Tool| {
        let schema = match &tool.input {
            ToolInput::Schema(schema) => schema.clone(),
            ToolInput::Text => json!("text"),
        };
        json!({"name": tool.name, "namespace": tool.namespace, "schema": schema})
    };
    conversation.tools.iter().map(one).collect()
}

/// A reply as the log shows it.
pub(crate) fn decision(reply: &Reply) -> Value {
    match reply {
        Reply::Status { code, message } => json!({"kind": "status", "code": code, "message": message}),
        Reply::Hang => json!({"kind": "hang"}),
        Reply::Passing { times, fault, .. } => {
            json!({"kind": "passing", "times": times, "fault": self::decision(fault)})
        }
        Reply::Answer(answer) => answered(answer),
    }
}

fn answered(answer: &Answer) -> Value {
    let mut decision = match &answer.content {
        Content::Text(text) => json!({"kind": "text", "text": text}),
        Content::Call(call) => {
            let arguments = match &call.arguments {
                Arguments::Object(map) => Value::Object(map.clone()),
                Arguments::Text(text) => json!(text),
            };
            json!({"kind": "call", "tool": call.name, "arguments": arguments})
        }
    };
    if let Some(spread) = answer.spread {
        decision["slow_ms"] = json!(u64::try_from(spread.as_millis()).unwrap_or(u64::MAX));
    }
    if answer.cut {
        decision["drop"] = json!(true);
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn filled(entries: usize, body: &Value, body_bytes: usize) -> Value {
        let journal = Journal::open(None).await.unwrap();
        for at_ms in 0..entries {
            let entry = Entry {
                at_ms: u64::try_from(at_ms).unwrap(),
                method: "POST",
                path: "/",
                wire: None,
                user_agent: None,
                conversation: None,
                body: Some(body),
                body_bytes,
                decision: Value::Null,
            };
            journal.record(&entry).await.unwrap();
        }
        assert!(journal.recent().len() <= KEPT_BYTES + 2 * KEPT_ENTRIES);
        serde_json::from_str(&journal.recent()).unwrap()
    }

    #[tokio::test]
    async fn the_memory_keeps_the_last_and_stays_bounded() {
        let recent = filled(KEPT_ENTRIES + 3, &json!({}), 2).await;
        let requests = recent["requests"].as_array().unwrap();
        assert_eq!((requests.len(), &requests[0]["at_ms"]), (KEPT_ENTRIES, &json!(3)));

        let large = json!("x".repeat(RECORDED_BODY_BYTES - 2));
        let recent = filled(8, &large, RECORDED_BODY_BYTES).await;
        let requests = recent["requests"].as_array().unwrap();
        assert!((1..8).contains(&requests.len()) && requests[requests.len() - 1]["at_ms"] == 7);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_recorded_by_its_size() {
        let recent = filled(1, &json!({}), RECORDED_BODY_BYTES + 1).await;
        assert_eq!(recent["requests"][0]["body"], json!({ "omitted_bytes": RECORDED_BODY_BYTES + 1 }));
    }
}
