//! What pi says of itself, as the answers ACP wants to `initialize` and `session/new`, and the requests that change it.
//!
//! Pi has no modes; its thinking levels are what a user would look for under that name, and what its own ACP adapters
//! show there.

use serde_json::{Value, json};

use crate::wire::acp;
use crate::wire::message::RpcError;
use crate::wire::pi_rpc::Command;

/// The methods that [`Profile::request`] knows.
const SUPPORTED: [&str; 3] = ["session/set_mode", "session/set_model", "session/set_config_option"];

/// What pi answered to the four questions of the start.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Profile {
    pub(super) session_id: String,
    /// How much was said in it when pi was launched.
    messages: u64,
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
    /// The answer is known already.
    Answer(Result<Value, RpcError>),
}

/// What changes when pi agrees.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// The thinking level.
    Level { level: String, options: bool },
    /// The model. Other models have other thinking levels, so pi is asked for them next.
    Model { options: bool },
    /// The levels that the new model has; pi may have moved to another one of them.
    Levels { options: bool },
    /// The level that holds after a change of the model.
    State { options: bool },
}

/// What follows when pi agreed to a change.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    /// Pi has to be asked something else before the caller gets its answer.
    Ask(Command, Change),
    /// The caller's answer: a result.
    Answer(Value),
}

