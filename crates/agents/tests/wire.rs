//! Pi's wire: what a real pi said, replayed, and what it must never be able to do, tried.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

use agentos_agents::wire::lines::{Line, Lines};
use agentos_agents::wire::message::Message;
use agentos_agents::wire::pi::PiWire;
use agentos_agents::wire::pi_rpc::{Command, MessageEnd, Output, Translator, Turn};
use agentos_agents::wire::{MAX_LINE_BYTES, Wire};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Records of pi 1.5.2 with a scripted model: one `{"dir", "msg"}` a line.
const RECORDING: &str = include_str!("data/pi-rpc-1.5.2.ndjson");

fn translator() -> Translator {
    let mut translator = Translator::new("/home/user/work");
    translator.session("pi-session", Some(128_000));
    translator
}

fn feed(translator: &mut Translator, record: &Value) -> Vec<Output> {
    translator.line(&Line::Whole(record.to_string().into_bytes().into()))
}

/// What one recorded turn became: its updates, the other outputs, and the turn.
struct Replayed {
    updates: Vec<Value>,
    others: Vec<Output>,
    settled: Option<bool>,
    turn: Turn,
}

/// Replays the turn whose prompt begins with this text.
fn replay(prompt: &str) -> Replayed {
    let records = RECORDING.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut records = records.skip_while(|record| {
        !record["msg"]["message"]
            .as_str()
            .is_some_and(|text| record["dir"] == "->" && text.starts_with(prompt))
    });
    assert!(records.next().is_some(), "no recorded prompt begins with {prompt}");
    let mut translator = translator();
    let mut replayed =
        Replayed { updates: Vec::new(), others: Vec::new(), settled: None, turn: Turn::default() };
    for record in records.take_while(|record| record["dir"] == "<-" || record["msg"]["type"] == "abort") {
        if record["dir"] == "->" {
            continue;
        }
        for output in feed(&mut translator, &record["msg"]) {
            match output {
                Output::Event(event) => {
                    let event: Value = serde_json::from_str(&event).unwrap();
                    assert_eq!(event["jsonrpc"], "2.0");
                    if event["method"] == "session/update" {
                        assert_eq!(event["params"]["sessionId"], "pi-session");
                        replayed.updates.push(event["params"]["update"].clone());
                    } else {
                        replayed.updates.push(event);
                    }
                }
                Output::Settled { aborted, turn } => {
                    replayed.settled = Some(aborted);
                    replayed.turn = turn;
                }
                other => replayed.others.push(other),
            }
        }
    }
    replayed
}

/// The tool calls' updates, each as its kind, status and what it shows.
fn tool_updates(replayed: &Replayed) -> Vec<&Value> {
    replayed.updates.iter().filter(|update| update["toolCallId"].is_string()).collect()
}

