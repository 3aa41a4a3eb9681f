//! What an agent says of itself: modes, options, capabilities, name. Read from ACP's JSON once, leniently: agents add
//! and leave out members.

use serde_json::Value;

/// A mode the agent can be in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionMode {
    /// What `set_mode` takes.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// What people are shown, where it differs from the name.
    pub label: Option<String>,
    /// What it does.
    pub description: Option<String>,
}

/// The agent's modes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionModeState {
    /// The one it is in.
    pub current_mode_id: String,
    /// All of them.
    pub available_modes: Vec<SessionMode>,
}

/// A configuration option of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionConfigOption {
    /// Its id.
    pub id: String,
    /// What it is about, such as `model` or `thought_level`.
    pub category: Option<String>,
    /// What people are shown.
    pub label: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// Its value now.
    pub current_value: Option<String>,
    /// The values it can have; empty where any will do.
    pub allowed_values: Vec<AllowedValue>,
    /// Whether it can be set at all.
    pub read_only: bool,
}

/// A value an option can have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AllowedValue {
    /// The value.
    pub id: String,
    /// What people are shown.
    pub label: Option<String>,
}

/// What the agent said it can do; `None` where it said nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentCapabilities {
    /// It asks for permission.
    pub permissions: Option<bool>,
    /// It has a planning mode.
    pub plan_mode: Option<bool>,
    /// It asks questions back.
    pub questions: Option<bool>,
    /// It reports its tool calls.
    pub tool_calls: Option<bool>,
    /// It sends text.
    pub text_messages: Option<bool>,
    /// It takes images.
    pub images: Option<bool>,
    /// It takes files.
    pub file_attachments: Option<bool>,
    /// It reports the life of its session.
    pub session_lifecycle: Option<bool>,
    /// It reports errors as events.
    pub error_events: Option<bool>,
    /// It reports its reasoning.
    pub reasoning: Option<bool>,
    /// It reports its status.
    pub status: Option<bool>,
    /// It sends text as it comes.
    pub streaming_deltas: Option<bool>,
    /// It uses tools of MCP servers.
    pub mcp_tools: Option<bool>,
    /// What it takes in prompts.
    pub prompt_capabilities: PromptCapabilities,
    /// The agent's own words, all of them.
    pub raw: Value,
}

/// What an agent takes in prompts, beside text; `None` where it said nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptCapabilities {
    /// Audio.
    pub audio: Option<bool>,
    /// Embedded resources.
    pub embedded_context: Option<bool>,
    /// Images.
    pub image: Option<bool>,
}

/// Who the agent said it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentInfo {
    /// Its name.
    pub name: String,
    /// Its name for people.
    pub title: Option<String>,
    /// Its version.
    pub version: Option<String>,
}

/// What the client knows of a session's agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionState {
    pub(crate) modes: Option<SessionModeState>,
    pub(crate) config_options: Vec<SessionConfigOption>,
    /// Whether the agent has models beside its options.
    pub(crate) has_models: bool,
    pub(crate) capabilities: AgentCapabilities,
    pub(crate) agent_info: Option<AgentInfo>,
}

impl SessionState {
    /// From the results of `initialize` and `session/new`.
    pub(crate) fn read(initialize: &Value, session: &Value) -> Self {
        let mut state = Self {
            capabilities: capabilities(&initialize["agentCapabilities"]),
            agent_info: agent_info(&initialize["agentInfo"]),
            ..Self::default()
        };
        state.renew(session);
        state
    }

    /// Takes over the session's modes and options as they are now.
    pub(crate) fn renew(&mut self, session: &Value) {
        if session.is_object() {
            self.modes = modes(&session["modes"]);
            self.config_options = config_options(&session["configOptions"]);
            self.has_models = session["models"].is_object();
        }
    }

    /// The id of the option of this category.
    pub(crate) fn option_of(&self, category: &str) -> Option<String> {
        let fits = |option: &&SessionConfigOption| {
            option.category.as_deref() == Some(category) || option.id == category
        };
        self.config_options.iter().find(fits).map(|option| option.id.clone())
    }

