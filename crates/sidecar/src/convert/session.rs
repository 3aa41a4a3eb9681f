//! Sessions and agents.

use agentos_agents::model::{ModelKind, ModelWish};
use agentos_agents::permission::{PathPattern, PermissionReply, PermissionRule, RuleAction};
use agentos_agents::plan::McpServer;
use agentos_agents::provider::Provider;
use agentos_agents::session::PermissionSetup;
use agentos_agents::store::Progress;
use agentos_agents::transcript::{Event, StoredSession};
use agentos_agents::{AgentConfig, AgentEntry, PermissionPolicy, Registry, Session};
use agentos_proto::v1::{self, mcp_server};

use crate::errors::Failure;
use crate::sessions::{self, CreateSession, PreparedInstructions};

impl TryFrom<v1::CreateSessionRequest> for CreateSession {
    type Error = Failure;

    fn try_from(request: v1::CreateSessionRequest) -> Result<Self, Failure> {
        let install = request.agent_install() != v1::AgentInstall::Never;
        let policy = match request.permission_policy() {
            v1::PermissionPolicy::Unspecified | v1::PermissionPolicy::Ask => PermissionPolicy::Ask,
            v1::PermissionPolicy::AllowAll => PermissionPolicy::AllowAll,
            v1::PermissionPolicy::RejectAll => PermissionPolicy::RejectAll,
        };
        let model = match request.model {
            0 => None,
            wish => Some(model_wish(wish)?),
        };
        Ok(Self {
            vm_id: request.vm_id,
            agent_type: request.agent_type,
            cwd: request.cwd,
            env: request.env.into_iter().collect(),
            mcp_servers: request.mcp_servers.into_iter().map(mcp_server).collect::<Result<_, _>>()?,
            skip_os_instructions: request.skip_os_instructions,
            additional_instructions: request.additional_instructions,
            permissions: PermissionSetup {
                policy,
                rules: request.permission_rules.into_iter().map(permission_rule).collect::<Result<_, _>>()?,
            },
            model,
            may_install: install && sessions::may_install(),
            provider_required: request.provider_required || sessions::provider_required(),
            prepared: request.prepared.map(prepared).unwrap_or_default(),
            restored: None,
        })
    }
}

/// How the caller hands the instructions to its agent.
pub(crate) fn prepared(prepared: v1::PreparedInstructions) -> PreparedInstructions {
    PreparedInstructions { args: prepared.args, env: prepared.env.into_iter().collect() }
}

fn permission_rule(rule: v1::PermissionRule) -> Result<PermissionRule, Failure> {
    let action = match rule.action() {
        v1::PermissionAction::Allow => RuleAction::Allow,
        v1::PermissionAction::Reject => RuleAction::Reject,
        v1::PermissionAction::Ask => RuleAction::Ask,
        v1::PermissionAction::Unspecified => {
            return Err(Failure::invalid("permission_rules", "A permission rule says nothing"));
        }
    };
    let path = rule.path.map(|path| PathPattern::parse(&path)).transpose();
    let path = path.map_err(|error| Failure::invalid("permission_rules", error.to_string()))?;
    Ok(PermissionRule { action, tool_kind: rule.tool_kind, path })
}

pub(crate) fn permission_reply(reply: v1::PermissionReply) -> Result<PermissionReply, Failure> {
    match reply {
        v1::PermissionReply::Once => Ok(PermissionReply::Once),
        v1::PermissionReply::Always => Ok(PermissionReply::Always),
        v1::PermissionReply::Reject => Ok(PermissionReply::Reject),
        v1::PermissionReply::Unspecified => Err(Failure::invalid("reply", "A permission needs a reply")),
    }
}

pub(crate) fn model_wish(wish: i32) -> Result<ModelWish, Failure> {
    match v1::ModelChoice::try_from(wish) {
        Ok(v1::ModelChoice::Unspecified | v1::ModelChoice::Auto) => Ok(ModelWish::Auto),
        Ok(v1::ModelChoice::Demo) => Ok(ModelWish::Demo),
        Ok(v1::ModelChoice::Provider) => Ok(ModelWish::Provider),
        Err(_) => Err(Failure::invalid("model", format!("Unknown choice of a model: {wish}"))),
    }
}

pub(crate) fn model_kind(kind: ModelKind) -> v1::ModelKind {
    match kind {
        ModelKind::Demo => v1::ModelKind::Demo,
        ModelKind::Provider => v1::ModelKind::Provider,
    }
}

fn mcp_server(server: v1::McpServer) -> Result<McpServer, Failure> {
    match server.kind {
        Some(mcp_server::Kind::Local(local)) => Ok(McpServer::Local {
            command: local.command,
            args: local.args,
            env: local.env.into_iter().collect(),
        }),
        Some(mcp_server::Kind::Remote(remote)) => {
            Ok(McpServer::Remote { url: remote.url, headers: remote.headers.into_iter().collect() })
        }
        None => Err(Failure::invalid("mcp_servers", "An MCP server is neither local nor remote")),
    }
}

pub(crate) fn agent_config(config: v1::AgentConfig) -> AgentConfig {
    AgentConfig {
        id: config.id,
        acp_adapter: config.acp_adapter,
        agent_package: config.agent_package,
        launch_args: config.launch_args,
        default_env: config.default_env.into_iter().collect(),
        command: config.command,
    }
}

