//! What comes in from the TypeScript half, and what the Rust SDK makes of it. Names are those of the public options.

use std::collections::HashMap;
use std::time::Duration;

use agentos::{
    AgentConfig, AgentInstall, AgentOsOptions, AgentOsSidecarConfig, CreateSession, Exec, McpServer,
    ModelChoice, Mount, PermissionPolicy, ReadHistory, Spawn,
};
use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

/// How a VM is made.
#[napi(object, object_to_js = false)]
pub struct CreateWish {
    pub mounts: Vec<MountWish>,
    pub command_dirs: Vec<String>,
    pub loopback_exempt_ports: Vec<u16>,
    pub additional_instructions: Option<String>,
    pub model: Option<String>,
    pub pool: Option<String>,
    pub agents: HashMap<String, AgentWish>,
}

/// Something to mount: a directory of the host where there is one, else memory.
#[napi(object, object_to_js = false)]
pub struct MountWish {
    pub path: String,
    pub host_path: Option<String>,
    pub max_bytes: Option<f64>,
    pub read_only: bool,
}

/// An agent of the caller's own.
#[napi(object, object_to_js = false)]
pub struct AgentWish {
    pub acp_adapter: String,
    pub agent_package: String,
    pub launch_args: Vec<String>,
    pub default_env: HashMap<String, String>,
}

impl CreateWish {
    pub(crate) fn into_options(self) -> AgentOsOptions {
        let mut options = AgentOsOptions::default();
        for mount in self.mounts {
            options = options.mount(mount.path.clone(), mount.into_mount());
        }
        options = self.command_dirs.into_iter().fold(options, AgentOsOptions::command_dir);
        options = self.loopback_exempt_ports.into_iter().fold(options, AgentOsOptions::loopback_exempt_port);
        if let Some(text) = self.additional_instructions {
            options = options.additional_instructions(text);
        }
        if let Some(model) = self.model {
            options = options.model(model_choice(&model));
        }
        if let Some(pool) = self.pool {
            options = options.sidecar(AgentOsSidecarConfig::shared(pool));
        }
        self.agents.into_iter().fold(options, |options, (id, agent)| options.agent(id, agent.into_config()))
    }
}

impl MountWish {
    fn into_mount(self) -> Mount {
        let mount = match (self.host_path, self.max_bytes) {
            (Some(path), _) => Mount::host_dir(path),
            (None, Some(bytes)) => Mount::memory().max_bytes(whole(bytes)),
            (None, None) => Mount::memory(),
        };
        if self.read_only { mount.read_only() } else { mount.read_write() }
    }
}

impl AgentWish {
    fn into_config(self) -> AgentConfig {
        let config = AgentConfig::new(self.acp_adapter, self.agent_package);
        let config = self.launch_args.into_iter().fold(config, AgentConfig::launch_arg);
        self.default_env.into_iter().fold(config, |config, (name, value)| config.default_env(name, value))
    }
}

/// The TypeScript half lets no other words through.
fn model_choice(word: &str) -> ModelChoice {
    match word {
        "demo" => ModelChoice::Demo,
        "provider" => ModelChoice::Provider,
        _ => ModelChoice::Auto,
    }
}

/// What `exec` and `spawn` have in common.
#[napi(object, object_to_js = false)]
pub struct ProcessWish {
    pub env: HashMap<String, String>,
    pub cwd: Option<String>,
    pub stdin: Option<Uint8Array>,
    pub timeout_ms: Option<f64>,
    pub max_output_bytes: Option<f64>,
}

impl ProcessWish {
    pub(crate) fn apply_to_exec(self, mut exec: Exec) -> Exec {
        if let Some(bytes) = self.max_output_bytes {
            exec = exec.max_output_bytes(whole(bytes));
        }
        if let Some(cwd) = self.cwd {
            exec = exec.cwd(cwd);
        }
        if let Some(stdin) = self.stdin {
            exec = exec.stdin(stdin.to_vec());
        }
        if let Some(timeout) = self.timeout_ms {
            exec = exec.timeout(millis(timeout));
        }
        exec.envs(self.env)
    }

    pub(crate) fn apply_to_spawn(self, mut spawn: Spawn) -> Spawn {
        if let Some(cwd) = self.cwd {
            spawn = spawn.cwd(cwd);
        }
        if let Some(stdin) = self.stdin {
            spawn = spawn.stdin(stdin.to_vec());
        }
        if let Some(timeout) = self.timeout_ms {
            spawn = spawn.timeout(millis(timeout));
        }
        spawn.envs(self.env)
    }
}

/// How a session is made.
#[napi(object, object_to_js = false)]
pub struct SessionWish {
    pub cwd: Option<String>,
    pub env: HashMap<String, String>,
    pub mcp_servers: Vec<McpWish>,
    pub skip_os_instructions: bool,
    pub additional_instructions: Option<String>,
    pub permission_policy: Option<String>,
    pub model: Option<String>,
    pub agent_install: Option<String>,
}

/// An MCP server: a remote one where there is a URL, else a program in the VM.
#[napi(object, object_to_js = false)]
pub struct McpWish {
    pub url: Option<String>,
    pub command: String,
    pub args: Vec<String>,
    /// Variables of a program, headers for a URL.
    pub names: HashMap<String, String>,
}

impl SessionWish {
    pub(crate) fn apply_to(self, mut session: CreateSession) -> CreateSession {
        if let Some(cwd) = self.cwd {
            session = session.cwd(cwd);
        }
        if self.skip_os_instructions {
            session = session.skip_os_instructions();
        }
        if let Some(text) = self.additional_instructions {
            session = session.additional_instructions(text);
        }
        if let Some(policy) = self.permission_policy {
            session = session.permission_policy(match policy.as_str() {
                "allow_all" => PermissionPolicy::AllowAll,
                "reject_all" => PermissionPolicy::RejectAll,
                _ => PermissionPolicy::Ask,
            });
        }
        if let Some(model) = self.model {
            session = session.model(model_choice(&model));
        }
        if let Some(install) = self.agent_install {
            let install = if install == "never" { AgentInstall::Never } else { AgentInstall::Auto };
            session = session.agent_install(install);
        }
        let session = self
            .mcp_servers
            .into_iter()
            .fold(session, |session, server| session.mcp_server(server.into_server()));
        session.envs(self.env)
    }
}

impl McpWish {
    fn into_server(self) -> McpServer {
        match self.url {
            Some(url) => {
                let server = McpServer::remote(url);
                self.names.into_iter().fold(server, |server, (name, value)| server.header(name, value))
            }
            None => {
                let server = McpServer::local(self.command, self.args);
                self.names.into_iter().fold(server, |server, (name, value)| server.env(name, value))
            }
        }
    }
}

/// Which events of a session are wanted.
#[napi(object, object_to_js = false)]
pub struct HistoryWish {
    pub since: Option<f64>,
    pub limit: Option<f64>,
    pub method: Option<String>,
}

impl HistoryWish {
    /// From event `first` on at the earliest.
    pub(crate) fn apply_to(self, mut history: ReadHistory, first: u64) -> ReadHistory {
        history = history.since(self.since.map_or(first, whole).max(first));
        if let Some(limit) = self.limit {
            history = history.limit(whole(limit));
        }
        match self.method {
            Some(method) => history.method(method),
            None => history,
        }
    }
}

/// A number that the TypeScript half found to be neither negative nor endless.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, which is what is meant"
)]
fn whole(number: f64) -> u64 {
    number as u64
}

fn millis(number: f64) -> Duration {
    Duration::from_millis(whole(number))
}
