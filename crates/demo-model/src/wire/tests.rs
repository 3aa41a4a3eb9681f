//! Requests as the real clients send them, through parsing, the script and encoding.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::conversation::{Content, Reply, Turn};
use crate::script::decide;

const WIRES: [Wire; 4] = [Wire::Anthropic, Wire::Chat, Wire::Responses, Wire::Gemini];

fn meta() -> Meta {
    Meta { id: "demo_1_0".into(), created: 1_700_000_000, input_tokens: 7, include_usage: true }
}

#[track_caller]
fn answer(wire: Wire, body: &Value) -> Answer {
    match decide(&wire.parse(body).expect("a request")) {
        Reply::Answer(answer) => answer,
        other => panic!("expected an answer, got {other:?}"),
    }
}

/// The names of a stream's events, repetitions folded.
fn names(events: &[Event]) -> Vec<&'static str> {
    let mut names: Vec<_> = events.iter().filter_map(|e| e.name).collect();
    names.dedup();
    names
}

fn jsons(events: &[Event]) -> Vec<&Value> {
    let json = |event: &'_ Event| matches!(event.data, Data::Json(_));
    assert!(events.iter().rev().skip(1).all(json), "only the last may be no JSON");
    events.iter().filter_map(|e| if let Data::Json(value) = &e.data { Some(value) } else { None }).collect()
}

fn claude(messages: Value) -> Value {
    let reminder = json!({"type": "text", "text": "<system-reminder>\nToday is a day.\n</system-reminder>"});
    let mut messages = messages;
    if let Some(first) = messages[0]["content"].as_array_mut() {
        first.insert(0, reminder);
    }
    json!({
        "model": "agentos-demo", "max_tokens": 32000, "stream": true,
        "system": [
            {"type": "text", "text": "You are a Claude agent.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "# Environment\n - Primary working directory: /home/user/work\n - Platform: linux"}
        ],
        "tools": [
            {"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}, "description": {"type": "string"}}, "required": ["command"]}},
            {"name": "Write", "input_schema": {"type": "object", "properties": {"file_path": {"type": "string", "description": "The absolute path to the file to write (must be absolute, not relative)"}, "content": {"type": "string"}}, "required": ["file_path", "content"]}}
        ],
        "messages": messages
    })
}

#[test]
fn anthropic_calls_a_tool_and_quotes_its_result() {
    let prompt = json!({"role": "user", "content": [{"type": "text", "text": "Write \"hi\" to a.txt"}]});
    let call = answer(Wire::Anthropic, &claude(json!([prompt])));
    let whole = Wire::Anthropic.whole(&call, &meta());
    assert_eq!(whole["stop_reason"], "tool_use");
    assert_eq!(whole["model"], MODEL);
    assert_eq!(whole["content"][0]["name"], "Write");
    assert_eq!(whole["content"][0]["input"], json!({"file_path": "/home/user/work/a.txt", "content": "hi"}));

    let events = Wire::Anthropic.events(&call, &meta());
    assert_eq!(
        names(&events),
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let pieces: String = jsons(&events).iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&pieces).unwrap(), whole["content"][0]["input"]);
    for event in &events {
        let Data::Json(value) = &event.data else { panic!("JSON only") };
        assert_eq!(value["type"].as_str(), event.name);
        assert!(event.to_sse().starts_with(&format!("event: {}\ndata: {{", event.name.unwrap())));
    }

    let id = whole["content"][0]["id"].clone();
    let used = json!({"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"type": "tool_use", "id": id, "name": "Write", "input": {}}]});
    let loaded = json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": id, "content": [{"type": "tool_reference", "tool_name": "x"}]},
        {"type": "text", "text": "Tool loaded."}
    ]});
    let text = answer(Wire::Anthropic, &claude(json!([prompt, used, loaded])));
    assert!(matches!(text.content, Content::Text(t) if t.contains("answered nothing")));
    let result = |error: bool| {
        json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": id, "is_error": error, "content": [{"type": "text", "text": "File created"}]},
            {"type": "text", "text": "<system-reminder>be brief</system-reminder>"}
        ]})
    };
    let text = answer(Wire::Anthropic, &claude(json!([prompt, used, result(false)])));
    let whole = Wire::Anthropic.whole(&text, &meta());
    assert_eq!(whole["stop_reason"], "end_turn");
    assert_eq!(whole["content"][0]["text"], "[demo model] The tool answered:\nFile created");
    let text = answer(Wire::Anthropic, &claude(json!([prompt, used, result(true)])));
    assert!(matches!(text.content, Content::Text(t) if t.contains("failed")));
}

