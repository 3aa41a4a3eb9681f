//! Pi's tool calls as ACP tells them: announced, written, started, progressed, ended.
//!
//! A call is a `tool_call` the first time it is heard of and a `tool_call_update` ever after, whichever record came
//! first. Only calls that have not ended are remembered, so a session of a million calls costs no more than its open
//! ones.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::wire::acp::{self, Location, ToolKind, ToolStatus, ToolUpdate};
use crate::wire::message::MAX_PARSED_BYTES;

/// Calls that may be open at once; a model asks for a handful. What is beyond is passed on without being remembered.
const MAX_OPEN_CALLS: usize = 4096;
/// An id is the agent's own and may be as long as a record; models use a few dozen bytes. The calls of a longer one are
/// passed on without being remembered.
const MAX_ID_BYTES: usize = 256;
/// A result's content says the same in ACP's shape; a raw one beyond this would only double the transcript.
const MAX_RAW_OUTPUT_BYTES: usize = 64 << 10;
/// A title is one line for people.
const MAX_TITLE_CHARS: usize = 200;

/// One `tool_execution_*` record.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Execution<'a> {
    #[serde(borrow)]
    tool_call_id: Cow<'a, str>,
    #[serde(borrow, default)]
    tool_name: Cow<'a, str>,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
    #[serde(borrow)]
    partial_result: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    is_error: bool,
}

#[derive(Deserialize)]
struct ToolResult<'a> {
    #[serde(borrow, default)]
    content: Vec<Block<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Block<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<Cow<'a, str>>,
    #[serde(borrow)]
    mime_type: Option<Cow<'a, str>>,
}

/// The calls of one process that have not ended.
#[derive(Debug)]
pub(super) struct ToolCalls {
    cwd: String,
    /// By id, whether the call runs.
    open: HashMap<String, bool>,
}

impl ToolCalls {
    pub(super) fn new(cwd: &str) -> Self {
        Self { cwd: cwd.to_owned(), open: HashMap::new() }
    }

    /// How many calls run now.
    pub(super) fn running(&self) -> usize {
        self.open.values().filter(|running| **running).count()
    }

    /// Forgets calls that a turn left open.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// The model begins to write a call.
    pub(super) fn announced<'a>(&mut self, id: &'a str, name: &str) -> Option<ToolUpdate<'a>> {
        let mut update = ToolUpdate::status(id, ToolStatus::Pending);
        self.introduce(&mut update, id, false);
        update.title = Some(title(name, &Value::Null));
        update.kind = Some(kind(name));
        Some(update)
    }

    /// The model has written a call.
    pub(super) fn written<'a>(
        &mut self,
        id: &'a str,
        name: &str,
        args: Option<&'a RawValue>,
    ) -> Option<ToolUpdate<'a>> {
        let mut update = ToolUpdate::status(id, ToolStatus::Pending);
        self.introduce(&mut update, id, false);
        self.describe(&mut update, name, args);
        Some(update)
    }

    /// The call runs.
    pub(super) fn started<'a>(&mut self, call: &'a Execution<'_>) -> Option<ToolUpdate<'a>> {
        let mut update = ToolUpdate::status(&call.tool_call_id, ToolStatus::InProgress);
        if self.introduce(&mut update, &call.tool_call_id, true) {
            self.describe(&mut update, &call.tool_name, call.args);
        }
        Some(update)
    }

    /// The call shows something while it runs.
    pub(super) fn progressed<'a>(&mut self, call: &'a Execution<'_>) -> Option<ToolUpdate<'a>> {
        let mut update = ToolUpdate::status(&call.tool_call_id, ToolStatus::InProgress);
        self.introduce(&mut update, &call.tool_call_id, true);
        update.content = contents(call.partial_result);
        (!update.content.is_empty()).then_some(update)
    }

    /// The call has ended.
    pub(super) fn ended<'a>(&mut self, call: &'a Execution<'_>) -> Option<ToolUpdate<'a>> {
        let status = if call.is_error { ToolStatus::Failed } else { ToolStatus::Completed };
        let mut update = ToolUpdate::status(&call.tool_call_id, status);
        if self.introduce(&mut update, &call.tool_call_id, false) {
            self.describe(&mut update, &call.tool_name, call.args);
        }
        self.open.remove(call.tool_call_id.as_ref());
        // The content of an update replaces the former one: what an edit changed is worth more than that it worked.
        if call.is_error || kind(&call.tool_name) != ToolKind::Edit {
            update.content = contents(call.result);
        }
        update.raw_output = call.result.filter(|result| result.get().len() <= MAX_RAW_OUTPUT_BYTES);
        Some(update)
    }

    /// Makes the update the call's first if it is; true then.
    fn introduce(&mut self, update: &mut ToolUpdate<'_>, id: &str, running: bool) -> bool {
        if let Some(state) = self.open.get_mut(id) {
            *state |= running;
            return false;
        }
        if self.open.len() < MAX_OPEN_CALLS && id.len() <= MAX_ID_BYTES {
            self.open.insert(id.to_owned(), running);
        }
        update.session_update = "tool_call";
        true
    }

    fn describe<'a>(&self, update: &mut ToolUpdate<'a>, name: &str, args: Option<&'a RawValue>) {
        let small = args.map(RawValue::get).filter(|args| args.len() <= MAX_PARSED_BYTES);
        let parsed = small.and_then(|args| serde_json::from_str::<Value>(args).ok()).unwrap_or(Value::Null);
        update.title = Some(title(name, &parsed));
        update.kind = Some(kind(name));
        update.raw_input = args;
        if let Some(path) = parsed["path"].as_str() {
            let path = self.absolute(path);
            update.content = diffs(name, &path, &parsed);
            update.locations = vec![Location { path, line: parsed["offset"].as_u64() }];
        }
    }

    /// ACP's paths are absolute, pi takes relative ones too.
    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') || path.starts_with('~') {
            return path.to_owned();
        }
        format!("{}/{}", self.cwd.trim_end_matches('/'), path.trim_start_matches("./"))
    }
}

