//! What an agent says of itself and of its session: its capabilities, modes, models and options, as they are now.

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::ContentError;
use crate::wire::message::Update;

/// The agent's side of a session. What an agent answers may be megabytes, and the state is shown anew with every change:
/// so what changes lies beside the answers, which are shared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SessionState {
    /// The agent's own id of the session.
    pub agent_session_id: String,
    /// The answer to `initialize`.
    pub initialize: Arc<Value>,
    /// The answer to `session/new`, as it was.
    answer: Arc<Value>,
    /// The mode, the model and the options since then.
    mode: Option<String>,
    model: Option<String>,
    options: Option<Arc<Value>>,
}

impl SessionState {
    /// The answer to `session/new`, as it would be now: `modes`, `models`, `configOptions`.
    #[must_use]
    pub fn session(&self) -> Value {
        let mut session = Value::clone(&self.answer);
        if let (Some(options), Value::Object(session)) = (&self.options, &mut session) {
            session.insert("configOptions".to_owned(), Value::clone(options));
        }
        if let (Some(mode), Some(Value::Object(modes))) = (&self.mode, session.get_mut("modes")) {
            modes.insert("currentModeId".to_owned(), json!(mode));
        }
        if let (Some(model), Some(Value::Object(models))) = (&self.model, session.get_mut("models")) {
            models.insert("currentModelId".to_owned(), json!(model));
        }
        let options = session.get_mut("configOptions").and_then(Value::as_array_mut);
        for option in options.into_iter().flatten().filter(|option| option["category"] == "mode") {
            // Agents that have both show the mode among their options, too.
            if let (Some(mode), Value::Object(option)) = (&self.mode, option) {
                option.insert("currentValue".to_owned(), json!(mode));
            }
        }
        session
    }

    /// Takes the agent's answer about its session.
    pub(super) fn open(&mut self, agent_session_id: &str, answer: Value) {
        self.agent_session_id = agent_session_id.to_owned();
        (self.answer, self.mode, self.model, self.options) = (Arc::new(answer), None, None, None);
    }

    /// Follows the agent's own word. True when something has changed.
    pub(super) fn apply(&mut self, update: &Update) -> bool {
        match update {
            Update::Mode(mode) => self.set_mode(mode),
            Update::Options(options) => self.set_options(options),
            _ => false,
        }
    }

    /// Follows a request that the agent has agreed to with this result.
    pub(super) fn agreed(&mut self, method: &str, params: &Value, result: &Value) -> bool {
        match method {
            "session/set_mode" => params["modeId"].as_str().is_some_and(|mode| self.set_mode(mode)),
            "session/set_model" if self.answer["models"].is_object() => {
                self.model = params["modelId"].as_str().map(str::to_owned).or(self.model.take());
                params["modelId"].is_string()
            }
            // One option can change others, so agents answer with all of them; where one doesn't, ours follows.
            "session/set_config_option" if result["configOptions"].is_array() => {
                self.set_options(&result["configOptions"])
            }
            "session/set_config_option" => self.set_option(&params["configId"], &params["value"]),
            _ => false,
        }
    }

    fn options(&self) -> &Value {
        self.options.as_deref().unwrap_or(&self.answer["configOptions"])
    }

    fn set_mode(&mut self, mode: &str) -> bool {
        let modes = &self.answer["modes"];
        let options = self.options().as_array().into_iter().flatten();
        let mut shown =
            options.filter(|option| option["category"] == "mode").map(|option| &option["currentValue"]);
        let changes = match &self.mode {
            Some(known) => known != mode && (modes.is_object() || shown.next().is_some()),
            None => (modes.is_object() && modes["currentModeId"] != mode) || shown.any(|known| known != mode),
        };
        if changes {
            self.mode = Some(mode.to_owned());
        }
        changes
    }

    fn set_option(&mut self, id: &Value, value: &Value) -> bool {
        let mut options = self.options().clone();
        let option = options.as_array_mut().into_iter().flatten().find(|option| option["id"] == *id);
        let Some(Value::Object(option)) = option else { return false };
        option.insert("currentValue".to_owned(), value.clone());
        if option.get("category").is_some_and(|category| category == "mode")
            && let Some(mode) = value.as_str()
        {
            self.mode = Some(mode.to_owned());
        }
        self.options = Some(Arc::new(options));
        true
    }

