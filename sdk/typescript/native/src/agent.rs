//! What agents say of themselves: which there are, and what the one of a session can do.

use agentos::{
    AgentCapabilities, AgentInfo, AgentRegistryEntry, PromptCapabilities, Session, SessionConfigOption,
    SessionMode, SessionModeState,
};
use napi::{Env, Result};
use napi_derive::napi;
use serde_json::{Map, Value, json};

use crate::failure::wait;
use crate::vm::Vm;

/// An agent that can be asked for.
#[napi(object, object_from_js = false)]
pub struct AgentShape {
    pub id: String,
    pub acp_adapter: String,
    pub agent_package: String,
    pub installed: bool,
    pub version: Option<String>,
}

impl From<AgentRegistryEntry> for AgentShape {
    fn from(entry: AgentRegistryEntry) -> Self {
        let AgentRegistryEntry { id, acp_adapter, agent_package, installed, version, .. } = entry;
        Self { id, acp_adapter, agent_package, installed, version }
    }
}

#[napi]
impl Vm {
    #[napi]
    pub fn list_agents(&self, env: &Env) -> Result<Vec<AgentShape>> {
        Ok(wait(env, self.vm.list_agents())?.into_iter().map(AgentShape::from).collect())
    }

    /// What the agent of a session said of itself, as JSON in the public shape. Never waits.
    #[napi]
    pub fn session_state(&self, env: &Env, session_id: String) -> Result<String> {
        Ok(state(&self.session(env, &session_id)?).to_string())
    }
}

fn state(session: &Session) -> Value {
    object([
        ("modes", session.modes().map(modes)),
        ("configOptions", Some(session.config_options().into_iter().map(option).collect())),
        ("capabilities", Some(capabilities(&session.capabilities()))),
        ("agentInfo", session.agent_info().map(agent_info)),
    ])
}

/// What nothing was said of is absent.
fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    let said = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(said.collect::<Map<_, _>>())
}

fn modes(state: SessionModeState) -> Value {
    let mode = |mode: SessionMode| {
        object([
            ("id", Some(mode.id.into())),
            ("name", mode.name.map(Value::from)),
            ("label", mode.label.map(Value::from)),
            ("description", mode.description.map(Value::from)),
        ])
    };
    let available: Value = state.available_modes.into_iter().map(mode).collect();
    json!({ "currentModeId": state.current_mode_id, "availableModes": available })
}

fn option(option: SessionConfigOption) -> Value {
    let values = option.allowed_values.into_iter();
    let values: Vec<Value> = values
        .map(|value| object([("id", Some(value.id.into())), ("label", value.label.map(Value::from))]))
        .collect();
    object([
        ("id", Some(option.id.into())),
        ("category", option.category.map(Value::from)),
        ("label", option.label.map(Value::from)),
        ("description", option.description.map(Value::from)),
        ("currentValue", option.current_value.map(Value::from)),
        ("allowedValues", Some(values).filter(|values| !values.is_empty()).map(Value::from)),
        ("readOnly", Some(option.read_only.into())),
    ])
}

fn capabilities(said: &AgentCapabilities) -> Value {
    let flag = |flag: Option<bool>| flag.map(Value::from);
    let PromptCapabilities { audio, embedded_context, image, .. } = said.prompt_capabilities;
    let prompt =
        object([("audio", flag(audio)), ("embeddedContext", flag(embedded_context)), ("image", flag(image))]);
    object([
        ("permissions", flag(said.permissions)),
        ("plan_mode", flag(said.plan_mode)),
        ("questions", flag(said.questions)),
        ("tool_calls", flag(said.tool_calls)),
        ("text_messages", flag(said.text_messages)),
        ("images", flag(said.images)),
        ("file_attachments", flag(said.file_attachments)),
        ("session_lifecycle", flag(said.session_lifecycle)),
        ("error_events", flag(said.error_events)),
        ("reasoning", flag(said.reasoning)),
        ("status", flag(said.status)),
        ("streaming_deltas", flag(said.streaming_deltas)),
        ("mcp_tools", flag(said.mcp_tools)),
        ("promptCapabilities", Some(prompt).filter(|said| *said != json!({}))),
    ])
}

fn agent_info(info: AgentInfo) -> Value {
    object([
        ("name", Some(info.name.into())),
        ("title", info.title.map(Value::from)),
        ("version", info.version.map(Value::from)),
    ])
}
