//! The one shape every wire is parsed into and the script decides on.
//!
//! A wire file turns a request into a [`Conversation`] and a [`Reply`] into that wire's bytes. The script between them
//! sees neither JSON dialects nor HTTP, so that one rule drives every agent.

use std::time::Duration;

use serde_json::{Map, Value};

/// A request as the script sees it: who the agent says it is, what it offers, what was said so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Everything the agent said as system, developer or instruction text, in order.
    pub system: String,
    pub tools: Vec<Tool>,
    /// The answer must be JSON of this schema, as agents ask when they classify a prompt for themselves.
    pub json_schema: Option<Value>,
    pub turns: Vec<Turn>,
}

/// One tool the agent offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// The group the Responses wire puts the tools of one MCP server in; a call must repeat it.
    pub namespace: Option<String>,
    pub input: ToolInput,
}

/// What a tool takes.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolInput {
    /// A JSON object of this schema; `Null` where the agent gave none.
    Schema(Value),
    /// Free text (the Responses wire's custom tools).
    Text,
}

/// One turn, in the order of the request.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// The text blocks of one user message. Agents put context of their own beside the prompt.
    User(Vec<String>),
    Assistant {
        text: String,
        calls: Vec<Call>,
    },
    Results(Vec<ToolResult>),
}

/// A call the assistant made earlier.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub arguments: Value,
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolResult {
    /// The id of the call; empty on the Gemini wire of older clients, which match by name.
    pub call_id: String,
    /// The tool's name where the wire repeats it.
    pub name: Option<String>,
    pub text: String,
    /// Whether the wire itself marks the result as failed; most wires can't say.
    pub failed: bool,
}

/// What the script decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Answer(Answer),
    /// An HTTP error in the wire's own error shape.
    Status {
        code: u16,
        message: String,
    },
    /// Not one byte, until the client gives up.
    Hang,
    /// A fault that passes: so often for this prompt, and the answer after that.
    Passing {
        prompt: String,
        times: u32,
        fault: Box<Reply>,
        answer: Answer,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub content: Content,
    /// The answer is spread over this long, piece by piece.
    pub spread: Option<Duration>,
    /// The connection is cut in the middle of the answer.
    pub cut: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Text(String),
    Call(ToolCall),
}

/// A call of an offered tool, ready to be encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    pub name: String,
    pub namespace: Option<String>,
    pub arguments: Arguments,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Arguments {
    Object(Map<String, Value>),
    Text(String),
}

impl Answer {
    pub fn text(text: impl Into<String>) -> Self {
        Self { content: Content::Text(text.into()), spread: None, cut: false }
    }

    pub fn call(call: ToolCall) -> Self {
        Self { content: Content::Call(call), spread: None, cut: false }
    }
}

impl Arguments {
    /// The text a wire carries: the JSON of an object, free text as it is.
    pub fn to_wire(&self) -> String {
        match self {
            Self::Object(map) => serde_json::to_string(map).unwrap_or_default(),
            Self::Text(text) => text.clone(),
        }
    }

    /// The value a wire carries that takes objects only.
    pub fn to_object(&self) -> Value {
        match self {
            Self::Object(map) => Value::Object(map.clone()),
            Self::Text(text) => serde_json::json!({ "input": text }),
        }
    }
}
