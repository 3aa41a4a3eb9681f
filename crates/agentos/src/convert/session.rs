//! Sessions.

use std::sync::Mutex;

use agentos_proto::v1;
use serde_json::Value;

use super::AnswerError;
use crate::agent::{AgentProvider, AgentRegistryEntry};
use crate::agent_config::PreparedInstructions;
use crate::error::JsonRpcError;
use crate::prompt::PromptResult;
use crate::session::{JsonRpcResponse, ModelKind, SessionData, SessionInfo};
use crate::session_events::{PermissionReply, SessionEvent};
use crate::session_options::{
    AgentInstall, InstallProgress, McpServer, McpServerKind, PermissionPolicy, PermissionRule, RuleAction,
    SessionWish,
};
use crate::session_state::SessionState;
use crate::session_store::{SessionEnd, StoredSession};

/// The notification that carries a request for permission.
const PERMISSION_METHOD: &str = "_agentos/permission_request";

pub(crate) fn create_request(vm_id: &str, wish: SessionWish) -> v1::CreateSessionRequest {
    let permission_policy = match wish.permission_policy {
        PermissionPolicy::Ask => v1::PermissionPolicy::Ask,
        PermissionPolicy::AllowAll => v1::PermissionPolicy::AllowAll,
        PermissionPolicy::RejectAll => v1::PermissionPolicy::RejectAll,
    };
    let agent_install = match wish.agent_install {
        None if variable_is("AGENTOS_AGENT_INSTALL", "never") => v1::AgentInstall::Never,
        None => v1::AgentInstall::Unspecified,
        Some(AgentInstall::Auto) => v1::AgentInstall::Auto,
        Some(AgentInstall::Never) => v1::AgentInstall::Never,
    };
    v1::CreateSessionRequest {
        vm_id: vm_id.to_owned(),
        agent_type: wish.agent_type,
        cwd: wish.cwd.unwrap_or_default(),
        env: wish.env.into_iter().collect(),
        mcp_servers: wish.mcp_servers.into_iter().map(mcp_server).collect(),
        skip_os_instructions: wish.skip_os_instructions,
        additional_instructions: wish.additional_instructions.unwrap_or_default(),
        permission_policy: permission_policy.into(),
        model: super::vm::model_choice(wish.model).into(),
        agent_install: agent_install.into(),
        provider_required: variable_is("AGENTOS_MODEL", "provider"),
        permission_rules: wish.permission_rules.into_iter().map(permission_rule).collect(),
        prepared: None,
    }
}

pub(crate) fn prepared(prepared: PreparedInstructions) -> v1::PreparedInstructions {
    v1::PreparedInstructions { args: prepared.args, env: prepared.env.into_iter().collect() }
}

/// What whoever runs this program asks for, whatever the program itself does.
fn variable_is(name: &str, value: &str) -> bool {
    std::env::var_os(name).is_some_and(|set| set == value)
}

fn permission_rule(rule: PermissionRule) -> v1::PermissionRule {
    let action = match rule.action {
        RuleAction::Allow => v1::PermissionAction::Allow,
        RuleAction::Reject => v1::PermissionAction::Reject,
        RuleAction::Ask => v1::PermissionAction::Ask,
    };
    v1::PermissionRule { action: action.into(), tool_kind: rule.tool_kind, path: rule.path }
}

fn mcp_server(server: McpServer) -> v1::McpServer {
    let kind = match server.kind {
        McpServerKind::Local { command, args, env } => {
            let env = env.into_iter().collect();
            v1::mcp_server::Kind::Local(v1::LocalMcpServer { command, args, env })
        }
        McpServerKind::Remote { url, headers } => {
            let headers = headers.into_iter().collect();
            v1::mcp_server::Kind::Remote(v1::RemoteMcpServer { url, headers })
        }
    };
    v1::McpServer { kind: Some(kind) }
}

pub(crate) enum CreateProgress {
    /// The session has its id; nothing else of it is known.
    Begun(v1::SessionBegun),
    Install(InstallProgress),
    Created(Box<SessionData>),
}

