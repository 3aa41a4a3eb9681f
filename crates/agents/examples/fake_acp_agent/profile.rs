//! What the agent is, from its command line.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Every field has a flag of its name, with dashes.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Profile {
    /// `agentInfo.name`.
    pub(crate) name: String,
    /// What `initialize` answers as the protocol's version, whatever it is.
    pub(crate) protocol_version: Value,
    /// Merged over the capabilities; null takes one away, and with it the method.
    pub(crate) capabilities: Value,
    /// Ids of ways to authenticate. Where there are some, sessions need `authenticate` first (-32000).
    pub(crate) auth: Vec<String>,
    /// Whether sessions have modes.
    pub(crate) modes: bool,
    /// Whether sessions have models.
    pub(crate) models: bool,
    /// Whether sessions have config options.
    pub(crate) options: bool,
    /// A directory that sessions are kept in.
    pub(crate) state: Option<String>,
    /// Stays when its input ends.
    pub(crate) ignore_eof: bool,
    /// Stays when it is asked to end by a signal.
    pub(crate) ignore_sigterm: bool,
    /// Every turn goes on when it is cancelled.
    pub(crate) ignore_cancel: bool,
    /// `_meta` is in everything.
    pub(crate) meta: bool,
    /// A script that is obeyed before anything is read.
    pub(crate) start: String,
    /// By method: a script that is obeyed before it is answered.
    pub(crate) on: BTreeMap<String, String>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            name: "fake".to_owned(),
            protocol_version: json!(1),
            capabilities: json!({}),
            auth: Vec::new(),
            modes: true,
            models: true,
            options: true,
            state: None,
            ignore_eof: false,
            ignore_sigterm: false,
            ignore_cancel: false,
            meta: false,
            start: String::new(),
            on: BTreeMap::new(),
        }
    }
}

impl Profile {
    /// Reads the command line; later flags win.
    pub(crate) fn from_arguments(arguments: &[String]) -> Result<Self, String> {
        let mut fields = Map::new();
        let mut on = Map::new();
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--acp" => {}
                "--profile" => fields.extend(object(value()?)?),
                "--profile-file" => {
                    let path = value()?;
                    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
                    fields.extend(object(&text)?);
                }
                "--start" => {
                    fields.insert("start".to_owned(), json!(value()?));
                }
                "--on" => {
                    let method = value()?.clone();
                    on.insert(method, json!(value()?));
                }
                _ => {
                    let field = flag.strip_prefix("--").ok_or_else(|| format!("what is {flag}?"))?;
                    let (name, value) = match field.split_once('=') {
                        Some((name, text)) => {
                            (name, serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
                        }
                        None => (field, json!(true)),
                    };
                    fields.insert(name.replace('-', "_"), value);
                }
            }
        }
        if !on.is_empty() {
            let all = fields.entry("on").or_insert_with(|| json!({}));
            if let Some(all) = all.as_object_mut() {
                all.extend(on);
            }
        }
        serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
    }

    /// What the agent says it can do.
    pub(crate) fn agent_capabilities(&self) -> Value {
        let mut capabilities = json!({
            "loadSession": true,
            "promptCapabilities": { "image": true, "audio": true, "embeddedContext": true },
            "mcpCapabilities": { "http": true, "sse": true },
            "sessionCapabilities": { "list": {}, "resume": {}, "fork": {}, "close": {} },
        });
        merge(&mut capabilities, &self.capabilities);
        capabilities
    }

    /// Whether it has a method that is optional in the protocol.
    pub(crate) fn offers(&self, method: &str) -> bool {
        let capabilities = self.agent_capabilities();
        match method {
            "session/load" => capabilities["loadSession"] == true,
            "session/set_mode" => self.modes,
            "session/set_model" => self.models,
            "session/set_config_option" => self.options,
            "session/list" | "session/resume" | "session/fork" | "session/close" => {
                capabilities["sessionCapabilities"][&method["session/".len()..]].is_object()
            }
            _ => true,
        }
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("the profile: {error}"))
}

/// Merges as RFC 7386 says.
fn merge(into: &mut Value, from: &Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else { return };
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (_, Value::Null) => drop(into.remove(key)),
            (Some(old @ Value::Object(_)), Value::Object(_)) => merge(old, value),
            _ => drop(into.insert(key.clone(), value.clone())),
        }
    }
}
