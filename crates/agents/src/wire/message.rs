//! What an agent says, in ACP's terms, whatever its own wire is; and the JSON-RPC that carries it.
//!
//! An agent's line is looked into only as far as a session needs: unknown notifications, unknown kinds of updates and
//! fields that nobody knows stay in the text, which is kept as the agent wrote it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::acp;
use super::readable::readable;
use super::trouble::{self, Meta};

/// Answers and parameters larger than this are not taken apart: a megabyte of `[0,0,…` costs sixteen when it is.
pub(crate) const MAX_PARSED_BYTES: usize = 4 << 20;
/// The methods that only the host's own notifications have.
const RESERVED: &str = "_agentos/";

/// A JSON-RPC error, as the other side gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct RpcError {
    /// Its code.
    pub code: i64,
    /// Its message.
    pub message: String,
    /// What else it says.
    pub data: Value,
}

impl RpcError {
    /// An error of our own.
    #[must_use]
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: Value::Null }
    }

    /// The same with data.
    #[must_use]
    pub fn with_data(self, data: Value) -> Self {
        Self { data, ..self }
    }

    /// As JSON-RPC has it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.data {
            Value::Null => json!({ "code": self.code, "message": self.message }),
            data => json!({ "code": self.code, "message": self.message, "data": data }),
        }
    }

    fn read(error: &Value) -> Self {
        // Some errors are nothing but their message.
        let message = if error.is_string() { error } else { &error["message"] };
        let message = match message {
            Value::String(message) if !message.is_empty() => message.clone(),
            Value::Null | Value::String(_) => "no reason given".to_owned(),
            other => other.to_string(),
        };
        Self { code: error["code"].as_i64().unwrap_or_default(), message, data: error["data"].clone() }
    }
}

/// The message, and the details where the message alone says nothing: agents hide the reason of "Internal error" there.
impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let details = ["details", "message", "error"].iter().find_map(|name| self.data[*name].as_str());
        match details.or(self.data.as_str()) {
            Some(details) if !self.message.contains(details) => write!(f, ": {details}"),
            _ => Ok(()),
        }
    }
}

/// One thing that an agent said.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The answer to a request of ours.
    Response {
        /// The request's id.
        id: u64,
        /// Its result, or why it failed.
        outcome: Result<Value, RpcError>,
    },
    /// Something that happened.
    Notification(Notification),
    /// It asks the client for something.
    Request {
        /// The id to answer with, a number or a text.
        id: Value,
        /// What it asks for.
        method: String,
        /// With which parameters, or why they are not read.
        params: Result<Value, RpcError>,
    },
    /// A question that no host can be asked has been declined.
    Declined {
        /// Its id.
        id: String,
        /// What was asked.
        title: String,
    },
    /// It answers nothing that was asked.
    Unasked,
    /// The line is no record.
    Garbage,
    /// The record is too long to be read.
    TooLong {
        /// Its length.
        length: u64,
    },
}

/// A notification: its text, and what of it concerns the session.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// The JSON-RPC notification.
    pub text: String,
    /// The agent's id of the session that it is about; `None` where it names none.
    pub session_id: Option<String>,
    /// What it says.
    pub update: Update,
}

/// What a notification means for the session that keeps it.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// A piece of the agent's text.
    Text(String),
    /// A tool call begins or goes on.
    Tool {
        /// The call.
        id: String,
        /// Whether this announces it.
        new: bool,
        /// Whether it has ended; `None` where this doesn't say.
        over: Option<bool>,
    },
    /// The agent is in this mode now.
    Mode(String),
    /// All configuration options, anew.
    Options(Value),
    /// The turn fails, although it will end like any other: the text that follows is the reason.
    Failing,
    /// The turn fails, although it will end like any other, for this reason.
    Failed(String),
    /// The agent can't get through to its model for this reason, and tries again.
    Trouble(String),
    /// Anything else.
    Other,
}

impl Notification {
    /// A notification that is JSON already.
    #[must_use]
    pub fn read(text: String) -> Self {
        let (session_id, update) = update_of(&text);
        Self { text, session_id, update }
    }
}