impl Profile {
    /// Reads the answers to get_state, get_available_models, get_available_thinking_levels and get_commands. Whatever
    /// is missing in them is shown as missing.
    pub(super) fn new(version: Option<&str>, answers: &[Value; 4]) -> Self {
        let [state, models, levels, commands] = answers;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        Self {
            messages: state["messageCount"].as_u64().unwrap_or_default(),
            session_id: state["sessionId"].as_str().unwrap_or_default().to_owned(),
            version: version.map(str::to_owned),
            model: state["model"].clone(),
            models: list(&models["models"]),
            level: state["thinkingLevel"].as_str().unwrap_or("off").to_owned(),
            levels: strings(&levels["levels"]),
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
                "loadSession": true,
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

    /// The answer to `session/load`: pi was launched with the session, so that it is there or not.
    pub(super) fn session_load(&self, id: &Value) -> Result<Value, RpcError> {
        if *id != self.session_id.as_str() || self.messages == 0 {
            let message = "pi knows nothing of that session";
            return Err(RpcError::new(acp::INVALID_PARAMS, message));
        }
        Ok(self.session_new())
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

    /// What a request of the caller means for pi.
    pub(super) fn request(&self, method: &str, params: &Value) -> Reaction {
        let text = |name: &str| params[name].as_str().map(str::to_owned);
        let (kind, value, options) = match method {
            "session/set_mode" => ("thought_level", text("modeId").ok_or("modeId"), false),
            "session/set_model" => ("model", text("modelId").ok_or("modelId"), false),
            "session/set_config_option" => match params["configId"].as_str() {
                Some("thought_level") => ("thought_level", text("value").ok_or("value"), true),
                Some("model") => ("model", text("value").ok_or("value"), true),
                _ => ("", Err("configId"), true),
            },
            _ => {
                let data = json!({ "method": method, "supported": SUPPORTED });
                let error = RpcError::new(acp::METHOD_NOT_FOUND, "Method not found").with_data(data);
                return Reaction::Answer(Err(error));
            }
        };
        match (kind, value) {
            (_, Err(name)) => invalid(&format!("{name} is missing or unknown"), &Value::Null),
            ("model", Ok(model)) => self.ask_model(&model, options),
            (_, Ok(level)) => self.ask_level(level, options),
        }
    }

    fn ask_level(&self, level: String, options: bool) -> Reaction {
        if !self.levels.contains(&level) {
            return invalid(&format!("no such thinking level: {}", shortened(&level)), &json!(self.levels));
        }
        Reaction::Ask(Command::SetThinkingLevel { level: level.clone() }, Change::Level { level, options })
    }

    fn ask_model(&self, wanted: &str, options: bool) -> Reaction {
        let known: Vec<Value> = self.models.iter().map(model_id).collect();
        match wanted.split_once('/') {
            Some((provider, name)) if known.iter().any(|model| model == wanted) => {
                let command = Command::SetModel { provider: provider.to_owned(), model: name.to_owned() };
                Reaction::Ask(command, Change::Model { options })
            }
            _ => invalid(&format!("no such model: {}", shortened(wanted)), &json!(known)),
        }
    }

    /// Takes over a change that pi agreed to with `data`.
    pub(super) fn apply(&mut self, change: Change, data: Value) -> Next {
        let options = match change {
            Change::Level { level, options } => {
                self.level = level;
                options
            }
            Change::Model { options } => {
                self.model = data;
                return Next::Ask(Command::GetThinkingLevels, Change::Levels { options });
            }
            Change::Levels { options } => {
                self.levels = strings(&data["levels"]);
                return Next::Ask(Command::GetState, Change::State { options });
            }
            Change::State { options } => {
                if let Some(level) = data["thinkingLevel"].as_str() {
                    level.clone_into(&mut self.level);
                }
                options
            }
        };
        let result = if options { json!({ "configOptions": self.config_options() }) } else { json!({}) };
        Next::Answer(result)
    }
}

fn invalid(reason: &str, available: &Value) -> Reaction {
    let message = format!("Invalid params: {reason}");
    let data = json!({ "available": available });
    Reaction::Answer(Err(RpcError::new(acp::INVALID_PARAMS, message).with_data(data)))
}

/// A value of the caller as far as a message should repeat it.
fn shortened(value: &str) -> String {
    value.chars().take(80).collect()
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
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

    fn refusal(method: &str, params: &Value) -> Value {
        match profile().request(method, params) {
            Reaction::Answer(Err(error)) => error.to_json(),
            other => panic!("{method} {params}: {other:?}"),
        }
    }

    #[test]
    fn what_pi_cannot_do_is_refused_with_what_it_can() {
        let error = refusal("session/load", &json!({}));
        assert_eq!(
            (&error["code"], &error["data"]["supported"][0]),
            (&json!(-32601), &json!("session/set_mode"))
        );
        for (method, params, available) in [
            ("session/set_mode", json!({ "modeId": "warp" }), json!(["off", "low"])),
            ("session/set_mode", json!({}), Value::Null),
            ("session/set_model", json!({ "modelId": "agentos/other" }), json!(["agentos/demo"])),
            (
                "session/set_config_option",
                json!({ "configId": "model", "value": "x" }),
                json!(["agentos/demo"]),
            ),
            (
                "session/set_config_option",
                json!({ "configId": "thought_level", "value": "x" }),
                json!(["off", "low"]),
            ),
            ("session/set_config_option", json!({ "configId": "colour", "value": "x" }), Value::Null),
        ] {
            let error = refusal(method, &params);
            assert_eq!(
                (&error["code"], &error["data"]["available"]),
                (&json!(-32602), &available),
                "{method} {params}"
            );
        }
    }

    #[test]
    fn a_change_takes_hold_when_pi_agreed() {
        let mut profile = profile();
        let params = json!({ "configId": "thought_level", "value": "off" });
        let Reaction::Ask(_, change) = profile.request("session/set_config_option", &params) else {
            panic!()
        };
        assert_eq!(profile.level, "low");
        let Next::Answer(answer) = profile.apply(change, Value::Null) else { panic!() };
        assert_eq!(answer["configOptions"][1]["currentValue"], "off");
    }

    #[test]
    fn another_model_brings_its_own_thinking_levels() {
        let mut profile = profile();
        let params = json!({ "configId": "model", "value": "agentos/demo" });
        let Reaction::Ask(_, change) = profile.request("session/set_config_option", &params) else {
            panic!()
        };
        let model = json!({ "id": "demo", "provider": "agentos" });
        let Next::Ask(Command::GetThinkingLevels, change) = profile.apply(change, model) else { panic!() };
        let Next::Ask(Command::GetState, change) = profile.apply(change, json!({ "levels": ["max"] })) else {
            panic!()
        };
        let Next::Answer(answer) = profile.apply(change, json!({ "thinkingLevel": "max" })) else { panic!() };
        assert_eq!(answer["configOptions"][1]["currentValue"], "max");
        assert_eq!(answer["configOptions"][1]["options"][0]["value"], "max");
    }
}