pub(crate) fn create_event(event: v1::CreateSessionEvent) -> Result<CreateProgress, AnswerError> {
    const CALL: &str = "CreateSession";
    let event = event.event.ok_or(AnswerError::Missing { call: CALL, field: "event" })?;
    let created = match event {
        v1::create_session_event::Event::Install(progress) => {
            return Ok(CreateProgress::Install(install_progress(progress)));
        }
        v1::create_session_event::Event::Begun(begun) => return Ok(CreateProgress::Begun(begun)),
        v1::create_session_event::Event::Created(created) => created,
    };
    let model = model_kind(created.model(), CALL)?;
    let initialize = lenient(&created.initialize_json);
    let session = lenient(&created.session_json);
    Ok(CreateProgress::Created(Box::new(SessionData {
        id: created.session_id,
        agent_type: created.agent_type,
        model,
        model_reason: created.model_reason,
        state: Mutex::new(SessionState::read(&initialize, &session)),
    })))
}

/// What an agent said of itself is shown as far as it can be read; a whole JSON-RPC response counts as its result.
pub(crate) fn lenient(json: &str) -> Value {
    let value: Value = serde_json::from_str(json).unwrap_or(Value::Null);
    match value.get("result") {
        Some(result) => result.clone(),
        None => value,
    }
}

pub(crate) fn install_progress(progress: v1::InstallProgress) -> InstallProgress {
    let v1::InstallProgress { package, received_bytes, total_bytes, place, waiting } = progress;
    InstallProgress { package, received_bytes, total_bytes, place, waiting }
}

fn model_kind(model: v1::ModelKind, call: &'static str) -> Result<ModelKind, AnswerError> {
    match model {
        v1::ModelKind::Demo => Ok(ModelKind::Demo),
        v1::ModelKind::Provider => Ok(ModelKind::Provider),
        // Guessing here could pass a demo off as real.
        v1::ModelKind::Unspecified => Err(AnswerError::Missing { call, field: "model" }),
    }
}

pub(crate) fn info(session: v1::SessionInfo) -> SessionInfo {
    SessionInfo { session_id: session.session_id, agent_type: session.agent_type }
}

pub(crate) fn agent(entry: v1::AgentEntry) -> AgentRegistryEntry {
    let v1::AgentEntry { id, acp_adapter, agent_package, installed, version, model_env, providers } = entry;
    let providers = providers
        .into_iter()
        .map(|provider| AgentProvider { key: provider.key, base_url: provider.base_url, host: provider.host })
        .collect();
    let version = Some(version).filter(|version| !version.is_empty());
    AgentRegistryEntry { id, acp_adapter, agent_package, installed, version, model_env, providers }
}

pub(crate) fn prompt_result(reply: v1::PromptResponse) -> Result<PromptResult, AnswerError> {
    let model = model_kind(reply.model(), "Prompt")?;
    let response = response(&reply.response_json)?;
    let v1::PromptResponse { text, stop_reason, rejected_permissions, .. } = reply;
    Ok(PromptResult { text, stop_reason, model, response, rejected_permissions })
}

/// A JSON-RPC response; a bare result counts as one.
pub(crate) fn response(json: &str) -> Result<JsonRpcResponse, AnswerError> {
    let mut value: Value =
        serde_json::from_str(json).map_err(|source| AnswerError::Json { call: "an ACP request", source })?;
    let is_response = value.get("result").is_some() || value.get("error").is_some();
    if !is_response {
        return Ok(JsonRpcResponse { id: Value::Null, result: Some(value), error: None });
    }
    let error = value.get("error").filter(|error| !error.is_null()).map(|error| JsonRpcError {
        code: error["code"].as_i64().unwrap_or_default(),
        message: error["message"].as_str().unwrap_or_default().to_owned(),
        data: error.get("data").cloned(),
    });
    let result = value.get_mut("result").map(Value::take).filter(|_| error.is_none());
    Ok(JsonRpcResponse { id: value["id"].take(), result, error })
}

pub(crate) fn event(event: v1::SessionEvent) -> Result<SessionEvent, AnswerError> {
    let notification = serde_json::from_str(&event.notification_json)
        .map_err(|source| AnswerError::Json { call: "SessionEvents", source })?;
    Ok(SessionEvent { sequence_number: event.sequence_number, at_ms: event.at_ms, notification })
}