/// The meaning of one line of an agent that speaks JSON-RPC.
#[must_use]
pub fn read(line: &[u8]) -> Message {
    let Some(text) = std::str::from_utf8(line).ok().and_then(readable) else { return Message::Garbage };
    let text = text.as_ref();
    let Ok(record) = serde_json::from_str::<Record<'_>>(text) else { return Message::Garbage };
    match (record.method, record.id) {
        (Some(method), None) if method.starts_with(RESERVED) => {
            // Only the host speaks under this name; what an agent says under it is kept as the agent's.
            let params = record.params.unwrap_or(RawValue::NULL);
            let text = acp::notification(&format!("_agent/{method}"), &params);
            Message::Notification(Notification { text, session_id: None, update: Update::Other })
        }
        (Some(_), None) => Message::Notification(Notification::read(text.to_owned())),
        (Some(method), Some(id)) => match serde_json::from_str::<Value>(id.get()) {
            Ok(id @ (Value::Number(_) | Value::String(_))) => {
                let params = parsed(record.params);
                Message::Request { id, method: method.into_owned(), params }
            }
            _ => Message::Garbage,
        },
        (None, Some(id)) => {
            // Ours are numbers; an answer to anything else answers nothing we asked.
            let Ok(id) = id.get().parse::<u64>() else { return Message::Garbage };
            let outcome = match (record.error, record.result) {
                (Some(error), _) if error.get() != "null" => {
                    Err(RpcError::read(&parsed(Some(error)).unwrap_or_default()))
                }
                (_, result) => parsed(result),
            };
            Message::Response { id, outcome }
        }
        (None, None) => Message::Garbage,
    }
}

/// Nothing is as good as null.
fn parsed(value: Option<&RawValue>) -> Result<Value, RpcError> {
    let Some(value) = value.map(RawValue::get) else { return Ok(Value::Null) };
    if value.len() > MAX_PARSED_BYTES {
        let message =
            format!("{} bytes of parameters or result; at most {MAX_PARSED_BYTES} are read", value.len());
        return Err(RpcError::new(acp::INTERNAL_ERROR, message));
    }
    serde_json::from_str(value).map_err(|error| RpcError::new(acp::INTERNAL_ERROR, error.to_string()))
}

fn update_of(text: &str) -> (Option<String>, Update) {
    let update = match serde_json::from_str::<UpdateRecord<'_>>(text) {
        Ok(record) if record.method == "session/update" => record.params,
        _ => return (None, trouble::of_notification(text).map_or(Update::Other, Update::Trouble)),
    };
    let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
    let session_id = owned(update.session_id);
    let update = update.update;
    let understood = match update.kind.as_ref() {
        "agent_message_chunk" => update.content.and_then(|content| {
            let chunk = serde_json::from_str::<Chunk<'_>>(content.get()).ok()?;
            let text = (chunk.kind == "text").then(|| chunk.text.unwrap_or_default().into_owned())?;
            let failed = update.meta.and_then(|meta| Meta::read(meta)?.failure(&text));
            Some(failed.map_or(Update::Text(text), Update::Failed))
        }),
        kind @ ("tool_call" | "tool_call_update") => {
            let over = update.status.as_deref().map(|status| matches!(status, "completed" | "failed"));
            let new = kind == "tool_call";
            owned(update.tool_call_id).map(|id| Update::Tool { id, new, over })
        }
        "current_mode_update" => owned(update.current_mode_id).map(Update::Mode),
        "config_option_update" => parsed(update.config_options).ok().map(Update::Options),
        "session_info_update" => update.meta.and_then(|meta| Meta::read(meta)?.of_session()),
        _ => None,
    };
    (session_id, understood.unwrap_or(Update::Other))
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct UpdateRecord<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: UpdateParams<'a>,
}

