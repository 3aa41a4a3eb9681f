//! The shapes of the Agent Client Protocol, version 1, that sessions speak outwards.
//!
//! Field names are the protocol's (<https://agentclientprotocol.com>). Only what translators need is here; an agent
//! that speaks ACP by itself is passed through as it is.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::message::RpcError;

/// The protocol's version.
pub const PROTOCOL_VERSION: u16 = 1;
/// In the `_meta` of an answer to a prompt: the agent has dealt with it without its model, so that there is no text.
pub const HANDLED: &str = "agentos/handled";
/// ACP's code for an agent that wants its user to log in first.
pub const AUTH_REQUIRED: i64 = -32000;
/// JSON-RPC's code for a request that can't be served as things are.
pub const INVALID_REQUEST: i64 = -32600;
/// JSON-RPC's code for a method that the other side doesn't have.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// JSON-RPC's code for parameters that make no sense.
pub const INVALID_PARAMS: i64 = -32602;
/// JSON-RPC's code for a failure inside the other side.
pub const INTERNAL_ERROR: i64 = -32603;

/// Where a tool call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolStatus {
    /// Its arguments are being written.
    Pending,
    /// It runs.
    InProgress,
    /// It ended well.
    Completed,
    /// It ended badly.
    Failed,
}

/// What kind of thing a tool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolKind {
    /// Reads files or data.
    Read,
    /// Changes files.
    Edit,
    /// Looks for something.
    Search,
    /// Runs a command.
    Execute,
    /// Fetches from the network.
    Fetch,
    /// Anything else.
    Other,
}

/// A place in a file that a tool call touches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Location {
    /// An absolute path.
    pub path: String,
    /// A line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

/// One `tool_call` or `tool_call_update`; absent fields keep what was said before.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolUpdate<'a> {
    /// `tool_call` or `tool_call_update`.
    pub session_update: &'static str,
    /// The call.
    pub tool_call_id: &'a str,
    /// What it does, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ToolKind>,
    /// Where it stands.
    pub status: ToolStatus,
    /// What it shows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub content: Vec<Value>,
    /// The files it touches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<Location>,
    /// Its arguments as the model gave them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_input: Option<&'a RawValue>,
    /// Its result as the tool gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_output: Option<&'a RawValue>,
}

impl<'a> ToolUpdate<'a> {
    /// An update that only says where the call stands.
    #[must_use]
    pub fn status(tool_call_id: &'a str, status: ToolStatus) -> Self {
        Self {
            session_update: "tool_call_update",
            tool_call_id,
            title: None,
            kind: None,
            status,
            content: Vec::new(),
            locations: Vec::new(),
            raw_input: None,
            raw_output: None,
        }
    }
}

/// A piece of the agent's text or thought.
#[must_use]
pub fn chunk(kind: &'static str, text: &str) -> Value {
    json!({ "sessionUpdate": kind, "content": { "type": "text", "text": text } })
}

/// Text as a tool call's content.
#[must_use]
pub fn tool_text(text: &str) -> Value {
    json!({ "type": "content", "content": { "type": "text", "text": text } })
}

/// A change of a file as a tool call's content.
#[must_use]
pub fn tool_diff(path: &str, old_text: Option<&str>, new_text: &str) -> Value {
    json!({ "type": "diff", "path": path, "oldText": old_text, "newText": new_text })
}

/// A JSON-RPC notification as text.
#[must_use]
pub fn notification(method: &str, params: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Notification<'a, P> {
        jsonrpc: &'static str,
        method: &'a str,
        params: &'a P,
    }
    // Fails for maps whose keys aren't strings alone, which no caller has.
    serde_json::to_string(&Notification { jsonrpc: "2.0", method, params }).unwrap_or_default()
}

/// A `session/update` notification as text.
#[must_use]
pub fn session_update(session_id: &str, update: &impl Serialize) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a, U> {
        session_id: &'a str,
        update: &'a U,
    }
    notification("session/update", &Params { session_id, update })
}

/// A JSON-RPC response with a result.
#[must_use]
pub fn response(id: u64, result: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

/// A JSON-RPC response with an error.
#[must_use]
pub fn error_response(id: u64, error: &RpcError) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": error.to_json() })
}
