//! `pi --mode rpc`: JSON lines that are not ACP, translated to its shapes.
//!
//! ```text
//! stdin   {"id":"7","type":"prompt",…}
//! stdout  {"id":"7","type":"response","success":true,…}          the prompt is taken
//!         agent_start, turn_start, message_start, message_update…, tool_execution_*, message_end, turn_end
//!         agent_end                                              one run ended; a retry may follow
//!         agent_settled                                          nothing more comes by itself: the turn is over
//! ```
//!
//! (pi 1.5.2: docs/rpc.md, rpc-commands.md, json.md of its package.) An error of the model ends a turn like any
//! other; its text stands in the last assistant message, which is why [`Turn`] keeps that message's end.
//!
//! Records that say nothing a session needs (`agent_end` repeats every message of the run and may be huge) are never
//! taken apart. Records of unknown types are passed on as `_pi/TYPE`.

mod tools;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::acp::{self, ToolUpdate};
use super::lines::Line;
use super::message::MAX_PARSED_BYTES;
use tools::ToolCalls;

/// A command to pi.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Its model, session and settings.
    GetState,
    /// The models it is configured for.
    GetModels,
    /// The thinking levels of its model.
    GetThinkingLevels,
    /// What a prompt may begin with.
    GetCommands,
    /// A user's turn.
    Prompt {
        /// The text.
        message: String,
        /// Images, as pi wants them.
        images: Vec<Value>,
    },
    /// Ends the running turn.
    Abort,
    /// Changes the model.
    SetModel {
        /// The provider.
        provider: String,
        /// The model.
        model: String,
    },
    /// Changes the thinking level.
    SetThinkingLevel {
        /// The level.
        level: String,
    },
    /// Declines a dialog of an extension.
    DeclineDialog,
}

impl Command {
    /// The record for it, with its LF.
    #[must_use]
    pub fn encode(&self, id: &str) -> Vec<u8> {
        let mut record = match self {
            Self::GetState => json!({ "type": "get_state" }),
            Self::GetModels => json!({ "type": "get_available_models" }),
            Self::GetThinkingLevels => json!({ "type": "get_available_thinking_levels" }),
            Self::GetCommands => json!({ "type": "get_commands" }),
            Self::Prompt { message, images } if images.is_empty() => {
                json!({ "type": "prompt", "message": message })
            }
            Self::Prompt { message, images } => {
                json!({ "type": "prompt", "message": message, "images": images })
            }
            Self::Abort => json!({ "type": "abort" }),
            Self::SetModel { provider, model } => {
                json!({ "type": "set_model", "provider": provider, "modelId": model })
            }
            Self::SetThinkingLevel { level } => json!({ "type": "set_thinking_level", "level": level }),
            Self::DeclineDialog => json!({ "type": "extension_ui_response", "cancelled": true }),
        };
        record["id"] = json!(id);
        let mut line = record.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// What one line of pi's output means.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The answer to a command.
    Response {
        /// The command's id; empty where it answers none.
        id: String,
        /// What it brought, or why it failed.
        outcome: Result<Value, String>,
    },
    /// A notification for the session's events, as JSON text.
    Event(String),
    /// The turn is over.
    Settled {
        /// Whether it was aborted.
        aborted: bool,
        /// What it brought.
        turn: Turn,
    },
    /// An extension asks the user something and waits.
    Dialog {
        /// The id to answer with.
        id: String,
        /// What it asks.
        title: String,
    },
    /// The line is no record.
    Garbage,
    /// The record is too long to be read, and its kind matters.
    TooLong {
        /// Its length.
        length: u64,
    },
}

/// How an assistant message ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MessageEnd {
    /// There was none yet.
    #[default]
    None,
    /// As it should.
    Stop,
    /// At the model's limit of tokens.
    Length,
    /// By an abort.
    Aborted,
    /// By an error of the model or its address, in pi's words.
    Error(String),
}

/// What a turn has brought so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// Whether the agent has said something.
    pub spoke: bool,
    /// How many tool calls there were.
    pub tool_calls: u64,
    /// How the last assistant message ended.
    pub end: MessageEnd,
}

/// The translator of one pi process.
#[derive(Debug)]
pub struct Translator {
    session_id: String,
    context_window: Option<u64>,
    turn: Turn,
    tools: ToolCalls,
    /// Bytes of text that were passed on of each block of the current message.
    passed_on: BTreeMap<u64, usize>,
    /// Whether the current message has passed on text.
    speaking: bool,
}

/// A message has fewer blocks than this; beyond it, text is passed on without being compared with its end.
const MAX_BLOCKS: usize = 4096;

