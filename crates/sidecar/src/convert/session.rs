//! Sessions and agents.

use agentos_agents::model::{ModelKind, ModelWish};
use agentos_agents::plan::McpServer;
use agentos_agents::store::Progress;
use agentos_agents::{AgentConfig, AgentEntry, Session};
use agentos_proto::v1::{self, mcp_server};

use crate::errors::Failure;
use crate::sessions::{self, CreateSession};

impl TryFrom<v1::CreateSessionRequest> for CreateSession {
    type Error = Failure;

    fn try_from(request: v1::CreateSessionRequest) -> Result<Self, Failure> {
        let install = request.agent_install() != v1::AgentInstall::Never;
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
            model,
            may_install: install && sessions::may_install(),
            provider_required: request.provider_required || sessions::provider_required(),
        })
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
    }
}

pub(crate) fn agent_entry(entry: AgentEntry) -> v1::AgentEntry {
    v1::AgentEntry {
        id: entry.id,
        acp_adapter: entry.acp_adapter,
        agent_package: entry.agent_package,
        installed: entry.installed,
        version: entry.version.unwrap_or_default(),
    }
}

pub(crate) fn install_progress(progress: Progress) -> v1::InstallProgress {
    v1::InstallProgress {
        package: progress.package,
        received_bytes: progress.received_bytes,
        total_bytes: progress.total_bytes,
        place: progress.place.to_string_lossy().into_owned(),
    }
}

pub(crate) fn session_created(session: &Session) -> v1::SessionCreated {
    let model = session.model();
    v1::SessionCreated {
        session_id: session.id().as_str().to_owned(),
        model: model_kind(model.kind).into(),
        model_reason: model.reason.clone(),
        initialize_json: session.initialize().to_string(),
        session_json: session.session_new().to_string(),
    }
}