    fn set_options(&mut self, options: &Value) -> bool {
        let Some(list) = options.as_array() else { return false };
        // The last word on the mode, where it is among them.
        let mode = list.iter().find(|option| option["category"] == "mode");
        let mode = mode.and_then(|mode| mode["currentValue"].as_str());
        let is_known = |mode: &str| self.mode.as_ref().is_none_or(|known| known == mode);
        if self.options() == options && mode.is_none_or(is_known) {
            return false;
        }
        if let Some(mode) = mode {
            self.mode = Some(mode.to_owned());
        }
        self.options = Some(Arc::new(options.clone()));
        true
    }

    /// Whether the agent takes such a prompt: ACP has agents say which content they understand.
    pub(super) fn takes(&self, content: &[Value]) -> Result<(), ContentError> {
        let capabilities = &self.initialize["agentCapabilities"]["promptCapabilities"];
        let can = |name: &str| capabilities[name].as_bool().unwrap_or(false);
        let mut says_something = false;
        for (index, block) in content.iter().enumerate() {
            let kind = block["type"].as_str().unwrap_or("none");
            let (taken, needed) = match kind {
                "text" => (true, "text"),
                "image" => (can("image"), "data"),
                "audio" => (can("audio"), "data"),
                "resource_link" => (true, "uri"),
                "resource" => (can("embeddedContext"), "resource"),
                _ => (false, ""),
            };
            if !taken {
                return Err(ContentError::Unsupported { index, kind: kind.chars().take(80).collect() });
            }
            match &block[needed] {
                Value::String(text) => says_something |= kind != "text" || !text.trim().is_empty(),
                Value::Object(_) => says_something = true,
                _ => return Err(ContentError::Incomplete { index, kind: kind.to_owned(), field: needed }),
            }
        }
        if says_something { Ok(()) } else { Err(ContentError::Empty) }
    }
}