impl Translator {
    /// A translator for a process that works in `cwd`.
    #[must_use]
    pub fn new(cwd: &str) -> Self {
        Self {
            session_id: String::new(),
            context_window: None,
            turn: Turn::default(),
            tools: ToolCalls::new(cwd),
            passed_on: BTreeMap::new(),
            speaking: false,
        }
    }

    /// Names the session in later events, and its model's window.
    pub fn session(&mut self, session_id: &str, context_window: Option<u64>) {
        session_id.clone_into(&mut self.session_id);
        self.context_window = context_window;
    }

    /// The turn so far.
    #[must_use]
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    /// How many tools run now.
    #[must_use]
    pub fn running_tools(&self) -> usize {
        self.tools.running()
    }

    /// Begins a turn before the last one has settled; what that one has brought is given back.
    pub fn take_turn(&mut self) -> Turn {
        self.tools.clear();
        self.speaking = false;
        std::mem::take(&mut self.turn)
    }

    /// The meanings of one line.
    pub fn line(&mut self, line: &Line) -> Vec<Output> {
        let record = match line {
            Line::Whole(record) if record.is_empty() => return Vec::new(),
            Line::Whole(record) => record,
            // These repeat what was said before.
            Line::TooLong { head, .. }
                if ["agent_end", "turn_end", "message_start"].iter().any(|kind| is_of(head, kind)) =>
            {
                return Vec::new();
            }
            Line::TooLong { length, .. } => return vec![Output::TooLong { length: *length }],
        };
        let Ok(Head { kind, .. }) = serde_json::from_slice::<Head<'_>>(record) else {
            return vec![Output::Garbage];
        };
        let kind = kind.into_owned();
        self.record(&kind, record).unwrap_or_else(|_| vec![Output::Garbage])
    }

    fn record(&mut self, kind: &str, record: &[u8]) -> serde_json::Result<Vec<Output>> {
        Ok(match kind {
            "response" => vec![response(serde_json::from_slice(record)?)],
            "message_update" => self.message_update(&serde_json::from_slice(record)?),
            "message_end" => self.message_end(&serde_json::from_slice(record)?),
            "tool_execution_start" => {
                let call: tools::Execution<'_> = serde_json::from_slice(record)?;
                let update = self.tools.started(&call);
                self.events(update)
            }
            "tool_execution_update" => {
                let call: tools::Execution<'_> = serde_json::from_slice(record)?;
                let update = self.tools.progressed(&call);
                self.events(update)
            }
            "tool_execution_end" => {
                let call: tools::Execution<'_> = serde_json::from_slice(record)?;
                let update = self.tools.ended(&call);
                self.events(update)
            }
            "agent_settled" => {
                let settled: Settled = serde_json::from_slice(record)?;
                vec![Output::Settled { aborted: settled.aborted, turn: self.take_turn() }]
            }
            "thinking_level_changed" => {
                let changed: LevelChanged<'_> = serde_json::from_slice(record)?;
                let update =
                    json!({ "sessionUpdate": "current_mode_update", "currentModeId": changed.level });
                vec![Output::Event(acp::session_update(&self.session_id, &update))]
            }
            "extension_ui_request" => dialog(serde_json::from_slice(record)?),
            "message_start" => {
                self.passed_on.clear();
                self.speaking = false;
                Vec::new()
            }
            "agent_start" | "agent_end" | "turn_start" | "turn_end" | "queue_update" => Vec::new(),
            // Retries, compactions, and whatever later versions say.
            other => {
                let params: &RawValue = serde_json::from_slice(record)?;
                vec![Output::Event(acp::notification(&format!("_pi/{other}"), &params))]
            }
        })
    }

    fn message_update(&mut self, update: &MessageUpdate<'_>) -> Vec<Output> {
        let event = &update.event;
        let delta = event.delta.as_deref().unwrap_or_default();
        match event.kind.as_ref() {
            "text_delta" => self.text(event.index, delta),
            // The end repeats the block; what its deltas left out is made up for.
            "text_end" => {
                let passed = self.passed_on.get(&event.index).copied().unwrap_or(0);
                let whole = event.content.as_deref().unwrap_or_default();
                let rest = whole.get(passed..).unwrap_or_default().to_owned();
                self.text(event.index, &rest)
            }
            "thinking_delta" if !delta.is_empty() => {
                vec![Output::Event(acp::session_update(
                    &self.session_id,
                    &acp::chunk("agent_thought_chunk", delta),
                ))]
            }
            "toolcall_start" => {
                let Some((id, name)) = event.id.as_deref().zip(event.tool_name.as_deref()) else {
                    return Vec::new();
                };
                self.turn.tool_calls += 1;
                let update = self.tools.announced(id, name);
                self.events(update)
            }
            "toolcall_end" => {
                let Some(call) = &event.tool_call else { return Vec::new() };
                let update = self.tools.written(&call.id, &call.name, call.arguments);
                self.events(update)
            }
            _ => Vec::new(),
        }
    }

    fn text(&mut self, index: u64, delta: &str) -> Vec<Output> {
        if delta.is_empty() {
            return Vec::new();
        }
        if self.passed_on.len() < MAX_BLOCKS || self.passed_on.contains_key(&index) {
            *self.passed_on.entry(index).or_default() += delta.len();
        }
        // A message after a tool call begins on a line of its own; the wire has nothing else to part them.
        let parted: Cow<'_, str> =
            if !self.speaking && self.turn.spoke { format!("\n\n{delta}").into() } else { delta.into() };
        (self.speaking, self.turn.spoke) = (true, true);
        vec![Output::Event(acp::session_update(
            &self.session_id,
            &acp::chunk("agent_message_chunk", &parted),
        ))]
    }

    fn message_end(&mut self, record: &MessageRecord<'_>) -> Vec<Output> {
        let Ok(message) = serde_json::from_str::<Message<'_>>(record.message.get()) else {
            return Vec::new();
        };
        if message.role != "assistant" {
            return Vec::new();
        }
        self.turn.end = match message.stop_reason.as_deref() {
            Some("error") => {
                let reason = message.error_message.as_deref().unwrap_or("the model failed without a reason");
                MessageEnd::Error(reason.to_owned())
            }
            Some("aborted") => MessageEnd::Aborted,
            Some("length") => MessageEnd::Length,
            _ => MessageEnd::Stop,
        };
        let used = message.usage.map_or(0, |usage| usage.total_tokens);
        match self.context_window {
            Some(size) if used > 0 => {
                let update = json!({ "sessionUpdate": "usage_update", "used": used, "size": size });
                vec![Output::Event(acp::session_update(&self.session_id, &update))]
            }
            _ => Vec::new(),
        }
    }

    fn events(&self, update: Option<ToolUpdate<'_>>) -> Vec<Output> {
        update
            .map(|update| Output::Event(acp::session_update(&self.session_id, &update)))
            .into_iter()
            .collect()
    }
}

