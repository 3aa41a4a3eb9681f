//! What pi says of itself, as the answers ACP wants to `initialize` and `session/new`, and the requests that change it.
//!
//! Pi has no modes; its thinking levels are what a user would look for under that name, and what its own ACP adapters
//! show there.

use serde_json::{Value, json};

use crate::wire::acp;
use crate::wire::pi_rpc::Command;

/// The methods that [`Profile::request`] knows.
const SUPPORTED: [&str; 4] =
    ["session/set_mode", "session/set_model", "session/set_config_option", "session/cancel"];

/// What pi answered to the four questions of the start.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Profile {
    pub(super) session_id: String,
    version: Option<String>,
    model: Value,
    models: Vec<Value>,
    level: String,
    levels: Vec<String>,
    commands: Vec<Value>,
}

/// What to do with a request of the caller.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reaction {
    /// Ask pi; the change takes hold when it agrees.
    Ask(Command, Change),
    /// End the running turn.
    Cancel,
    /// The answer is known already.
    Answer(Value),
}

/// What changes when pi agrees.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// The thinking level.
    Level { level: String, answer_with_options: bool },
    /// The model.
    Model { id: String, answer_with_options: bool },
}

impl Profile {
    /// Reads the answers to get_state, get_available_models, get_available_thinking_levels and get_commands. Whatever
    /// is missing in them is shown as missing.
    pub(super) fn new(version: Option<&str>, answers: &[Value; 4]) -> Self {
        let [state, models, levels, commands] = answers;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let levels = list(&levels["levels"]);
        Self {
            session_id: state["sessionId"].as_str().unwrap_or_default().to_owned(),
            version: version.map(str::to_owned),
            model: state["model"].clone(),
            models: list(&models["models"]),
            level: state["thinkingLevel"].as_str().unwrap_or("off").to_owned(),
            levels: levels.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            commands: list(&commands["commands"]),
        }
    }

    /// The model's window, in tokens.
    pub(super) fn context_window(&self) -> Option<u64> {
        self.model["contextWindow"].as_u64()
    }

    /// Whether pi found no key for any model.
    pub(super) fn has_no_model(&self) -> bool {
        self.models.is_empty()
    }

    /// The answer to `initialize`.
    pub(super) fn initialize(&self) -> Value {
        let inputs = self.model["input"].as_array().map(Vec::as_slice).unwrap_or_default();
        let image = inputs.iter().any(|input| input == "image");
        json!({
            "protocolVersion": acp::PROTOCOL_VERSION,
            "agentInfo": { "name": "pi", "title": "Pi", "version": self.version },
            "agentCapabilities": {
                "loadSession": false,
                "promptCapabilities": { "image": image, "audio": false, "embeddedContext": true },
                "mcpCapabilities": { "http": true, "sse": false },
                "sessionCapabilities": {},
            },
            "authMethods": [],
        })
    }

    /// The answer to `session/new`.
    pub(super) fn session_new(&self) -> Value {
        let modes: Vec<Value> = self
            .levels
            .iter()
            .map(|level| json!({ "id": level, "name": format!("Thinking: {level}"), "description": null }))
            .collect();
        let models: Vec<Value> = self
            .models
            .iter()
            .map(|model| json!({ "modelId": model_id(model), "name": model["name"], "description": null }))
            .collect();
        json!({
            "sessionId": self.session_id,
            "modes": { "currentModeId": self.level, "availableModes": modes },
            "models": { "currentModelId": model_id(&self.model), "availableModels": models },
            "configOptions": self.config_options(),
        })
    }

    fn config_options(&self) -> Value {
        let models: Vec<Value> = self
            .models
            .iter()
            .map(|model| json!({ "value": model_id(model), "name": model["name"] }))
            .collect();
        let levels: Vec<Value> = self
            .levels
            .iter()
            .map(|level| json!({ "value": level, "name": format!("Thinking: {level}") }))
            .collect();
        json!([
            {
                "type": "select", "id": "model", "category": "model", "name": "Model",
                "currentValue": model_id(&self.model), "options": models,
            },
            {
                "type": "select", "id": "thought_level", "category": "thought_level", "name": "Thinking",
                "currentValue": self.level, "options": levels,
            },
        ])
    }

    /// The update that lists what a prompt may begin with; `None` where there is nothing.
    pub(super) fn commands_update(&self) -> Option<Value> {
        let command = |command: &Value| {
            let name = command["name"].as_str()?;
            Some(json!({ "name": name, "description": command["description"].as_str().unwrap_or_default() }))
        };
        let commands: Vec<Value> = self.commands.iter().filter_map(command).collect();
        let update = json!({ "sessionUpdate": "available_commands_update", "availableCommands": commands });
        (!commands.is_empty()).then_some(update)
    }