fn pi(messages: Value) -> Value {
    let function = |name: &str, properties: Value, required: Value| {
        let parameters = json!({"type": "object", "properties": properties, "required": required});
        json!({"type": "function", "function": {"name": name, "description": "x", "parameters": parameters, "strict": false}})
    };
    json!({
        "model": "agentos-demo", "messages": messages, "stream": true, "stream_options": {"include_usage": true},
        "max_completion_tokens": 32000,
        "tools": [
            function("bash", json!({"command": {"type": "string"}, "timeout": {"type": "number"}}), json!(["command"])),
            function("write", json!({"path": {"type": "string"}, "content": {"type": "string"}}), json!(["path", "content"]))
        ]
    })
}

#[test]
fn chat_calls_a_tool_and_quotes_its_result() {
    let system =
        json!({"role": "system", "content": "You are an expert coding assistant operating inside pi"});
    let prompt = json!({"role": "user", "content": [{"type": "text", "text": "Write a hello world in TypeScript to hello.ts"}]});
    let body = pi(json!([system, prompt]));
    assert!(Wire::Chat.parse(&body).unwrap().system.contains("inside pi"));
    let call = answer(Wire::Chat, &body);
    let whole = Wire::Chat.whole(&call, &meta());
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &whole["object"]),
        (&json!("tool_calls"), &json!("chat.completion"))
    );
    let used = choice["message"]["tool_calls"][0].clone();
    assert_eq!(used["function"]["name"], "write");
    let arguments: Value = serde_json::from_str(used["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments["path"], "hello.ts");

    let events = Wire::Chat.events(&call, &meta());
    let chunks = jsons(&events);
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["model"] == MODEL));
    let head = &chunks[0]["choices"][0]["delta"]["tool_calls"][0];
    assert_eq!((&head["id"], &head["function"]["name"]), (&used["id"], &json!("write")));
    let streamed: String = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str())
        .collect();
    assert_eq!(serde_json::from_str::<Value>(&streamed).unwrap(), arguments);
    let [.., finish, usage] = chunks.as_slice() else { panic!("too short") };
    assert_eq!(finish["choices"][0]["finish_reason"], "tool_calls");
    assert!(usage["choices"].as_array().unwrap().is_empty() && usage["usage"]["total_tokens"].is_u64());
    assert_eq!(events.last().unwrap().to_sse(), "data: [DONE]\n\n");

    let assistant = json!({"role": "assistant", "content": null, "tool_calls": [used]});
    let result = json!({"role": "tool", "tool_call_id": used["id"], "content": "Successfully wrote"});
    let text = answer(Wire::Chat, &pi(json!([system, prompt, assistant, result])));
    let streamed: String = jsons(&Wire::Chat.events(&text, &meta()))
        .iter()
        .filter_map(|c| c["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(streamed, "[demo model] The tool answered:\nSuccessfully wrote");
}

fn codex(input: Value) -> Value {
    json!({
        "model": "agentos-demo", "instructions": "You are Codex.", "input": input, "stream": true, "store": false,
        "tool_choice": "auto", "parallel_tool_calls": false, "include": ["reasoning.encrypted_content"],
        "tools": [
            {"type": "function", "name": "exec_command", "strict": false, "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}, "workdir": {"type": "string"}}, "required": ["cmd"], "additionalProperties": false}},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
            {"type": "namespace", "name": "mcp__probe", "description": "x", "tools": [{"type": "function", "name": "probe_tool", "parameters": {"type": "object"}}]},
            {"type": "web_search", "external_web_access": false}
        ]
    })
}

fn said(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

#[test]
fn responses_call_a_tool_and_quote_its_result() {
    let context = said("<environment_context>\n  <cwd>/w</cwd>\n</environment_context>");
    let developer =
        json!({"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]});
    let input = json!([developer, context, said("Write \"it's\" to d/a.txt")]);
    let call = answer(Wire::Responses, &codex(input.clone()));
    let events = Wire::Responses.events(&call, &meta());
    assert_eq!(
        names(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    for (i, event) in jsons(&events).iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
        assert_eq!(event["type"].as_str(), events[i].name);
    }
    let whole = Wire::Responses.whole(&call, &meta());
    let item = &whole["output"][0];
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("exec_command")));
    let arguments: Value = serde_json::from_str(item["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments["cmd"], r"mkdir -p d && printf '%s' 'it'\''s' > d/a.txt");
    let last = jsons(&events).last().copied().unwrap();
    assert_eq!(&last["response"], &whole);

    let mut longer = input;
    longer.as_array_mut().unwrap().extend([
        json!({"type": "reasoning", "summary": []}),
        item.clone(),
        json!({"type": "function_call_output", "call_id": item["call_id"], "output": "Process exited with code 0"}),
    ]);
    let text = answer(Wire::Responses, &codex(longer));
    let events = Wire::Responses.events(&text, &meta());
    assert_eq!(
        names(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    let streamed: String = jsons(&events).iter().filter_map(|e| e["delta"].as_str()).collect();
    assert_eq!(streamed, "[demo model] The tool answered:\nProcess exited with code 0");
}

#[test]
fn responses_reach_custom_tools_and_namespaces() {
    let custom =
        answer(Wire::Responses, &codex(json!([said("demo:tool apply_patch {\"input\": \"*** Begin\"}")])));
    let item = &Wire::Responses.whole(&custom, &meta())["output"][0];
    assert_eq!((&item["type"], &item["input"]), (&json!("custom_tool_call"), &json!("*** Begin")));
    assert!(
        names(&Wire::Responses.events(&custom, &meta())).contains(&"response.custom_tool_call_input.delta")
    );
    for name in ["probe_tool", "mcp__probe__probe_tool"] {
        let prompt = format!("demo:tool {name} {{\"q\": 42}}");
        let grouped = answer(Wire::Responses, &codex(json!([said(&prompt)])));
        let item = &Wire::Responses.whole(&grouped, &meta())["output"][0];
        assert_eq!((&item["name"], &item["namespace"]), (&json!("probe_tool"), &json!("mcp__probe")));
    }
    let late = json!({"input": [
        {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "late"}]},
        said("hi"),
    ]});
    assert_eq!(Wire::Responses.parse(&late).unwrap().tools[0].name, "late");
    let text = Wire::Responses.parse(&json!({"input": "hi"})).unwrap();
    assert_eq!(text.turns, [Turn::User(vec!["hi".into()])]);
}

fn gemini_cli(contents: Value) -> Value {
    json!({
        "contents": contents,
        "systemInstruction": {"role": "user", "parts": [{"text": "You are an agent."}]},
        "tools": [{"functionDeclarations": [
            {"name": "write_file", "parametersJsonSchema": {"type": "object", "properties": {"file_path": {"type": "string", "description": "The path to the file to write to."}, "content": {"type": "string"}}, "required": ["file_path", "content"]}},
            {"name": "run_shell_command", "parameters": {"type": "OBJECT", "properties": {"command": {"type": "STRING"}, "is_background": {"type": "BOOLEAN"}}, "required": ["command", "is_background"]}}
        ]}],
        "generationConfig": {"temperature": 1, "topP": 0.95}
    })
}

#[test]
fn gemini_calls_a_tool_and_quotes_its_result() {
    let context = json!({"role": "user", "parts": [{"text": "<session_context>\nI'm working in /w\n</session_context>"}]});
    let prompt =
        json!({"role": "user", "parts": [{"text": "Write \"hi\" to a.txt and then run `cat a.txt`"}]});
    let call = answer(Wire::Gemini, &gemini_cli(json!([context, prompt])));
    let chunks = Wire::Gemini.events(&call, &meta());
    assert_eq!(chunks.len(), 1, "a call is one part");
    let candidate = &jsons(&chunks)[0]["candidates"][0];
    assert_eq!(candidate["finishReason"], "STOP");
    let part = candidate["content"]["parts"][0].clone();
    assert_eq!(part["functionCall"]["args"], json!({"file_path": "a.txt", "content": "hi"}));

    let model = |part: &Value| json!({"role": "model", "parts": [{"text": "hm", "thought": true}, part]});
    let response = |call: &Value, response: Value| json!({"role": "user", "parts": [{"functionResponse": {"id": call["functionCall"]["id"], "name": call["functionCall"]["name"], "response": response}}]});
    let first = response(&part, json!({"output": "created"}));
    let second = answer(Wire::Gemini, &gemini_cli(json!([context, prompt, model(&part), first])));
    let whole = Wire::Gemini.whole(&second, &meta());
    let next = whole["candidates"][0]["content"]["parts"][0].clone();
    assert_eq!(next["functionCall"]["name"], "run_shell_command");
    assert_eq!(next["functionCall"]["args"], json!({"command": "cat a.txt", "is_background": false}));

    let last = response(&next, json!({"error": "user cancelled"}));
    let text =
        answer(Wire::Gemini, &gemini_cli(json!([context, prompt, model(&part), first, model(&next), last])));
    let events = Wire::Gemini.events(&text, &meta());
    let chunks = jsons(&events);
    let streamed: String =
        chunks.iter().filter_map(|c| c["candidates"][0]["content"]["parts"][0]["text"].as_str()).collect();
    assert!(
        streamed.starts_with("[demo model]")
            && streamed.contains("created")
            && streamed.contains("user cancelled")
    );
    let (end, before) = chunks.split_last().unwrap();
    assert_eq!(end["candidates"][0]["finishReason"], "STOP");
    assert!(!before.is_empty() && before.iter().all(|c| c["candidates"][0].get("finishReason").is_none()));
}

#[test]
fn an_answer_that_must_be_json_is() {
    let schema = json!({"type": "object", "required": ["title", "score"], "properties": {"title": {"type": "string"}, "score": {"type": "integer"}}});
    let hi = json!([{"role": "user", "content": "hi"}]);
    let contents = json!([{"role": "user", "parts": [{"text": "hi"}]}]);
    let config = json!({"responseMimeType": "application/json", "responseJsonSchema": schema});
    for (wire, body) in [
        (
            Wire::Anthropic,
            json!({"messages": hi, "output_config": {"format": {"type": "json_schema", "schema": schema}}}),
        ),
        (
            Wire::Chat,
            json!({"messages": hi, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        ),
        (
            Wire::Responses,
            json!({"input": "hi", "text": {"format": {"type": "json_schema", "schema": schema}}}),
        ),
        (Wire::Gemini, json!({"contents": contents, "generationConfig": config})),
    ] {
        let Content::Text(text) = answer(wire, &body).content else { panic!("a text") };
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(
            value["title"].as_str().is_some_and(|t| t.starts_with("[demo model]")) && value["score"] == 1,
            "{text}"
        );
    }
}

#[test]
fn errors_have_the_shape_of_their_wire() {
    assert_eq!(Wire::Anthropic.error(529, "x")["error"]["type"], "overloaded_error");
    assert_eq!(Wire::Chat.error(429, "x")["error"]["type"], "rate_limit_error");
    assert_eq!(Wire::Gemini.error(400, "x")["error"]["status"], "INVALID_ARGUMENT");
    for wire in WIRES {
        assert_eq!(wire.error(500, "why")["error"]["message"], "why");
    }
}

#[test]
fn what_is_no_request_is_refused_by_field() {
    for (wire, body, field) in [
        (Wire::Anthropic, json!({}), "messages"),
        (Wire::Anthropic, json!({"messages": []}), "messages"),
        (Wire::Anthropic, json!({"messages": [{"role": "x"}]}), "messages.role"),
        (Wire::Anthropic, json!({"messages": [{"role": "user", "content": 1}]}), "messages.content"),
        (Wire::Chat, json!({"messages": [{"role": 1}]}), "messages.role"),
        (Wire::Chat, json!({"messages": "x"}), "messages"),
        (Wire::Chat, json!({"messages": [{"role": "user"}], "tools": 1}), "tools"),
        (Wire::Responses, json!({"input": []}), "input"),
        (Wire::Responses, json!({"input": "x", "tools": [{}]}), "tools.type"),
        (Wire::Gemini, json!({"contents": [{"role": "robot"}]}), "contents.role"),
        (Wire::Gemini, json!({}), "contents"),
    ] {
        match wire.parse(&body) {
            Err(BadRequest::Field { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{body}: {other:?}"),
        }
    }
    for wire in WIRES {
        assert!(matches!(wire.parse(&json!([1])), Err(BadRequest::NotObject)));
    }
}

/// JSON that looks enough like a request to get deep into a parser.
fn any_request() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "messages",
        "role",
        "content",
        "text",
        "type",
        "tools",
        "name",
        "function",
        "parameters",
        "input",
        "tool_calls",
        "arguments",
        "id",
        "call_id",
        "contents",
        "parts",
        "functionCall",
        "functionResponse",
        "response",
        "system",
        "instructions",
        "input_schema",
        "output",
        "tool_use_id",
        "functionDeclarations",
        "properties",
        "required",
    ]);
    let word = prop::sample::select(vec![
        "user",
        "assistant",
        "model",
        "tool",
        "message",
        "function",
        "custom",
        "namespace",
        "function_call",
        "function_call_output",
        "tool_use",
        "tool_result",
        "write",
        "bash",
        "run `ls`",
        "demo:tool t {}",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_parsed_or_refused(mut body in any_request(), inner in any_request()) {
        if let Value::Object(map) = &mut body {
            for key in ["messages", "input", "contents"] {
                map.insert(key.to_owned(), json!([inner.clone(), {"role": "user", "content": inner.clone(), "parts": [inner.clone()]}]));
            }
        }
        for wire in WIRES {
            if let Ok(conversation) = wire.parse(&body)
                && let Reply::Answer(answer) = decide(&conversation)
            {
                wire.whole(&answer, &meta());
                wire.events(&answer, &meta());
            }
        }
    }

    #[test]
    fn pieces_are_the_text(text in "\\PC*") {
        let pieces = pieces(&text);
        prop_assert_eq!(pieces.concat(), text.as_str());
        prop_assert!(pieces.len() <= 130 && pieces.iter().all(|p| !p.is_empty()));
    }
}