/// Whether the beginning of a record says that it is of a type; pi writes the type first.
fn is_of(head: &[u8], kind: &str) -> bool {
    let mut expected = br#"{"type":""#.to_vec();
    expected.extend_from_slice(kind.as_bytes());
    expected.push(b'"');
    head.starts_with(&expected)
}

fn response(response: Response<'_>) -> Output {
    // Without an id it answers nothing we asked; pi sends such to lines that it could not parse.
    let id = response.id.map(Cow::into_owned).unwrap_or_default();
    let outcome = if response.success {
        let data = response.data.map(RawValue::get).filter(|data| data.len() <= MAX_PARSED_BYTES);
        Ok(data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or(Value::Null))
    } else {
        Err(response.error.map_or_else(|| "no reason given".to_owned(), Cow::into_owned))
    };
    Output::Response { id, outcome }
}

fn dialog(request: DialogRequest<'_>) -> Vec<Output> {
    match request.method.as_ref() {
        "select" | "confirm" | "input" | "editor" => {
            let title =
                request.title.map_or_else(|| "a question without a title".to_owned(), Cow::into_owned);
            vec![Output::Dialog { id: request.id.into_owned(), title }]
        }
        "notify" => {
            let params = json!({ "message": request.message, "type": request.notify_type });
            vec![Output::Event(acp::notification("_pi/notify", &params))]
        }
        // Title bars, widgets and status lines of a terminal that isn't there.
        _ => Vec::new(),
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    success: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct MessageUpdate<'a> {
    #[serde(rename = "assistantMessageEvent", borrow)]
    event: AssistantEvent<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AssistantEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(rename = "contentIndex", default)]
    index: u64,
    #[serde(borrow)]
    delta: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tool_name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tool_call: Option<ToolCall<'a>>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct MessageRecord<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error_message: Option<Cow<'a, str>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    #[serde(default)]
    total_tokens: u64,
}

#[derive(Deserialize)]
struct Settled {
    #[serde(default)]
    aborted: bool,
}

#[derive(Deserialize)]
struct LevelChanged<'a> {
    #[serde(borrow)]
    level: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DialogRequest<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    title: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow)]
    notify_type: Option<Cow<'a, str>>,
}