    /// What a raw request of the caller means for pi. `id` is the request's.
    pub(super) fn request(&self, id: u64, method: &str, params: &Value) -> Reaction {
        let text = |name: &str| params[name].as_str().map(str::to_owned);
        let missing = |name: &str| {
            let message = format!("Invalid params: {name} is missing");
            Reaction::Answer(acp::error_response(id, acp::INVALID_PARAMS, &message, &Value::Null))
        };
        match method {
            "session/set_mode" => {
                text("modeId").map_or_else(|| missing("modeId"), |level| ask_level(level, false))
            }
            "session/set_model" => {
                text("modelId").map_or_else(|| missing("modelId"), |model| self.ask_model(id, model, false))
            }
            "session/set_config_option" => match (params["configId"].as_str(), text("value")) {
                (Some("thought_level"), Some(level)) => ask_level(level, true),
                (Some("model"), Some(model)) => self.ask_model(id, model, true),
                (_, None) => missing("value"),
                _ => missing("configId"),
            },
            "session/cancel" => Reaction::Cancel,
            _ => {
                let data = json!({ "method": method, "supported": SUPPORTED });
                Reaction::Answer(acp::error_response(id, acp::METHOD_NOT_FOUND, "Method not found", &data))
            }
        }
    }

    fn ask_model(&self, id: u64, model: String, answer_with_options: bool) -> Reaction {
        let Some((provider, name)) = model.split_once('/') else {
            let known: Vec<Value> = self.models.iter().map(model_id).collect();
            let message = "Invalid params: a model is PROVIDER/MODEL";
            return Reaction::Answer(acp::error_response(
                id,
                acp::INVALID_PARAMS,
                message,
                &json!({ "available": known }),
            ));
        };
        let command = Command::SetModel { provider: provider.to_owned(), model: name.to_owned() };
        Reaction::Ask(command, Change::Model { id: model, answer_with_options })
    }

    /// Takes over a change that pi agreed to; the answer to the caller.
    pub(super) fn apply(&mut self, id: u64, change: Change, data: Value) -> Value {
        let with_options = match change {
            Change::Level { level, answer_with_options } => {
                self.level = level;
                answer_with_options
            }
            Change::Model { id: wanted, answer_with_options } => {
                let known = self.models.iter().find(|model| model_id(model) == wanted.as_str());
                self.model = if data.is_object() { data } else { known.cloned().unwrap_or(Value::Null) };
                answer_with_options
            }
        };
        let result = if with_options { json!({ "configOptions": self.config_options() }) } else { json!({}) };
        acp::response(id, &result)
    }
}

fn ask_level(level: String, answer_with_options: bool) -> Reaction {
    Reaction::Ask(
        Command::SetThinkingLevel { level: level.clone() },
        Change::Level { level, answer_with_options },
    )
}

fn model_id(model: &Value) -> Value {
    match (model["provider"].as_str(), model["id"].as_str()) {
        (Some(provider), Some(id)) => json!(format!("{provider}/{id}")),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let model = json!({ "id": "demo", "name": "Demo", "provider": "agentos", "contextWindow": 9, "input": ["text"] });
        let answers = [
            json!({ "sessionId": "p1", "model": model, "thinkingLevel": "low" }),
            json!({ "models": [model] }),
            json!({ "levels": ["off", "low"] }),
            json!({ "commands": [{ "name": "mcp", "description": "d" }] }),
        ];
        Profile::new(Some("1.5.2"), &answers)
    }

    #[test]
    fn pi_describes_itself_in_acps_shapes() {
        let profile = profile();
        assert_eq!(profile.initialize()["agentInfo"]["version"], "1.5.2");
        assert_eq!(profile.initialize()["agentCapabilities"]["promptCapabilities"]["image"], false);
        let new = profile.session_new();
        assert_eq!(new["sessionId"], "p1");
        assert_eq!(new["modes"]["currentModeId"], "low");
        assert_eq!(new["models"]["currentModelId"], "agentos/demo");
        assert_eq!(new["configOptions"][1]["options"][0]["value"], "off");
        assert_eq!(profile.commands_update().unwrap()["availableCommands"][0]["name"], "mcp");
    }

    #[test]
    fn answers_without_anything_in_them_are_survived() {
        let profile = Profile::new(None, &[Value::Null, json!([]), json!("x"), json!({ "commands": 7 })]);
        assert_eq!(profile.session_new()["models"]["currentModelId"], Value::Null);
        assert_eq!(profile.commands_update(), None);
    }

    #[test]
    fn what_pi_cannot_do_is_refused_with_what_it_can() {
        let Reaction::Answer(answer) = profile().request(3, "session/load", &json!({})) else { panic!() };
        assert_eq!(answer["error"]["code"], -32601);
        assert_eq!(answer["error"]["data"]["supported"][0], "session/set_mode");
        let Reaction::Answer(answer) = profile().request(3, "session/set_model", &json!({ "modelId": "x" }))
        else {
            panic!()
        };
        assert_eq!(answer["error"]["data"]["available"][0], "agentos/demo");
    }

    #[test]
    fn a_change_takes_hold_when_pi_agreed() {
        let mut profile = profile();
        let params = json!({ "configId": "thought_level", "value": "off" });
        let Reaction::Ask(_, change) = profile.request(3, "session/set_config_option", &params) else {
            panic!()
        };
        assert_eq!(profile.level, "low");
        let answer = profile.apply(3, change, Value::Null);
        assert_eq!(answer["result"]["configOptions"][1]["currentValue"], "off");
    }
}
