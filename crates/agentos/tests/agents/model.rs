//! The offline model as the witness of what an agent sent, and as a provider that agents are led to by what their users
//! would set.

use agentos::{AgentOs, Body, CreateSession, ModelChoice, PermissionPolicy, Session};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::support::within;

/// Where a VM with a demo session has the model.
const PORT: u16 = 41_414;
const ADDRESS: &str = "http://127.0.0.1:41414";

/// Every request that the model remembers, the oldest first.
pub(crate) async fn asked(vm: &AgentOs) -> Vec<Value> {
    let request = http::Request::get("/_demo/requests").body(Body::empty()).unwrap();
    let answer = vm.fetch(PORT, request).await.unwrap();
    let log = answer.into_body().collect().await.unwrap().to_bytes();
    match serde_json::from_slice(&log).unwrap() {
        Value::Object(mut log) => log["requests"].as_array_mut().map(std::mem::take).unwrap(),
        other => panic!("{other}"),
    }
}

/// All texts in a request, in their order.
pub(crate) fn texts(request: &Value) -> String {
    match request {
        Value::String(text) => format!("{text}\n"),
        Value::Array(items) => items.iter().map(texts).collect(),
        Value::Object(fields) => fields.values().map(texts).collect(),
        _ => String::new(),
    }
}

/// A session that takes the offline model for its user's provider, with all that the agent does for one.
pub(crate) async fn session_with_a_provider(vm: &AgentOs, agent: &str) -> Session {
    // Brings the model into the VM.
    let demo = vm.create_session("pi").model(ModelChoice::Demo).await.unwrap();
    within("the end", demo.close()).await.unwrap();
    let create = vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll);
    configured(vm, create.model(ModelChoice::Provider), agent).await.await.unwrap()
}

/// What a user of the agent would set to use a provider at that address.
pub(crate) async fn configured(vm: &AgentOs, create: CreateSession, agent: &str) -> CreateSession {
    match agent {
        "claude" => create.env("ANTHROPIC_BASE_URL", ADDRESS).env("ANTHROPIC_API_KEY", "none"),
        "gemini" => {
            let create = create.env("GOOGLE_GEMINI_BASE_URL", ADDRESS).env("GEMINI_API_KEY", "none");
            create.env("GEMINI_MODEL", "gemini-2.5-flash")
        }
        "codex" => {
            let provider = json!({
                "name": "theirs", "base_url": format!("{ADDRESS}/v1"), "env_key": "OPENAI_API_KEY",
                "wire_api": "responses",
            });
            let config = json!({ "model_provider": "theirs", "model_providers": { "theirs": provider } });
            create.env("CODEX_CONFIG", config.to_string()).env("OPENAI_API_KEY", "none")
        }
        "opencode" => {
            let provider = json!({
                "npm": "@ai-sdk/openai-compatible",
                "options": { "baseURL": format!("{ADDRESS}/v1"), "apiKey": "none" },
                "models": { "m": { "tool_call": true, "limit": { "context": 128_000, "output": 16_384 } } },
            });
            let config = json!({
                "model": "theirs/m", "small_model": "theirs/m", "enabled_providers": ["theirs"],
                "provider": { "theirs": provider },
            });
            create.env("OPENCODE_CONFIG_CONTENT", config.to_string())
        }
        _ => {
            let provider = json!({
                "baseUrl": format!("{ADDRESS}/v1"), "api": "openai-completions", "apiKey": "none",
                "models": [{ "id": "m", "contextWindow": 128_000, "maxTokens": 16_384 }],
            });
            let files = [
                ("models.json", json!({ "providers": { "theirs": provider } })),
                ("settings.json", json!({ "defaultProvider": "theirs", "defaultModel": "m" })),
            ];
            for (name, content) in files {
                vm.write_file(format!("/home/user/.pi/agent/{name}"), content.to_string()).await.unwrap();
            }
            create
        }
    }
}
