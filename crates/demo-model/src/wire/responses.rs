//! OpenAI Responses: `POST /v1/responses`.
//!
//! The conversation is a flat list of items; calls and their outputs are items beside the messages. Shapes:
//! <https://platform.openai.com/docs/api-reference/responses> and its page on streaming events. Every event carries a
//! sequence number, and clients take the finished items from `output_item.done` and the end from `response.completed`.

use serde_json::{Value, json};

use super::{
    BadRequest, Event, MODEL, Meta, add_system, json_text, object_schema, optional_array, pieces, string,
    texts, tokens,
};
use crate::conversation::{
    Answer, Arguments, Call, Content, Conversation, Tool, ToolCall, ToolInput, ToolResult, Turn,
};

pub(super) fn parse(body: &Value) -> Result<Conversation, BadRequest> {
    let mut conversation = Conversation::default();
    add_system(&mut conversation.system, &texts(&body["instructions"]));
    let format = &body["text"]["format"];
    if format["type"] == "json_schema" || format["type"] == "json_object" {
        conversation.json_schema = Some(object_schema(&format["schema"]));
    }
    for tool in optional_array(body, "tools")? {
        add_tool(&mut conversation.tools, tool, None)?;
    }
    match &body["input"] {
        Value::String(text) => conversation.turns.push(Turn::User(vec![text.clone()])),
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                // Tools may also come with an item of their own (`additional_tools`), for the turns after it.
                for tool in optional_array(item, "tools")? {
                    add_tool(&mut conversation.tools, tool, None)?;
                }
                one(&mut conversation, item);
            }
        }
        _ => return Err(BadRequest::Field { field: "input", expected: "a text or a list of items" }),
    }
    Ok(conversation)
}

fn add_tool(tools: &mut Vec<Tool>, tool: &Value, namespace: Option<&str>) -> Result<(), BadRequest> {
    let kind = tool["type"].as_str().ok_or(BadRequest::Field { field: "tools.type", expected: "a text" })?;
    let name = || {
        let name = tool["name"].as_str().filter(|name| !name.is_empty());
        name.map(str::to_owned).ok_or(BadRequest::Field { field: "tools.name", expected: "a text" })
    };
    let input = match kind {
        "function" => ToolInput::Schema(tool["parameters"].clone()),
        "custom" => ToolInput::Text,
        "namespace" => {
            let name = name()?;
            for inner in optional_array(tool, "tools")? {
                add_tool(tools, inner, Some(&name))?;
            }
            return Ok(());
        }
        // Others (web_search and its like) run at the provider and can't be called here.
        _ => return Ok(()),
    };
    tools.push(Tool { name: name()?, namespace: namespace.map(str::to_owned), input });
    Ok(())
}

fn one(conversation: &mut Conversation, item: &Value) {
    match item["type"].as_str().unwrap_or("message") {
        "message" => {
            let said = texts(&item["content"]);
            match item["role"].as_str() {
                Some("system" | "developer") => add_system(&mut conversation.system, &said),
                Some("assistant") => {
                    conversation.turns.push(Turn::Assistant { text: said.join(""), calls: Vec::new() });
                }
                _ => conversation.turns.push(Turn::User(said)),
            }
        }
        "function_call" => add_call(conversation, item, json_text(&item["arguments"])),
        "custom_tool_call" => add_call(conversation, item, item["input"].clone()),
        "function_call_output" | "custom_tool_call_output" => {
            let result = ToolResult {
                call_id: string(&item["call_id"]),
                name: None,
                text: output_text(&item["output"]),
                failed: false,
            };
            match conversation.turns.last_mut() {
                Some(Turn::Results(results)) => results.push(result),
                _ => conversation.turns.push(Turn::Results(vec![result])),
            }
        }
        _ => {}
    }
}

fn add_call(conversation: &mut Conversation, item: &Value, arguments: Value) {
    let call = Call { id: string(&item["call_id"]), name: string(&item["name"]), arguments };
    match conversation.turns.last_mut() {
        Some(Turn::Assistant { calls, .. }) => calls.push(call),
        _ => conversation.turns.push(Turn::Assistant { text: String::new(), calls: vec![call] }),
    }
}

/// An output is a text, a list of parts, or (older Codex) JSON text `{output, metadata}`.
fn output_text(output: &Value) -> String {
    let text = match output {
        Value::Object(map) => map.get("content").map(|c| texts(c).join("\n")).unwrap_or_default(),
        other => texts(other).join("\n"),
    };
    let wrapped = serde_json::from_str::<Value>(&text).ok();
    wrapped.and_then(|w| w["output"].as_str().map(str::to_owned)).unwrap_or(text)
}

pub(super) fn whole(answer: &Answer, meta: &Meta) -> Value {
    completed(answer, meta)
}

