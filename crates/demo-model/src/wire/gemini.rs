//! Gemini: `POST /v1beta/models/M:generateContent` and `:streamGenerateContent`.
//!
//! Shapes: <https://ai.google.dev/api/generate-content>. A call is one part with a whole object, never in pieces; a
//! result is a `functionResponse` part of a user (or function) content. Fields come in camel case and, from some
//! clients, in snake case.

use serde_json::{Map, Value, json};

use super::{
    BadRequest, Event, MODEL, Meta, add_system, array, object_schema, optional_array, pieces, string, texts,
    tokens,
};
use crate::conversation::{Answer, Call, Content, Conversation, Tool, ToolInput, ToolResult, Turn};

pub(super) fn parse(body: &Value) -> Result<Conversation, BadRequest> {
    let mut conversation = Conversation::default();
    let system = either(body, "systemInstruction", "system_instruction");
    add_system(&mut conversation.system, &texts(system.get("parts").unwrap_or(system)));
    let config = either(body, "generationConfig", "generation_config");
    if either(config, "responseMimeType", "response_mime_type") == "application/json" {
        let schema =
            config.get("responseSchema").unwrap_or(either(config, "responseJsonSchema", "response_schema"));
        conversation.json_schema = Some(object_schema(schema));
    }
    for group in optional_array(body, "tools")? {
        let declarations = either(group, "functionDeclarations", "function_declarations");
        for declaration in declarations.as_array().map(Vec::as_slice).unwrap_or_default() {
            let name = declaration["name"].as_str().filter(|name| !name.is_empty());
            let name = name.ok_or(BadRequest::Field { field: "tools.name", expected: "a text" })?.to_owned();
            let schema = either(declaration, "parametersJsonSchema", "parameters").clone();
            conversation.tools.push(Tool { name, namespace: None, input: ToolInput::Schema(schema) });
        }
    }
    let contents = array(body, "contents", "a list of contents")?;
    if contents.is_empty() {
        return Err(BadRequest::Field { field: "contents", expected: "at least one content" });
    }
    for content in contents {
        one(&mut conversation, content)?;
    }
    Ok(conversation)
}

fn one(conversation: &mut Conversation, content: &Value) -> Result<(), BadRequest> {
    let parts = optional_array(content, "parts")?;
    // Thoughts come back with their flag; they are not something anybody said.
    let said: Vec<String> = parts.iter().filter(|part| part["thought"] != true).flat_map(texts).collect();
    match content["role"].as_str() {
        Some("model") => {
            let calls = parts.iter().map(|part| either(part, "functionCall", "function_call"));
            let calls = calls.filter(|call| call.is_object()).map(|call| Call {
                id: string(&call["id"]),
                name: string(&call["name"]),
                arguments: call["args"].clone(),
            });
            let calls = calls.collect();
            conversation.turns.push(Turn::Assistant { text: said.join(""), calls });
        }
        Some("user" | "function") | None => {
            let results = parts.iter().map(|part| either(part, "functionResponse", "function_response"));
            let results: Vec<ToolResult> = results.filter(|result| result.is_object()).map(result).collect();
            if !results.is_empty() {
                conversation.turns.push(Turn::Results(results));
            }
            if !said.is_empty() {
                conversation.turns.push(Turn::User(said));
            }
        }
        Some(_) => return Err(BadRequest::Field { field: "contents.role", expected: "user or model" }),
    }
    Ok(())
}

fn result(result: &Value) -> ToolResult {
    let response = &result["response"];
    let error = response.get("error").filter(|error| !error.is_null());
    let shown = error.or_else(|| response.get("output")).unwrap_or(response);
    ToolResult {
        call_id: string(&result["id"]),
        name: result["name"].as_str().map(str::to_owned),
        text: shown.as_str().map_or_else(|| shown.to_string(), str::to_owned),
        failed: error.is_some(),
    }
}

/// A field under either of its names; `Null` where it has neither.
fn either<'a>(value: &'a Value, name: &str, other: &str) -> &'a Value {
    value.get(name).or_else(|| value.get(other)).unwrap_or(&Value::Null)
}

pub(super) fn whole(answer: &Answer, meta: &Meta) -> Value {
    chunk(answer, meta, &whole_part(answer, meta), true)
}

pub(super) fn events(answer: &Answer, meta: &Meta) -> Vec<Event> {
    let parts: Vec<Value> = match &answer.content {
        Content::Text(text) => pieces(text).into_iter().map(|piece| json!({"text": piece})).collect(),
        Content::Call(_) => vec![whole_part(answer, meta)],
    };
    let last = parts.len().saturating_sub(1);
    let chunks = parts.iter().enumerate().map(|(i, part)| chunk(answer, meta, part, i == last));
    chunks.map(|chunk| Event::paced(None, chunk)).collect()
}

fn whole_part(answer: &Answer, meta: &Meta) -> Value {
    match &answer.content {
        Content::Text(text) => json!({"text": text}),
        Content::Call(call) => {
            let args = call.arguments.to_object();
            json!({"functionCall": {"id": format!("call_{}", meta.id), "name": call.name, "args": args}})
        }
    }
}

fn chunk(answer: &Answer, meta: &Meta, part: &Value, last: bool) -> Value {
    let mut candidate = Map::new();
    candidate.insert("content".to_owned(), json!({"role": "model", "parts": [part]}));
    candidate.insert("index".to_owned(), json!(0));
    if last {
        candidate.insert("finishReason".to_owned(), json!("STOP"));
    }
    let output = match &answer.content {
        Content::Text(text) => tokens(text.len()),
        Content::Call(call) => tokens(call.arguments.to_wire().len()),
    };
    json!({
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": meta.input_tokens,
            "candidatesTokenCount": output,
            "totalTokenCount": meta.input_tokens + output
        },
        "modelVersion": MODEL,
        "responseId": meta.id
    })
}

pub(super) fn error(status: u16, message: &str) -> Value {
    let name = match status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        405..=499 => "FAILED_PRECONDITION",
        _ => "INTERNAL",
    };
    json!({"error": {"code": status, "message": message, "status": name}})
}
