//! Modes, models and config options: what there is, and changing it.

use serde_json::{Map, Value, json};

use crate::agent::{Agent, INVALID_PARAMS, METHOD_NOT_FOUND, error};
use crate::profile::Profile;
use crate::state::Session;

const MODES: &[&str] = &["ask", "code", "plan"];
const MODELS: &[&str] = &["fake/small", "fake/large"];
const LEVELS: &[&str] = &["low", "high"];

/// What a session's answer says of itself.
pub(crate) fn of(profile: &Profile, session: &Session) -> Value {
    let mut offers = Map::new();
    if profile.modes {
        let modes: Vec<Value> = MODES.iter().map(|id| json!({ "id": id, "name": id })).collect();
        let modes = json!({ "currentModeId": session.mode, "availableModes": modes });
        offers.insert("modes".to_owned(), modes);
    }
    if profile.models {
        let models: Vec<Value> = MODELS.iter().map(|id| json!({ "modelId": id, "name": id })).collect();
        let models = json!({ "currentModelId": session.model, "availableModels": models });
        offers.insert("models".to_owned(), models);
    }
    if profile.options {
        offers.insert("configOptions".to_owned(), options(session));
    }
    Value::Object(offers)
}

fn options(session: &Session) -> Value {
    let option = |id: &str, category: &str, current: &str, values: &[&str]| {
        let values: Vec<Value> =
            values.iter().map(|value| json!({ "value": value, "name": value })).collect();
        json!({
            "type": "select", "id": id, "category": category, "name": id,
            "currentValue": current, "options": values,
        })
    };
    json!([
        option("mode", "mode", &session.mode, MODES),
        option("model", "model", &session.model, MODELS),
        option("effort", "thought_level", &session.level, LEVELS),
    ])
}

/// Changes one of them, at the client's wish.
pub(crate) fn set(agent: &Agent, method: &str, params: &Value) -> Result<Value, Value> {
    let (option, value) = match method {
        "session/set_mode" => ("mode", &params["modeId"]),
        "session/set_model" => ("model", &params["modelId"]),
        "session/set_config_option" => (params["configId"].as_str().unwrap_or_default(), &params["value"]),
        _ => {
            let mut error = error(METHOD_NOT_FOUND, "Method not found");
            error["data"] = json!({ "method": method });
            return Err(error);
        }
    };
    let session = params["sessionId"].as_str().unwrap_or_default();
    let changed = change(agent, session, option, value.as_str().unwrap_or_default());
    let options = changed.map_err(|reason| error(INVALID_PARAMS, &reason))?;
    if method == "session/set_config_option" {
        return Ok(json!({ "configOptions": options }));
    }
    if method == "session/set_mode" {
        agent
            .wire
            .update(session, &json!({ "sessionUpdate": "current_mode_update", "currentModeId": value }));
    }
    Ok(json!({}))
}

/// Changes one of them; gives what the options are then.
pub(crate) fn change(agent: &Agent, session: &str, option: &str, value: &str) -> Result<Value, String> {
    let mut known = agent.known();
    let session = known.sessions.get_mut(session).ok_or("no such session")?;
    let (place, values) = match option {
        "mode" => (&mut session.mode, MODES),
        "model" => (&mut session.model, MODELS),
        "effort" => (&mut session.level, LEVELS),
        other => return Err(format!("no such option: {other}")),
    };
    if !values.contains(&value) {
        return Err(format!("no such {option}: {value}; there are {}", values.join(", ")));
    }
    value.clone_into(place);
    Ok(options(session))
}