pub(super) fn events(answer: &Answer, meta: &Meta) -> Vec<Event> {
    let mut stream = Stream { events: Vec::new() };
    stream.push("response.created", json!({"response": envelope(meta, "in_progress")}));
    stream.push("response.in_progress", json!({"response": envelope(meta, "in_progress")}));
    match &answer.content {
        Content::Text(text) => stream.text(text, meta),
        Content::Call(call) => stream.call(call, meta),
    }
    stream.push("response.completed", json!({"response": completed(answer, meta)}));
    stream.events
}

struct Stream {
    events: Vec<Event>,
}

impl Stream {
    fn push(&mut self, name: &'static str, mut value: Value) {
        value["type"] = json!(name);
        value["sequence_number"] = json!(self.events.len());
        self.events.push(Event::json(Some(name), value));
    }

    fn push_paced(&mut self, name: &'static str, value: Value) {
        self.push(name, value);
        if let Some(event) = self.events.last_mut() {
            event.paced = true;
        }
    }

    fn text(&mut self, text: &str, meta: &Meta) {
        let item_id = message_id(meta);
        let place = json!({"item_id": item_id, "output_index": 0, "content_index": 0});
        let at = |key: &str, value: Value| {
            let mut event = place.clone();
            event[key] = value;
            event
        };
        let mut item = message_item("", meta, "in_progress");
        item["content"] = json!([]);
        self.push("response.output_item.added", json!({"output_index": 0, "item": item}));
        self.push("response.content_part.added", at("part", text_part("")));
        for piece in pieces(text) {
            self.push_paced("response.output_text.delta", at("delta", json!(piece)));
        }
        self.push("response.output_text.done", at("text", json!(text)));
        self.push("response.content_part.done", at("part", text_part(text)));
        let item = message_item(text, meta, "completed");
        self.push("response.output_item.done", json!({"output_index": 0, "item": item}));
    }

    fn call(&mut self, call: &ToolCall, meta: &Meta) {
        let (delta, done, field) = match call.arguments {
            Arguments::Object(_) => (
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "arguments",
            ),
            Arguments::Text(_) => {
                ("response.custom_tool_call_input.delta", "response.custom_tool_call_input.done", "input")
            }
        };
        let finished = call_item(call, meta);
        let mut item = finished.clone();
        item[field] = json!("");
        item["status"] = json!("in_progress");
        let item_id = item["id"].clone();
        self.push("response.output_item.added", json!({"output_index": 0, "item": item}));
        let words = call.arguments.to_wire();
        for piece in pieces(&words) {
            self.push_paced(delta, json!({"item_id": item_id, "output_index": 0, "delta": piece}));
        }
        let mut last = json!({"item_id": item_id, "output_index": 0});
        last[field] = json!(words);
        self.push(done, last);
        self.push("response.output_item.done", json!({"output_index": 0, "item": finished}));
    }
}

fn message_id(meta: &Meta) -> String {
    format!("msg_{}", meta.id)
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn message_item(text: &str, meta: &Meta, status: &str) -> Value {
    json!({
        "id": message_id(meta),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [text_part(text)]
    })
}

fn call_item(call: &ToolCall, meta: &Meta) -> Value {
    let (kind, id, field) = match call.arguments {
        Arguments::Object(_) => ("function_call", format!("fc_{}", meta.id), "arguments"),
        Arguments::Text(_) => ("custom_tool_call", format!("ctc_{}", meta.id), "input"),
    };
    let mut item = json!({
        "id": id,
        "type": kind,
        "status": "completed",
        "call_id": format!("call_{}", meta.id),
        "name": call.name
    });
    item[field] = json!(call.arguments.to_wire());
    if let Some(namespace) = &call.namespace {
        item["namespace"] = json!(namespace);
    }
    item
}

fn envelope(meta: &Meta, status: &str) -> Value {
    json!({
        "id": format!("resp_{}", meta.id),
        "object": "response",
        "created_at": meta.created,
        "status": status,
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "metadata": {},
        "model": MODEL,
        "output": [],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "temperature": null,
        "tool_choice": "auto",
        "tools": [],
        "top_p": null,
        "usage": null
    })
}

fn completed(answer: &Answer, meta: &Meta) -> Value {
    let mut response = envelope(meta, "completed");
    let (item, bytes) = match &answer.content {
        Content::Text(text) => (message_item(text, meta, "completed"), text.len()),
        Content::Call(call) => (call_item(call, meta), call.arguments.to_wire().len()),
    };
    let output = tokens(bytes);
    response["output"] = json!([item]);
    response["usage"] = json!({
        "input_tokens": meta.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": meta.input_tokens + output
    });
    response
}