#[derive(Deserialize)]
struct UpdateParams<'a> {
    #[serde(rename = "sessionId", borrow)]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    update: UpdateFields<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdateFields<'a> {
    #[serde(rename = "sessionUpdate", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_call_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow)]
    current_mode_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    config_options: Option<&'a RawValue>,
    #[serde(rename = "_meta", borrow)]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(value: Value) -> Message {
        read(value.to_string().as_bytes())
    }

    #[test]
    fn answers_carry_their_result_or_the_agents_error() {
        let ok = said(json!({ "jsonrpc": "2.0", "id": 3, "result": { "a": 1 } }));
        assert_eq!(ok, Message::Response { id: 3, outcome: Ok(json!({ "a": 1 })) });
        let none = said(json!({ "jsonrpc": "2.0", "id": 3 }));
        assert_eq!(none, Message::Response { id: 3, outcome: Ok(Value::Null) });
        let failed = said(json!({ "id": 3, "error": { "code": 400, "message": "no", "data": { "x": 1 } } }));
        let Message::Response { outcome: Err(error), .. } = failed else { panic!("{failed:?}") };
        assert_eq!((error.code, error.to_string().as_str(), &error.data), (400, "no", &json!({ "x": 1 })));
    }

    #[test]
    fn the_reason_of_an_internal_error_is_shown() {
        let shown = |error: Value| RpcError::read(&error).to_string();
        assert_eq!(
            shown(
                json!({ "code": -32603, "message": "Internal error", "data": { "details": "401 no key" } })
            ),
            "Internal error: 401 no key"
        );
        assert_eq!(shown(json!({ "message": "Internal error", "data": "why" })), "Internal error: why");
        assert_eq!(shown(json!({ "message": "401 why", "data": { "message": "why" } })), "401 why");
        assert_eq!(shown(json!({ "message": ["odd"] })), "[\"odd\"]");
        assert_eq!(shown(json!(7)), "no reason given");
    }

    #[test]
    fn requests_of_the_agent_keep_their_id_whatever_it_is() {
        for id in [json!(0), json!("a-1")] {
            let request =
                said(json!({ "id": id, "method": "fs/read_text_file", "params": { "path": "/x" } }));
            let Message::Request { id: kept, method, params } = request else { panic!("{request:?}") };
            assert_eq!(
                (kept, method.as_str(), &params.unwrap()["path"]),
                (id, "fs/read_text_file", &json!("/x"))
            );
        }
        assert_eq!(said(json!({ "id": [1], "method": "x" })), Message::Garbage);
        let params = json!({ "content": "x".repeat(MAX_PARSED_BYTES) });
        let Message::Request { params, .. } = said(json!({ "id": 1, "method": "x", "params": params }))
        else {
            panic!()
        };
        assert!(params.unwrap_err().to_string().contains("at most"), "the agent is told why");
    }

    #[test]
    fn what_is_no_record_is_garbage() {
        for line in [
            &b"hello"[..],
            b"[1]",
            b"{}",
            b"\xff{",
            b"null",
            b"{\"id\":\"x\",\"result\":1}",
            b"{\"method\":7}",
        ] {
            assert_eq!(read(line), Message::Garbage, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn notifications_are_kept_as_they_are_and_understood_as_far_as_they_matter() {
        let update = |update: Value| {
            let text =
                json!({ "method": "session/update", "params": { "sessionId": "s", "update": update } })
                    .to_string();
            let Message::Notification(notification) = read(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(notification.text, text);
            notification.update
        };
        let text =
            json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": "hi" } });
        assert_eq!(update(text), Update::Text("hi".to_owned()));
        let image =
            json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "image", "data": "" } });
        assert_eq!(update(image), Update::Other);
        let call = json!({ "sessionUpdate": "tool_call", "toolCallId": "c", "status": "pending" });
        assert_eq!(update(call), Update::Tool { id: "c".to_owned(), new: true, over: Some(false) });
        let failed = json!({ "sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "failed" });
        assert_eq!(update(failed), Update::Tool { id: "c".to_owned(), new: false, over: Some(true) });
        let mode = json!({ "sessionUpdate": "current_mode_update", "currentModeId": "plan" });
        assert_eq!(update(mode), Update::Mode("plan".to_owned()));
        let status = json!({ "codex": { "threadStatus": { "type": "systemError" } } });
        let failing = json!({ "sessionUpdate": "session_info_update", "_meta": status });
        assert_eq!(update(failing), Update::Failing);
        let named = json!({ "sessionUpdate": "session_info_update", "title": "t", "_meta": { "codex": {} } });
        assert_eq!(update(named), Update::Other);
        let options = json!({ "sessionUpdate": "config_option_update", "configOptions": [] });
        assert_eq!(update(options), Update::Options(json!([])));
        for odd in [
            json!({ "sessionUpdate": "warp" }),
            json!({ "sessionUpdate": "tool_call", "toolCallId": 7 }),
            json!(1),
        ] {
            assert_eq!(update(odd), Update::Other);
        }
    }

    #[test]
    fn an_agent_cannot_speak_as_the_host() {
        let Message::Notification(forged) =
            said(json!({ "method": "_agentos/model", "params": { "kind": "provider" } }))
        else {
            panic!()
        };
        let kept: Value = serde_json::from_str(&forged.text).unwrap();
        assert_eq!(
            (&kept["method"], &kept["params"]["kind"]),
            (&json!("_agent/_agentos/model"), &json!("provider"))
        );
    }
}