fn kind(name: &str) -> ToolKind {
    match name {
        "read" => ToolKind::Read,
        "write" | "edit" => ToolKind::Edit,
        "bash" | "powershell" | "codemode" => ToolKind::Execute,
        "grep" | "find" | "ls" | "tool_search" => ToolKind::Search,
        "web_fetch" | "web_search" => ToolKind::Fetch,
        _ => ToolKind::Other,
    }
}

fn title(name: &str, args: &Value) -> String {
    let subject = ["command", "path", "pattern", "query", "url"].iter().find_map(|key| args[*key].as_str());
    let subject = subject.and_then(|subject| subject.lines().next());
    match subject {
        Some(subject) => format!("{name}: {}", subject.chars().take(MAX_TITLE_CHARS).collect::<String>()),
        None => name.chars().take(MAX_TITLE_CHARS).collect(),
    }
}

/// What a call is about to change, from its arguments.
fn diffs(name: &str, path: &str, args: &Value) -> Vec<Value> {
    match name {
        "write" => args["content"].as_str().map(|new| acp::tool_diff(path, None, new)).into_iter().collect(),
        "edit" => {
            let edits = args["edits"].as_array().map(Vec::as_slice).unwrap_or_default();
            let pair = |edit: &Value| {
                Some((edit["oldText"].as_str()?.to_owned(), edit["newText"].as_str()?.to_owned()))
            };
            edits.iter().filter_map(pair).map(|(old, new)| acp::tool_diff(path, Some(&old), &new)).collect()
        }
        _ => Vec::new(),
    }
}

/// A result's texts and images.
fn contents(result: Option<&RawValue>) -> Vec<Value> {
    let parsed = result.and_then(|result| serde_json::from_str::<ToolResult<'_>>(result.get()).ok());
    let blocks = parsed.map(|result| result.content).unwrap_or_default();
    let show = |block: Block<'_>| match (block.kind.as_ref(), block.text, block.data) {
        ("text", Some(text), _) if !text.is_empty() => Some(acp::tool_text(&text)),
        ("image", _, Some(data)) => {
            let image = serde_json::json!({ "type": "image", "data": data, "mimeType": block.mime_type });
            Some(serde_json::json!({ "type": "content", "content": image }))
        }
        _ => None,
    };
    blocks.into_iter().filter_map(show).collect()
}