pub(crate) fn stored(session: v1::StoredSession) -> Result<StoredSession, AnswerError> {
    const CALL: &str = "ListStoredSessions";
    let model = model_kind(session.model(), CALL)?;
    let permission_policy = match session.permission_policy() {
        v1::PermissionPolicy::Unspecified => None,
        v1::PermissionPolicy::Ask => Some(PermissionPolicy::Ask),
        v1::PermissionPolicy::AllowAll => Some(PermissionPolicy::AllowAll),
        v1::PermissionPolicy::RejectAll => Some(PermissionPolicy::RejectAll),
    };
    let options = match session.options_json.as_str() {
        "" => Value::Null,
        json => serde_json::from_str(json).map_err(|source| AnswerError::Json { call: CALL, source })?,
    };
    let known = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(StoredSession {
        session_id: session.session_id,
        agent_type: session.agent_type,
        agent_version: known(session.agent_version),
        agent_session_id: known(session.agent_session_id),
        title: known(session.title),
        cwd: known(session.cwd),
        model,
        model_reason: known(session.model_reason),
        vm: known(session.vm),
        permission_policy,
        options,
        created_at_ms: session.created_at_ms,
        updated_at_ms: session.updated_at_ms,
        ended: session.ended.map(|end| SessionEnd { at_ms: end.at_ms, reason: end.reason }),
        events: session.events,
        bytes: session.bytes,
        is_live: session.live,
    })
}

pub(crate) struct AskedPermission {
    pub(crate) permission_id: String,
    pub(crate) description: Option<String>,
    pub(crate) params: Value,
}

/// The request for permission in an event, if it is one.
pub(crate) fn permission(mut event: SessionEvent) -> Option<AskedPermission> {
    if event.method() != PERMISSION_METHOD {
        return None;
    }
    let permission_id = event.params()["permissionId"].as_str()?.to_owned();
    let description = event.params()["description"].as_str().map(str::to_owned);
    let params = event.notification["params"]["params"].take();
    Some(AskedPermission { permission_id, description, params })
}

pub(crate) fn respond_request(
    session_id: &str,
    permission_id: &str,
    reply: PermissionReply,
) -> v1::RespondPermissionRequest {
    let reply = match reply {
        PermissionReply::Once => v1::PermissionReply::Once,
        PermissionReply::Always => v1::PermissionReply::Always,
        PermissionReply::Reject => v1::PermissionReply::Reject,
    };
    v1::RespondPermissionRequest {
        session_id: session_id.to_owned(),
        permission_id: permission_id.to_owned(),
        reply: reply.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_response_is_read_with_its_error() {
        let read = |value: Value| response(&value.to_string()).unwrap();
        let ok = read(json!({ "jsonrpc": "2.0", "id": 3, "result": { "a": 1 } }));
        assert_eq!((ok.id, ok.result, ok.error), (json!(3), Some(json!({ "a": 1 })), None));
        let failed = read(json!({ "id": "x", "error": { "code": -32601, "message": "no", "data": [1] } }));
        let error = failed.error.unwrap();
        assert_eq!((error.code, error.message.as_str(), error.data), (-32601, "no", Some(json!([1]))));
        assert!(failed.result.is_none());
        assert!(response("garbage").is_err());
    }

    #[test]
    fn a_model_that_is_not_named_is_never_guessed() {
        assert!(
            prompt_result(v1::PromptResponse { response_json: "{}".into(), ..Default::default() }).is_err()
        );
    }

    #[test]
    fn only_requests_for_permission_are_taken_for_one() {
        let event = |notification| SessionEvent { sequence_number: 1, at_ms: 0, notification };
        assert!(permission(event(json!({ "method": "session/update", "params": {} }))).is_none());
        let params = json!({ "permissionId": "p1", "description": "run ls", "params": { "toolCall": {} } });
        let asked = permission(event(json!({ "method": PERMISSION_METHOD, "params": params }))).unwrap();
        assert_eq!((asked.permission_id.as_str(), asked.description.as_deref()), ("p1", Some("run ls")));
        assert_eq!(asked.params, json!({ "toolCall": {} }));
    }
}
