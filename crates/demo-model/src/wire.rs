//! The dialects agents speak, one file each: parse a request, encode a reply.
//!
//! ```text
//!  bytes ── parse ──► Conversation ── script ──► Reply ── encode ──► JSON, or server-sent events
//! ```
//!
//! Parsing takes a JSON object that came from anywhere and answers with a [`BadRequest`] that names the field. Unknown
//! fields, block types and roles that carry no words are passed over: agents are ahead of any list of ours.

pub(crate) mod anthropic;
pub(crate) mod chat;
pub(crate) mod gemini;
pub(crate) mod responses;

use serde_json::{Value, json};

use crate::conversation::{Answer, Conversation};

/// The one model this server has.
pub const MODEL: &str = "agentos-demo";

/// One of the dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Anthropic Messages.
    Anthropic,
    /// OpenAI Chat Completions.
    Chat,
    /// OpenAI Responses.
    Responses,
    /// Gemini generateContent.
    Gemini,
}

/// Why a request can't be understood.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    #[error("the body is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("the body is not a JSON object")]
    NotObject,
    #[error("{field}: expected {expected}")]
    Field { field: &'static str, expected: &'static str },
}

/// What an answer needs beside its content, so that encoding stays pure.
#[derive(Debug, Clone)]
pub struct Meta {
    /// Unique over the life of the machine: ids of messages and calls are made from it.
    pub id: String,
    /// Seconds since the epoch.
    pub created: u64,
    /// A rough count of the request's tokens.
    pub input_tokens: u64,
    /// The client wants a last chunk with the usage (Chat Completions).
    pub include_usage: bool,
}

/// One piece of a streamed answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: Option<&'static str>,
    pub data: Data,
    /// It carries words or arguments: a slow answer waits between these.
    pub paced: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    Json(Value),
    /// `[DONE]`, the end of a Chat Completions stream.
    Done,
}

impl Event {
    fn json(name: Option<&'static str>, value: Value) -> Self {
        Self { name, data: Data::Json(value), paced: false }
    }

    fn paced(name: Option<&'static str>, value: Value) -> Self {
        Self { name, data: Data::Json(value), paced: true }
    }

    /// The bytes of a server-sent event.
    pub fn to_sse(&self) -> String {
        let name = self.name.map(|name| format!("event: {name}\n")).unwrap_or_default();
        match &self.data {
            Data::Json(value) => format!("{name}data: {value}\n\n"),
            Data::Done => format!("{name}data: [DONE]\n\n"),
        }
    }
}

impl Wire {
    pub fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Gemini => "gemini",
        }
    }

    pub fn parse(self, body: &Value) -> Result<Conversation, BadRequest> {
        if !body.is_object() {
            return Err(BadRequest::NotObject);
        }
        match self {
            Self::Anthropic => anthropic::parse(body),
            Self::Chat => chat::parse(body),
            Self::Responses => responses::parse(body),
            Self::Gemini => gemini::parse(body),
        }
    }

    /// The answer in one piece.
    pub fn whole(self, answer: &Answer, meta: &Meta) -> Value {
        match self {
            Self::Anthropic => anthropic::whole(answer, meta),
            Self::Chat => chat::whole(answer, meta),
            Self::Responses => responses::whole(answer, meta),
            Self::Gemini => gemini::whole(answer, meta),
        }
    }

    /// The answer as a stream of events.
    pub fn events(self, answer: &Answer, meta: &Meta) -> Vec<Event> {
        match self {
            Self::Anthropic => anthropic::events(answer, meta),
            Self::Chat => chat::events(answer, meta),
            Self::Responses => responses::events(answer, meta),
            Self::Gemini => gemini::events(answer, meta),
        }
    }

    /// An error in the shape this dialect's clients read.
    pub fn error(self, status: u16, message: &str) -> Value {
        match self {
            Self::Anthropic => anthropic::error(status, message),
            Self::Chat | Self::Responses => openai_error(status, message),
            Self::Gemini => gemini::error(status, message),
        }
    }
}

fn openai_error(status: u16, message: &str) -> Value {
    let (kind, code) = match status {
        400 | 413 | 422 => ("invalid_request_error", Value::Null),
        401 => ("invalid_request_error", json!("invalid_api_key")),
        403 => ("invalid_request_error", json!("permission_denied")),
        404 => ("invalid_request_error", json!("not_found")),
        429 => ("rate_limit_error", json!("rate_limit_exceeded")),
        _ => ("server_error", Value::Null),
    };
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

/// A text in pieces as a model streams it: some tokens each, never more than about a hundred pieces.
fn pieces(text: &str) -> Vec<&str> {
    const SMALLEST: usize = 12;
    const MOST: usize = 96;
    let size = (text.len() / MOST).max(SMALLEST);
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > size {
        let mut cut = size;
        while !rest.is_char_boundary(cut) {
            cut += 1;
        }
        let (piece, after) = rest.split_at(cut);
        pieces.push(piece);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// Rough, as clients only show it: four bytes make a token.
pub(crate) fn tokens(bytes: usize) -> u64 {
    u64::try_from(bytes / 4).unwrap_or(u64::MAX).max(1)
}

fn array<'a>(
    body: &'a Value,
    field: &'static str,
    expected: &'static str,
) -> Result<&'a [Value], BadRequest> {
    body[field].as_array().map(Vec::as_slice).ok_or(BadRequest::Field { field, expected })
}

/// An optional list; absent and null are the same.
fn optional_array<'a>(body: &'a Value, field: &'static str) -> Result<&'a [Value], BadRequest> {
    match &body[field] {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        _ => Err(BadRequest::Field { field, expected: "a list" }),
    }
}

/// The texts of a string, a block or a list of blocks (`{text}` in every dialect).
fn texts(content: &Value) -> Vec<String> {
    match content {
        Value::String(text) => vec![text.clone()],
        Value::Array(blocks) => blocks.iter().flat_map(texts).collect(),
        Value::Object(block) => {
            block.get("text").and_then(Value::as_str).map(str::to_owned).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The schema of an answer that must be JSON: without one, any object will do.
fn object_schema(schema: &Value) -> Value {
    if schema.is_object() { schema.clone() } else { json!({"type": "object"}) }
}

/// Adds a paragraph to the system text.
fn add_system(system: &mut String, texts: &[String]) {
    for text in texts {
        if !system.is_empty() {
            system.push_str("\n\n");
        }
        system.push_str(text);
    }
}

/// Arguments that a wire carries as JSON text.
fn json_text(text: &Value) -> Value {
    let text = text.as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
