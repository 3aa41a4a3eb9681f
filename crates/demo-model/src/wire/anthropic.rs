//! Anthropic Messages: `POST /v1/messages`.
//!
//! Tool results come as blocks of a user message, in front of what the user says next. Shapes:
//! <https://docs.anthropic.com/en/api/messages> and its page on streaming.

use serde_json::{Value, json};

use super::{
    BadRequest, Event, MODEL, Meta, add_system, array, object_schema, optional_array, pieces, string, texts,
    tokens,
};
use crate::conversation::{Answer, Call, Content, Conversation, Tool, ToolInput, ToolResult, Turn};

pub(super) fn parse(body: &Value) -> Result<Conversation, BadRequest> {
    let mut conversation = Conversation::default();
    add_system(&mut conversation.system, &texts(&body["system"]));
    let format = body["output_config"].get("format").unwrap_or(&body["output_format"]);
    if format["type"] == "json_schema" {
        conversation.json_schema = Some(object_schema(&format["schema"]));
    }
    for tool in optional_array(body, "tools")? {
        let name = tool["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or(BadRequest::Field { field: "tools.name", expected: "a text" })?.to_owned();
        let input = ToolInput::Schema(tool["input_schema"].clone());
        conversation.tools.push(Tool { name, namespace: None, input });
    }
    let messages = array(body, "messages", "a list of messages")?;
    if messages.is_empty() {
        return Err(BadRequest::Field { field: "messages", expected: "at least one message" });
    }
    for message in messages {
        match message["role"].as_str() {
            Some("user") => user(&mut conversation, &message["content"])?,
            Some("assistant") => conversation.turns.push(assistant(&message["content"])),
            Some("system") => add_system(&mut conversation.system, &texts(&message["content"])),
            _ => return Err(BadRequest::Field { field: "messages.role", expected: "user or assistant" }),
        }
    }
    Ok(conversation)
}

fn user(conversation: &mut Conversation, content: &Value) -> Result<(), BadRequest> {
    if !content.is_string() && !content.is_array() {
        return Err(BadRequest::Field { field: "messages.content", expected: "a text or a list of blocks" });
    }
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let results: Vec<ToolResult> =
        blocks.iter().filter(|block| block["type"] == "tool_result").map(result).collect();
    if !results.is_empty() {
        conversation.turns.push(Turn::Results(results));
    }
    let said = texts(content);
    if !said.is_empty() {
        conversation.turns.push(Turn::User(said));
    }
    Ok(())
}

fn result(block: &Value) -> ToolResult {
    ToolResult {
        call_id: string(&block["tool_use_id"]),
        name: None,
        text: texts(&block["content"]).join("\n"),
        failed: block["is_error"] == true,
    }
}

fn assistant(content: &Value) -> Turn {
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let calls = blocks.iter().filter(|block| block["type"] == "tool_use").map(|block| Call {
        id: string(&block["id"]),
        name: string(&block["name"]),
        arguments: block["input"].clone(),
    });
    Turn::Assistant { text: texts(content).join(""), calls: calls.collect() }
}

pub(super) fn whole(answer: &Answer, meta: &Meta) -> Value {
    let block = match &answer.content {
        Content::Text(text) => json!({"type": "text", "text": text}),
        Content::Call(call) => {
            json!({"type": "tool_use", "id": call_id(meta), "name": call.name, "input": call.arguments.to_object()})
        }
    };
    let mut message = envelope(meta);
    message["content"] = json!([block]);
    message["stop_reason"] = json!(stop_reason(answer));
    message["usage"]["output_tokens"] = json!(output_tokens(answer));
    message
}

pub(super) fn events(answer: &Answer, meta: &Meta) -> Vec<Event> {
    let named = |name: &'static str, mut value: Value| {
        value["type"] = json!(name);
        Event::json(Some(name), value)
    };
    let (block, words, delta): (Value, String, fn(&str) -> Value) = match &answer.content {
        Content::Text(text) => (
            json!({"type": "text", "text": ""}),
            text.clone(),
            |piece| json!({"type": "text_delta", "text": piece}),
        ),
        Content::Call(call) => (
            json!({"type": "tool_use", "id": call_id(meta), "name": call.name, "input": {}}),
            call.arguments.to_object().to_string(),
            |piece| json!({"type": "input_json_delta", "partial_json": piece}),
        ),
    };
    let mut events = vec![
        named("message_start", json!({"message": envelope(meta)})),
        named("content_block_start", json!({"index": 0, "content_block": block})),
        named("ping", json!({})),
    ];
    for piece in pieces(&words) {
        let delta = json!({"type": "content_block_delta", "index": 0, "delta": delta(piece)});
        events.push(Event::paced(Some("content_block_delta"), delta));
    }
    events.push(named("content_block_stop", json!({"index": 0})));
    let delta = json!({"stop_reason": stop_reason(answer), "stop_sequence": null});
    let usage = json!({"output_tokens": output_tokens(answer)});
    events.push(named("message_delta", json!({"delta": delta, "usage": usage})));
    events.push(named("message_stop", json!({})));
    events
}

pub(super) fn error(status: u16, message: &str) -> Value {
    let kind = match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

/// The message before its first word.
fn envelope(meta: &Meta) -> Value {
    json!({
        "id": format!("msg_{}", meta.id),
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": {
            "input_tokens": meta.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1
        }
    })
}

fn call_id(meta: &Meta) -> String {
    format!("toolu_{}", meta.id)
}

fn stop_reason(answer: &Answer) -> &'static str {
    match answer.content {
        Content::Text(_) => "end_turn",
        Content::Call(_) => "tool_use",
    }
}

fn output_tokens(answer: &Answer) -> u64 {
    match &answer.content {
        Content::Text(text) => tokens(text.len()),
        Content::Call(call) => tokens(call.arguments.to_wire().len()),
    }
}
