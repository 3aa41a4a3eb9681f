//! OpenAI Chat Completions: `POST /v1/chat/completions`.
//!
//! Shapes: <https://platform.openai.com/docs/api-reference/chat>. A tool's arguments travel as JSON text, a stream ends
//! with `[DONE]`, and the usage comes in a chunk without choices where `stream_options` asks for it.

use serde_json::{Value, json};

use super::{
    BadRequest, Event, MODEL, Meta, add_system, array, json_text, object_schema, optional_array, pieces,
    string, texts, tokens,
};
use crate::conversation::{Answer, Call, Content, Conversation, Tool, ToolInput, ToolResult, Turn};

pub(super) fn parse(body: &Value) -> Result<Conversation, BadRequest> {
    let mut conversation = Conversation::default();
    let format = &body["response_format"];
    if format["type"] == "json_schema" || format["type"] == "json_object" {
        conversation.json_schema = Some(object_schema(&format["json_schema"]["schema"]));
    }
    for tool in optional_array(body, "tools")? {
        // Tools of other types run at the provider and can't be called here.
        let Some(function) = tool.get("function") else { continue };
        let name = function["name"].as_str().filter(|name| !name.is_empty());
        let name =
            name.ok_or(BadRequest::Field { field: "tools.function.name", expected: "a text" })?.to_owned();
        let input = ToolInput::Schema(function["parameters"].clone());
        conversation.tools.push(Tool { name, namespace: None, input });
    }
    let messages = array(body, "messages", "a list of messages")?;
    if messages.is_empty() {
        return Err(BadRequest::Field { field: "messages", expected: "at least one message" });
    }
    for message in messages {
        one(&mut conversation, message)?;
    }
    Ok(conversation)
}

fn one(conversation: &mut Conversation, message: &Value) -> Result<(), BadRequest> {
    let said = texts(&message["content"]);
    match message["role"].as_str() {
        Some("system" | "developer") => add_system(&mut conversation.system, &said),
        Some("user") => conversation.turns.push(Turn::User(said)),
        Some("assistant") => {
            let calls = optional_array(message, "tool_calls")?.iter().map(|call| Call {
                id: string(&call["id"]),
                name: string(&call["function"]["name"]),
                arguments: json_text(&call["function"]["arguments"]),
            });
            let calls = calls.collect();
            conversation.turns.push(Turn::Assistant { text: said.join(""), calls });
        }
        Some("tool" | "function") => {
            let result = ToolResult {
                call_id: string(&message["tool_call_id"]),
                name: message["name"].as_str().map(str::to_owned),
                text: said.join("\n"),
                failed: false,
            };
            match conversation.turns.last_mut() {
                Some(Turn::Results(results)) => results.push(result),
                _ => conversation.turns.push(Turn::Results(vec![result])),
            }
        }
        _ => {
            return Err(BadRequest::Field {
                field: "messages.role",
                expected: "system, developer, user, assistant or tool",
            });
        }
    }
    Ok(())
}

pub(super) fn whole(answer: &Answer, meta: &Meta) -> Value {
    let message = match &answer.content {
        Content::Text(text) => json!({"role": "assistant", "content": text, "refusal": null}),
        Content::Call(call) => json!({
            "role": "assistant",
            "content": null,
            "tool_calls": [{
                "id": call_id(meta),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments.to_object().to_string()}
            }]
        }),
    };
    json!({
        "id": format!("chatcmpl-{}", meta.id),
        "object": "chat.completion",
        "created": meta.created,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(answer)}],
        "usage": usage(answer, meta)
    })
}

pub(super) fn events(answer: &Answer, meta: &Meta) -> Vec<Event> {
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    let mut events = Vec::new();
    match &answer.content {
        Content::Text(text) => {
            let first = json!({"role": "assistant", "content": ""});
            events.push(Event::json(None, chunk(meta, choice(first, Value::Null))));
            for piece in pieces(text) {
                let delta = json!({"content": piece});
                events.push(Event::paced(None, chunk(meta, choice(delta, Value::Null))));
            }
        }
        Content::Call(call) => {
            let function = json!({"name": call.name, "arguments": ""});
            let tool = json!({"index": 0, "id": call_id(meta), "type": "function", "function": function});
            let first = json!({"role": "assistant", "content": null, "tool_calls": [tool]});
            events.push(Event::json(None, chunk(meta, choice(first, Value::Null))));
            for piece in pieces(&call.arguments.to_object().to_string()) {
                let delta = json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]});
                events.push(Event::paced(None, chunk(meta, choice(delta, Value::Null))));
            }
        }
    }
    events.push(Event::json(None, chunk(meta, choice(json!({}), json!(finish_reason(answer))))));
    if meta.include_usage {
        let mut last = chunk(meta, json!([]));
        last["usage"] = usage(answer, meta);
        events.push(Event::json(None, last));
    }
    events.push(Event { name: None, data: super::Data::Done, paced: false });
    events
}

fn chunk(meta: &Meta, choices: Value) -> Value {
    json!({
        "id": format!("chatcmpl-{}", meta.id),
        "object": "chat.completion.chunk",
        "created": meta.created,
        "model": MODEL,
        "choices": choices
    })
}

fn usage(answer: &Answer, meta: &Meta) -> Value {
    let output = match &answer.content {
        Content::Text(text) => tokens(text.len()),
        Content::Call(call) => tokens(call.arguments.to_wire().len()),
    };
    json!({
        "prompt_tokens": meta.input_tokens,
        "completion_tokens": output,
        "total_tokens": meta.input_tokens + output
    })
}

fn call_id(meta: &Meta) -> String {
    format!("call_{}", meta.id)
}

fn finish_reason(answer: &Answer) -> &'static str {
    match answer.content {
        Content::Text(_) => "stop",
        Content::Call(_) => "tool_calls",
    }
}