/// Makes an agent's answer to `initialize` say that it never asks for permission, unless it says something of that itself.
pub(super) fn declare_no_permissions(initialize: &mut Value) {
    let Value::Object(fields) = initialize else { return };
    let capabilities = fields.entry("agentCapabilities").or_insert_with(|| json!({}));
    if capabilities.is_null() {
        *capabilities = json!({});
    }
    if let Value::Object(capabilities) = capabilities {
        capabilities.entry("permissions").or_insert(Value::Bool(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> SessionState {
        let initialize = json!({ "agentCapabilities": { "promptCapabilities": { "image": true } } });
        let mut state = SessionState { initialize: initialize.into(), ..SessionState::default() };
        let answer = json!({
            "modes": { "currentModeId": "ask", "availableModes": [] },
            "models": { "currentModelId": "m1", "availableModels": [] },
            "configOptions": [
                { "id": "mode", "category": "mode", "currentValue": "ask" },
                { "id": "effort", "currentValue": "low" },
            ],
        });
        state.open("a", answer);
        state
    }

    #[test]
    fn the_state_follows_the_agents_updates() {
        let mut state = state();
        assert!(state.apply(&Update::Mode("plan".to_owned())));
        assert_eq!(state.session()["modes"]["currentModeId"], "plan");
        assert_eq!(state.session()["configOptions"][0]["currentValue"], "plan");
        let options = json!([{ "id": "mode", "category": "mode", "currentValue": "code" }]);
        assert!(state.apply(&Update::Options(options)));
        assert_eq!(state.session()["modes"]["currentModeId"], "code");
        assert!(!state.apply(&Update::Options(json!("odd"))) && !state.apply(&Update::Other));
    }

    #[test]
    fn what_the_agent_repeats_changes_nothing_and_what_it_takes_back_does() {
        let mut state = state();
        assert!(!state.apply(&Update::Mode("ask".to_owned())));
        let options = state.session()["configOptions"].clone();
        assert!(!state.apply(&Update::Options(options.clone())));
        assert!(
            state.apply(&Update::Mode("plan".to_owned())) && !state.apply(&Update::Mode("plan".to_owned()))
        );
        assert!(state.apply(&Update::Options(options)), "they say that it asks again");
        assert_eq!(state.session()["modes"]["currentModeId"], "ask");
        let mode = json!({ "configId": "mode", "value": "code" });
        assert!(state.agreed("session/set_config_option", &mode, &json!({})));
        assert_eq!(state.session()["modes"]["currentModeId"], "code");
    }

    #[test]
    fn a_change_copies_none_of_the_agents_answers() {
        let mut changed = state();
        let shown = changed.clone();
        assert!(changed.apply(&Update::Mode("plan".to_owned())));
        assert!(
            Arc::ptr_eq(&changed.initialize, &shown.initialize)
                && Arc::ptr_eq(&changed.answer, &shown.answer)
        );
        assert_eq!(shown.session()["modes"]["currentModeId"], "ask", "what was shown stays as it was");
    }

    #[test]
    fn the_state_follows_what_the_agent_agreed_to() {
        let mut state = state();
        assert!(state.agreed("session/set_model", &json!({ "modelId": "m2" }), &Value::Null));
        assert_eq!(state.session()["models"]["currentModelId"], "m2");
        let effort = json!({ "configId": "effort", "value": "high" });
        assert!(state.agreed("session/set_config_option", &effort, &json!({})));
        assert_eq!(state.session()["configOptions"][1]["currentValue"], "high");
        let all = json!({ "configOptions": [{ "id": "effort", "currentValue": "max" }] });
        assert!(state.agreed("session/set_config_option", &effort, &all));
        assert_eq!(state.session()["configOptions"][0]["currentValue"], "max");
        assert!(!state.agreed("session/set_mode", &json!({}), &Value::Null));
    }

    #[test]
    fn an_agent_that_never_asks_says_so() {
        let declared = |mut initialize: Value| {
            declare_no_permissions(&mut initialize);
            initialize["agentCapabilities"].clone()
        };
        assert_eq!(declared(json!({ "protocolVersion": 1 })), json!({ "permissions": false }));
        assert_eq!(declared(json!({ "agentCapabilities": null })), json!({ "permissions": false }));
        let said = json!({ "permissions": true, "loadSession": true });
        assert_eq!(declared(json!({ "agentCapabilities": said })), said, "its own word counts");
        assert_eq!(declared(json!({ "agentCapabilities": [7] })), json!([7]));
    }

    #[test]
    fn an_agent_that_said_nothing_is_followed_nowhere() {
        let mut state = SessionState::default();
        assert!(!state.apply(&Update::Mode("x".to_owned())));
        assert!(!state.agreed("session/set_model", &json!({ "modelId": "m" }), &Value::Null));
    }

    #[test]
    fn a_prompt_is_what_the_agent_takes() {
        let state = state();
        let refused = |content: Value| {
            state.takes(content.as_array().unwrap()).map_err(|error| error.to_string()).err()
        };
        assert_eq!(refused(json!([{ "type": "text", "text": "hi" }])), None);
        assert_eq!(refused(json!([{ "type": "image", "data": "", "mimeType": "image/png" }])), None);
        assert_eq!(refused(json!([{ "type": "resource_link", "uri": "file:///a" }])), None);
        for (content, reason) in [
            (json!([]), "the prompt is empty"),
            (json!([{ "type": "text", "text": " \n" }]), "the prompt is empty"),
            (json!([{ "type": "text" }]), "content block 0 of type text lacks text"),
            (
                json!([{ "type": "audio", "data": "" }]),
                "content block 0 is of a type the agent doesn't take: audio",
            ),
            (
                json!([{ "type": "resource", "resource": { "uri": "x" } }]),
                "content block 0 is of a type the agent doesn't take: resource",
            ),
            (json!([7]), "content block 0 is of a type the agent doesn't take: none"),
        ] {
            assert_eq!(refused(content).as_deref(), Some(reason));
        }
    }
}