pub(crate) fn agent_entry(entry: AgentEntry, registry: &Registry) -> v1::AgentEntry {
    let agent = registry.find(&entry.id).ok();
    let looked_for = agent.map(|agent| agent.keys.iter().chain(&agent.base_urls));
    let providers = agent.map(|agent| agent.providers.iter()).into_iter().flatten();
    v1::AgentEntry {
        providers: providers.map(|known| agent_provider(known.provider)).collect(),
        model_env: looked_for.into_iter().flatten().map(|name| (*name).to_owned()).collect(),
        id: entry.id,
        acp_adapter: entry.acp_adapter,
        agent_package: entry.agent_package,
        installed: entry.installed,
        version: entry.version.unwrap_or_default(),
    }
}

fn agent_provider(provider: &Provider) -> v1::AgentProvider {
    let host = provider.upstream.parse::<http::Uri>().ok();
    let host = host.as_ref().and_then(http::Uri::host).unwrap_or_default();
    v1::AgentProvider {
        key: provider.key.to_owned(),
        base_url: provider.base_url.to_owned(),
        host: host.to_owned(),
    }
}

pub(crate) fn install_progress(progress: Progress) -> v1::InstallProgress {
    v1::InstallProgress {
        package: progress.package,
        received_bytes: progress.received_bytes,
        total_bytes: progress.total_bytes,
        place: progress.place.to_string_lossy().into_owned(),
        waiting: progress.waiting,
    }
}

pub(crate) fn session_created(session: &Session) -> v1::SessionCreated {
    let (model, state) = (session.model(), session.state());
    v1::SessionCreated {
        session_id: session.id().as_str().to_owned(),
        model: model_kind(model.kind).into(),
        model_reason: model.reason.clone(),
        initialize_json: state.initialize.to_string(),
        session_json: state.session().to_string(),
        agent_type: session.agent_type().to_owned(),
    }
}

/// An event, beside the number of the newest one.
pub(crate) fn session_event(event: &Event, newest: u64) -> v1::SessionEvent {
    v1::SessionEvent {
        sequence_number: event.sequence,
        notification_json: event.notification.to_string(),
        at_ms: event.at_ms,
        newest,
    }
}

pub(crate) fn stored_session(stored: StoredSession, live: bool) -> v1::StoredSession {
    let details = stored.details;
    let model = match stored.model.as_str() {
        "demo" => v1::ModelKind::Demo,
        "provider" => v1::ModelKind::Provider,
        _ => v1::ModelKind::Unspecified,
    };
    let permission_policy = match details.permission_policy {
        None => v1::PermissionPolicy::Unspecified,
        Some(PermissionPolicy::Ask) => v1::PermissionPolicy::Ask,
        Some(PermissionPolicy::AllowAll) => v1::PermissionPolicy::AllowAll,
        Some(PermissionPolicy::RejectAll) => v1::PermissionPolicy::RejectAll,
    };
    v1::StoredSession {
        session_id: stored.id,
        agent_type: stored.agent_type,
        agent_version: details.agent_version.unwrap_or_default(),
        agent_session_id: details.agent_session_id.unwrap_or_default(),
        title: stored.title.unwrap_or_default(),
        cwd: details.cwd.unwrap_or_default(),
        model: model.into(),
        model_reason: details.model_reason.unwrap_or_default(),
        vm: details.vm.unwrap_or_default(),
        permission_policy: permission_policy.into(),
        options_json: details.options.unwrap_or_default(),
        created_at_ms: stored.created_ms,
        updated_at_ms: stored.updated_ms,
        ended: stored.ended.map(|end| v1::SessionEnd { at_ms: end.at_ms, reason: end.why }),
        events: stored.events,
        bytes: stored.bytes,
        live,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_model_is_the_vms() {
        let model = |model: v1::ModelChoice| {
            let request = v1::CreateSessionRequest { model: model.into(), ..Default::default() };
            CreateSession::try_from(request).unwrap().model
        };
        assert_eq!(model(v1::ModelChoice::Unspecified), None);
        assert_eq!(model(v1::ModelChoice::Auto), Some(ModelWish::Auto));
        assert_eq!(model(v1::ModelChoice::Demo), Some(ModelWish::Demo));
        assert_eq!(model(v1::ModelChoice::Provider), Some(ModelWish::Provider));
        let unknown = v1::CreateSessionRequest { model: 77, ..Default::default() };
        assert!(CreateSession::try_from(unknown).is_err());
    }

    #[test]
    fn an_mcp_server_is_local_or_remote() {
        let remote =
            v1::RemoteMcpServer { url: "http://x".into(), headers: [("a".into(), "b".into())].into() };
        let server = mcp_server(v1::McpServer { kind: Some(mcp_server::Kind::Remote(remote)) }).unwrap();
        assert!(
            matches!(server, McpServer::Remote { url, headers } if url == "http://x" && headers["a"] == "b")
        );
        assert!(mcp_server(v1::McpServer { kind: None }).is_err());
    }

    #[test]
    fn agents_name_the_variables_they_look_for() {
        let registry = Registry::built_in();
        let entry = AgentEntry {
            id: "pi".into(),
            acp_adapter: String::new(),
            agent_package: String::new(),
            installed: false,
            version: None,
        };
        let entry = agent_entry(entry, &registry);
        assert!(entry.model_env.contains(&"ANTHROPIC_API_KEY".to_owned()));
        assert_eq!(
            (entry.providers[0].key.as_str(), entry.providers[0].host.as_str()),
            ("ANTHROPIC_API_KEY", "api.anthropic.com")
        );
    }
}