    pub(crate) fn option_ids(&self) -> Vec<String> {
        self.config_options.iter().map(|option| option.id.clone()).collect()
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn list<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    value.as_array().into_iter().flatten().filter_map(read).collect()
}

fn modes(value: &Value) -> Option<SessionModeState> {
    let mode = |mode: &Value| {
        Some(SessionMode {
            id: text(&mode["id"])?,
            name: text(&mode["name"]),
            label: text(&mode["label"]),
            description: text(&mode["description"]),
        })
    };
    let current_mode_id = text(&value["currentModeId"])?;
    Some(SessionModeState { current_mode_id, available_modes: list(&value["availableModes"], mode) })
}

fn config_options(value: &Value) -> Vec<SessionConfigOption> {
    list(value, |option| {
        Some(SessionConfigOption {
            id: text(&option["id"])?,
            category: text(&option["category"]),
            label: text(&option["label"]).or_else(|| text(&option["name"])),
            description: text(&option["description"]),
            current_value: scalar(&option["currentValue"]),
            allowed_values: allowed_values(&option["options"]),
            read_only: option["readOnly"].as_bool().unwrap_or(false),
        })
    })
}

/// ACP lists values directly or in groups.
fn allowed_values(value: &Value) -> Vec<AllowedValue> {
    let one = |entry: &Value| {
        let id = text(&entry["value"]).or_else(|| text(&entry["id"]))?;
        Some(AllowedValue { id, label: text(&entry["name"]).or_else(|| text(&entry["label"])) })
    };
    let mut values = Vec::new();
    for entry in value.as_array().into_iter().flatten() {
        match &entry["options"] {
            Value::Array(_) => values.extend(list(&entry["options"], one)),
            _ => values.extend(one(entry)),
        }
    }
    values
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

fn capabilities(value: &Value) -> AgentCapabilities {
    let flag = |name: &str| value[name].as_bool();
    let prompt = &value["promptCapabilities"];
    AgentCapabilities {
        permissions: flag("permissions"),
        plan_mode: flag("plan_mode"),
        questions: flag("questions"),
        tool_calls: flag("tool_calls"),
        text_messages: flag("text_messages"),
        images: flag("images"),
        file_attachments: flag("file_attachments"),
        session_lifecycle: flag("session_lifecycle"),
        error_events: flag("error_events"),
        reasoning: flag("reasoning"),
        status: flag("status"),
        streaming_deltas: flag("streaming_deltas"),
        mcp_tools: flag("mcp_tools"),
        prompt_capabilities: PromptCapabilities {
            audio: prompt["audio"].as_bool(),
            embedded_context: prompt["embeddedContext"].as_bool(),
            image: prompt["image"].as_bool(),
        },
        raw: value.clone(),
    }
}

fn agent_info(value: &Value) -> Option<AgentInfo> {
    Some(AgentInfo {
        name: text(&value["name"])?,
        title: text(&value["title"]),
        version: text(&value["version"]),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state() -> SessionState {
        let initialize = json!({
            "agentInfo": { "name": "pi", "version": "1.0" },
            "agentCapabilities": { "plan_mode": false, "loadSession": true, "promptCapabilities": { "image": true } },
        });
        let session = json!({
            "modes": { "currentModeId": "ask", "availableModes": [{ "id": "ask", "name": "Ask" }, { "id": "code" }] },
            "configOptions": [
                { "id": "effort", "category": "thought_level", "name": "Effort", "currentValue": "low",
                  "options": [{ "value": "low", "name": "Low" }, { "options": [{ "value": "high" }] }] },
                { "no id": true },
            ],
        });
        SessionState::read(&initialize, &session)
    }

    #[test]
    fn what_an_agent_says_is_read() {
        let state = state();
        let modes = state.modes.unwrap();
        assert_eq!(modes.current_mode_id, "ask");
        assert_eq!(modes.available_modes.len(), 2);
        assert_eq!(state.config_options.len(), 1);
        let values: Vec<&str> =
            state.config_options[0].allowed_values.iter().map(|value| value.id.as_str()).collect();
        assert_eq!(values, ["low", "high"]);
        let AgentCapabilities { plan_mode, permissions, prompt_capabilities, raw, .. } = state.capabilities;
        assert_eq!((plan_mode, permissions), (Some(false), None));
        assert_eq!((prompt_capabilities.image, prompt_capabilities.audio), (Some(true), None));
        assert_eq!(raw["loadSession"], true);
        assert_eq!(state.agent_info.unwrap().name, "pi");
    }

    #[test]
    fn an_agent_that_says_nothing_has_nothing() {
        let state = SessionState::read(&Value::Null, &json!([1, 2]));
        assert!(state.modes.is_none() && state.config_options.is_empty() && state.agent_info.is_none());
    }

    #[test]
    fn options_are_found_by_category_and_renewed_with_the_session() {
        let mut state = state();
        assert_eq!(state.option_of("thought_level").as_deref(), Some("effort"));
        assert_eq!(state.option_of("model"), None);
        state.renew(&Value::Null);
        assert_eq!(state.option_ids(), ["effort"], "nothing said, nothing changed");
        let session = json!({ "modes": { "currentModeId": "code" }, "models": {}, "configOptions": [{ "id": "other" }] });
        state.renew(&session);
        assert_eq!((state.option_ids(), state.has_models), (vec!["other".to_owned()], true));
        assert_eq!(state.modes.unwrap().current_mode_id, "code");
        assert_eq!(state.agent_info.unwrap().name, "pi", "who it is stays");
    }
}