#[test]
fn a_plain_answer_is_a_thought_and_chunks_of_text() {
    let replayed = replay("hello there");
    let kinds: Vec<&str> = replayed.updates.iter().map(|u| u["sessionUpdate"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "agent_thought_chunk");
    assert!(kinds[1..].iter().all(|kind| *kind == "agent_message_chunk"), "{kinds:?}");
    let text: String = replayed.updates[1..].iter().map(|u| u["content"]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "[demo model] You said: hello there");
    assert_eq!(replayed.turn, Turn { spoke: true, tool_calls: 0, end: MessageEnd::Stop });
    assert_eq!(replayed.settled, Some(false));
    assert!(matches!(&replayed.others[..], [Output::Response { outcome: Ok(_), .. }]));
}

#[test]
fn writing_a_file_is_announced_shown_as_a_diff_and_completed() {
    let replayed = replay("TOOL write");
    let updates = tool_updates(&replayed);
    assert_eq!(updates[0]["sessionUpdate"], "tool_call");
    assert!(updates[1..].iter().all(|update| update["sessionUpdate"] == "tool_call_update"));
    let statuses: Vec<&Value> = updates.iter().map(|update| &update["status"]).collect();
    assert_eq!(statuses, ["pending", "pending", "in_progress", "completed"]);
    assert!(updates.iter().all(|update| update["toolCallId"] == "call_1"));
    let written = updates[1];
    let path = "/home/user/work/a.txt";
    assert_eq!(written["title"], format!("write: {path}"));
    assert_eq!(written["kind"], "edit");
    assert_eq!(written["rawInput"], json!({ "path": path, "content": "hi\n" }));
    assert_eq!(written["locations"], json!([{ "path": path }]));
    assert_eq!(
        written["content"],
        json!([{ "type": "diff", "path": path, "oldText": null, "newText": "hi\n" }])
    );
    assert_eq!(updates[3]["content"], Value::Null, "the diff stays what the call shows");
    assert_eq!(replayed.turn.tool_calls, 1);
}

#[test]
fn a_command_that_fails_is_a_failed_call_with_its_output() {
    let replayed = replay("TOOL bash");
    let updates = tool_updates(&replayed);
    assert_eq!(updates[1]["title"], "bash: echo out; echo err >&2; exit 3");
    assert_eq!(updates[1]["kind"], "execute");
    let end = updates.last().unwrap();
    assert_eq!(end["status"], "failed");
    let shown = end["content"][0]["content"]["text"].as_str().unwrap();
    assert!(shown.contains("out\n") && shown.contains("exited with code 3"), "{shown}");
}

#[test]
fn relative_paths_become_absolute_and_edits_diffs() {
    let replayed = replay("TOOL edit");
    let update = tool_updates(&replayed)[1];
    assert_eq!(update["locations"][0]["path"], "/home/user/work/a.txt");
    let diff = json!([{ "type": "diff", "path": "/home/user/work/a.txt", "oldText": "hi", "newText": "ho" }]);
    assert_eq!(update["content"], diff);
}

#[test]
fn an_empty_answer_a_model_error_and_an_abort_are_told_apart() {
    assert_eq!(replay("EMPTY").turn, Turn { end: MessageEnd::Stop, ..Turn::default() });
    let MessageEnd::Error(reason) = replay("FAIL400").turn.end else { panic!() };
    assert!(reason.contains("400") && reason.contains("scripted failure"), "{reason}");
    let aborted = replay("HANG");
    assert_eq!(aborted.turn.end, MessageEnd::Aborted);
    assert_eq!(aborted.settled, Some(true));
}

#[test]
fn retries_are_shown_and_the_last_reason_is_the_turns() {
    let replayed = replay("FAIL500");
    let retries = replayed.updates.iter().filter(|update| update["method"] == "_pi/auto_retry_start").count();
    assert_eq!(retries, 3);
    assert!(matches!(&replayed.turn.end, MessageEnd::Error(reason) if reason.contains("500")));
}

#[test]
fn text_that_its_deltas_left_out_is_made_up_for_once() {
    let mut translator = translator();
    let event = |event: Value| json!({ "type": "message_update", "assistantMessageEvent": event });
    feed(&mut translator, &json!({ "type": "message_start", "message": { "role": "assistant" } }));
    let mut said = String::new();
    let mut hear = |translator: &mut Translator, record: Value| {
        for output in feed(translator, &event(record)) {
            let Output::Event(text) = output else { panic!("{output:?}") };
            let update: Value = serde_json::from_str(&text).unwrap();
            said.push_str(update["params"]["update"]["content"]["text"].as_str().unwrap());
        }
        said.clone()
    };
    hear(&mut translator, json!({ "type": "text_delta", "contentIndex": 0, "delta": "he" }));
    hear(&mut translator, json!({ "type": "text_end", "contentIndex": 0, "content": "hello" }));
    let first = hear(&mut translator, json!({ "type": "text_end", "contentIndex": 1, "content": " you" }));
    assert_eq!(first, "hello you");
    feed(&mut translator, &json!({ "type": "message_start", "message": { "role": "assistant" } }));
    let both = hear(&mut translator, json!({ "type": "text_delta", "contentIndex": 0, "delta": "next" }));
    assert_eq!(both, "hello you\n\nnext", "a second message begins on a line of its own");
}

#[test]
fn records_that_are_too_long_matter_only_if_they_say_something() {
    let mut translator = translator();
    let long = |head: &[u8]| Line::TooLong { head: bytes::Bytes::copy_from_slice(head), length: 99 };
    assert_eq!(translator.line(&long(br#"{"type":"agent_end","messages":[{"#)), []);
    assert_eq!(translator.line(&long(br#"{"type":"message_end","#)), [Output::TooLong { length: 99 }]);
    assert_eq!(translator.line(&long(b"xxxxx")), [Output::TooLong { length: 99 }]);
}

#[test]
fn what_is_no_record_is_garbage_and_unknown_records_are_kept() {
    let mut translator = translator();
    let mut line = |text: &str| translator.line(&Line::Whole(bytes::Bytes::copy_from_slice(text.as_bytes())));
    for garbage in
        ["x", "{", "[]", "7", "null", r#"{"kind":"a"}"#, r#"{"type":7}"#, r#"{"type":"message_update"}"#]
    {
        assert_eq!(line(garbage), [Output::Garbage], "{garbage}");
    }
    assert_eq!(line(""), []);
    let [Output::Event(kept)] = &line(r#"{"type":"new_thing","a":1}"#)[..] else { panic!() };
    let kept: Value = serde_json::from_str(kept).unwrap();
    assert_eq!((&kept["method"], &kept["params"]["a"]), (&json!("_pi/new_thing"), &json!(1)));
}

#[test]
fn a_call_whose_id_is_too_long_is_passed_on_and_not_remembered() {
    let mut translator = translator();
    let mut start = |id: String| {
        feed(&mut translator, &json!({ "type": "tool_execution_start", "toolCallId": id, "toolName": "ls" }))
    };
    let long = start("x".repeat(257));
    assert!(matches!(&long[..], [Output::Event(event)] if event.contains("tool_call")), "{long:?}");
    start("y".repeat(256));
    assert_eq!(translator.running_tools(), 1, "only the short one");
}

#[test]
fn commands_are_one_line_each() {
    let command = Command::Prompt { message: "a\nb\u{2028}".into(), images: vec![] };
    let line = command.encode("7");
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    let record: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(record, json!({ "id": "7", "type": "prompt", "message": "a\nb\u{2028}" }));
}

/// Every event is one JSON-RPC notification whatever the agent sent.
fn assert_well_formed(outputs: &[Output]) {
    for output in outputs {
        if let Output::Event(event) = output {
            let event: Value = serde_json::from_str(event).expect("an event is JSON");
            assert!(event["method"].is_string() && !event["params"].is_null(), "{event}");
        }
    }
}

fn translate_all(bytes: &[u8]) {
    let mut lines = Lines::new(MAX_LINE_BYTES);
    let mut translator = translator();
    lines.push(bytes);
    while let Some(line) = lines.next_line() {
        assert_well_formed(&translator.line(&line));
    }
    if let Some(line) = lines.finish() {
        assert_well_formed(&translator.line(&line));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(
                "(type|id|path|edits|content|text|message|role|delta|args|[a-z]{1,4})",
                inner,
                0..4
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[test]
fn an_answer_to_nothing_is_told_from_one_that_is_waited_for() {
    let mut wire = Wire::Pi(Box::new(PiWire::new("/work", None)));
    let mut understood = |record: Value| wire.line(&Line::Whole(record.to_string().into())).messages;
    for id in [json!("prompt-7"), Value::Null] {
        let answer = json!({ "type": "response", "id": id, "success": true });
        assert_eq!(understood(answer), [Message::Unasked]);
    }
    assert_eq!(
        understood(json!({ "type": "response", "id": "abort", "success": true })),
        [],
        "we say that ourselves"
    );
    assert_eq!(understood(json!({ "type": "agent_start" })), []);
}

proptest! {
    #[test]
    fn no_bytes_break_the_translator(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        translate_all(&bytes);
    }

    #[test]
    fn no_damage_to_real_traffic_breaks_the_translator(
        start in 0usize..RECORDING.len(), damage in prop::collection::vec((0usize..4000, any::<u8>()), 0..8),
    ) {
        // The recording's lines hold the records one level down; as lines of their own they are what pi sent.
        let records: Vec<String> = RECORDING[..]
            .lines()
            .skip(start % 200)
            .take(12)
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["msg"].to_string())
            .collect();
        let mut bytes = records.join("\n").into_bytes();
        for (at, byte) in damage {
            let length = bytes.len().max(1);
            if let Some(slot) = bytes.get_mut(at % length) {
                *slot = byte;
            }
        }
        translate_all(&bytes);
    }

    #[test]
    fn no_value_in_any_field_breaks_the_translator(
        kind in "(message_update|message_end|message_start|tool_execution_start|tool_execution_update|tool_execution_end|response|agent_settled|extension_ui_request|thinking_level_changed|other)",
        mut fields in prop::collection::btree_map(
            "(assistantMessageEvent|message|toolCallId|toolName|args|result|partialResult|id|success|data|method|title|level)",
            any_json(), 0..6),
    ) {
        fields.insert("type".into(), Value::from(kind));
        let record = Value::Object(fields.into_iter().collect());
        translate_all(record.to_string().as_bytes());
    }
}
