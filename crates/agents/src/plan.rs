//! What must happen in a VM so that an agent runs there, as data.
//!
//! ```text
//! Agent + Installed + ModelChoice ── plan_session ──► LaunchPlan ──► (the sidecar) mounts, spawns ──► byte streams
//! ```
//!
//! The planner knows paths and nothing of VMs. Inside the VM there are two places, the same for every session:
//! [`GUEST_PACKAGES`] shows the whole store read-only, so one mount serves every agent and session, and
//! [`GUEST_SESSIONS`] has one writable directory per session, with the agent's configuration and whatever it keeps
//! there. That directory is on the VM's own disk: what a guest writes into it counts against the VM's limit, and it goes
//! with the session. Nothing a guest can write is on the host. No file holds a secret: keys reach the agent through its
//! environment alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::model::{ModelChoice, ModelKind};
use crate::permission::PermissionPolicy;
use crate::provider::Redirect;
use crate::registry::{Agent, Launch, UnsupportedAgent};
use crate::session::SessionId;
use crate::store::{Installed, Store};

/// Where the VM sees the store's finished packages.
pub const GUEST_PACKAGES: &str = "/opt/agentos/packages";
/// Where the VM sees the state directories of its sessions.
pub const GUEST_SESSIONS: &str = "/opt/agentos/sessions";
/// Where a warm-up writes its compile cache; no session ever sees it.
const GUEST_WARM_UP: &str = "/opt/agentos/warm-up";
/// The provider and model names under which pi knows the demo model.
const DEMO_PROVIDER: &str = "agentos";
const DEMO_MODEL: &str = "demo";
/// Pi refuses to use a model without a key; the demo model ignores it.
const DEMO_KEY: &str = "no-key-needed";

/// A directory of the host to be seen in the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanMount {
    /// The directory on the host.
    pub host_path: PathBuf,
    /// Where it is seen.
    pub guest_path: String,
    /// Whether the VM may only read it.
    pub read_only: bool,
}

/// A file to be written in the VM before the launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanFile {
    /// Its path in the VM.
    pub guest_path: String,
    /// Its whole content.
    pub content: Vec<u8>,
}

/// How to start an agent and what it must find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The command; argv[0] is an absolute path in the VM.
    pub argv: Vec<String>,
    /// The agent's variables: the session's, over the plan's, over nothing; the demo model's directory over all. `PATH` is the VM's own unless the
    /// session sets one.
    pub env: BTreeMap<String, String>,
    /// Its working directory in the VM.
    pub cwd: String,
    /// What must be mounted. The store's mount is the same for every plan of one host.
    pub mounts: Vec<PlanMount>,
    /// The session's own directory in the VM: to be made for the VM's user before the launch, to be removed after it.
    pub state_dir: Option<String>,
    /// Files to be written before the launch.
    pub files: Vec<PlanFile>,
    /// Directories that belong behind everything else on PATH.
    pub path_dirs: Vec<String>,
    /// How the process is spoken to.
    pub launch: Launch,
    /// What an agent that speaks ACP is told at its start.
    pub acp: AcpSetup,
    /// The agent's version, where it is pinned and the pinned one is what runs.
    pub agent_version: Option<String>,
}

/// What an agent that speaks ACP is told at its start, beyond where it works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcpSetup {
    /// The tool servers, in ACP's shape.
    pub mcp_servers: Vec<Value>,
    /// The way to authenticate where the agent wants one: one of the ids it offers.
    pub auth_method: Option<String>,
    /// Whether the agent has to be offered the client's files; agents in a VM work on its files directly.
    pub client_files: bool,
    /// Whether the agent has to be offered the client's terminals.
    pub client_terminals: bool,
}

/// A tool server the session's agent should reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum McpServer {
    /// A program in the VM, over its stdio.
    Local {
        /// The program.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Its own variables.
        env: BTreeMap<String, String>,
    },
    /// A server over HTTP.
    Remote {
        /// Its address.
        url: String,
        /// Headers of each request.
        headers: BTreeMap<String, String>,
    },
}

/// What a session's plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// The agent.
    pub agent: &'a Agent,
    /// The session, for its state directory.
    pub session: &'a SessionId,
    /// The agent's packages in the store.
    pub installed: &'a Installed,
    /// A node_modules directory in the VM that holds the agent's package and wins over the store's.
    pub node_modules: Option<&'a str>,
    /// The working directory in the VM.
    pub cwd: &'a str,
    /// The session's environment; it wins over everything the plan sets, but for where the demo model is configured.
    pub env: &'a BTreeMap<String, String>,
    /// The OS instructions, whole; empty means none.
    pub instructions: &'a str,
    /// The model that was chosen.
    pub model: &'a ModelChoice,
    /// The demo model's address inside the VM, without a path: `http://127.0.0.1:4141`.
    pub demo_base_url: &'a str,
    /// The providers that are reached through the gateway, with placeholders for keys.
    pub redirects: &'a [Redirect],
    /// The tool servers.
    pub mcp_servers: &'a [McpServer],
    /// Who decides what the agent asks; it is started accordingly.
    pub permission_policy: PermissionPolicy,
}

/// Why no plan could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The agent can't be launched by this version.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedAgent),
    /// The installation lacks a package that the launch needs.
    #[error("agent {agent}: the installation holds no {package}")]
    MissingPackage {
        /// The agent's id.
        agent: String,
        /// The package.
        package: String,
    },
}

/// A directory of the store can't be made or moved for a warm-up.
#[derive(Debug, thiserror::Error)]
#[error("preparing {}", path.display())]
pub struct PrepareError {
    /// The directory.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl PrepareError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// Plans the launch of one session's agent.
pub fn plan_session(request: &PlanRequest<'_>) -> Result<LaunchPlan, PlanError> {
    request.agent.launchable()?;
    let agent = request.agent;
    let state = format!("{GUEST_SESSIONS}/{}", request.session.as_str());
    let mut command = pi_command(request)?;
    let mut env = agent.env.clone();
    let mut files = Vec::new();

    if let Some(cache) = request.installed.compile_cache_name() {
        env.insert("NODE_COMPILE_CACHE".to_owned(), format!("{GUEST_PACKAGES}/{cache}"));
    }
    // The agent's own configuration may be anywhere its user put it; only its transcripts move to the session.
    if request.model.kind == ModelKind::Provider {
        env.insert("PI_CODING_AGENT_SESSION_DIR".to_owned(), format!("{state}/sessions"));
    }
    if !request.instructions.is_empty() {
        let guest_path = format!("{state}/agentos-instructions.md");
        command.extend(["--append-system-prompt".to_owned(), guest_path.clone()]);
        files.push(PlanFile { guest_path, content: request.instructions.as_bytes().to_vec() });
    }
    if request.model.kind == ModelKind::Provider && !request.redirects.is_empty() {
        let guest_path = format!("{state}/agentos-gateway.mjs");
        command.extend(["--extension".to_owned(), guest_path.clone()]);
        files.push(PlanFile { guest_path, content: gateway_extension(request.redirects) });
    }
    if !request.mcp_servers.is_empty() {
        let guest_path = format!("{state}/agentos-mcp.mjs");
        let (content, variables) = mcp_extension(request.mcp_servers);
        command.extend(["--extension".to_owned(), guest_path.clone()]);
        files.push(PlanFile { guest_path, content });
        env.extend(variables);
    }
    command.extend(agent.extra_args.iter().cloned());
    env.extend(request.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    // A configuration elsewhere would name another model than the session says it has.
    if request.model.kind == ModelKind::Demo {
        env.insert("PI_CODING_AGENT_DIR".to_owned(), state.clone());
        files.extend(demo_configuration(&state, request.demo_base_url));
    }

    Ok(LaunchPlan {
        argv: command,
        env,
        cwd: request.cwd.to_owned(),
        mounts: vec![store_mount(request.installed.packages_dir())],
        state_dir: Some(state),
        files,
        path_dirs: node_dirs(request.installed),
        launch: agent.launch,
        acp: AcpSetup::default(),
        agent_version: agent.version().filter(|_| request.node_modules.is_none()).map(str::to_owned),
    })
}

/// One run of an agent in a VM of its own that leaves a compile cache behind.
///
/// A session whose Node finds compiled code is ready in two thirds of the time. The cache is code that later sessions
/// run without looking at it, so a guest that could write it could reach into every other VM. It is therefore made
/// in a fresh VM that sees the store and nothing of any user, and is read-only ever after. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct WarmUp {
    /// What to run: with its input at its end, so that it exits by itself.
    pub plan: LaunchPlan,
    scratch: PathBuf,
    finished: PathBuf,
}

/// Plans the warm-up of an installation.
pub fn plan_warm_up(agent: &Agent, store: &Store, installed: &Installed) -> Result<WarmUp, PlanError> {
    agent.launchable()?;
    let (scratch, finished) = store.compile_cache_places(installed);
    let entry = pi_entry(agent, installed, None)?;
    let node = node_binary(agent, installed)?;
    let mut env = agent.env.clone();
    env.insert("NODE_COMPILE_CACHE".to_owned(), format!("{GUEST_WARM_UP}/cache"));
    env.insert("PI_CODING_AGENT_DIR".to_owned(), "/tmp/agentos-warm-up".to_owned());
    let argv = [node, entry].into_iter().chain(PI_RPC.iter().map(|arg| (*arg).to_owned()));
    let plan = LaunchPlan {
        argv: argv.chain(["--no-session".to_owned()]).collect(),
        env,
        cwd: "/".to_owned(),
        mounts: vec![
            store_mount(installed.packages_dir()),
            PlanMount { host_path: scratch.clone(), guest_path: GUEST_WARM_UP.to_owned(), read_only: false },
        ],
        state_dir: None,
        files: Vec::new(),
        path_dirs: node_dirs(installed),
        launch: agent.launch,
        acp: AcpSetup::default(),
        agent_version: agent.version().map(str::to_owned),
    };
    Ok(WarmUp { plan, scratch, finished })
}

impl WarmUp {
    /// Makes the directory that the run writes into.
    pub fn prepare(&self) -> Result<(), PrepareError> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(&self.scratch).map_err(PrepareError::at(&self.scratch))
    }

    /// Takes over what the run left, so that later sessions find it; of two at once the first wins.
    pub fn adopt(self) -> Result<(), PrepareError> {
        let cache = self.scratch.join("cache");
        match fs::rename(&cache, &self.finished) {
            Err(_) if self.finished.is_dir() => Ok(()),
            renamed => renamed.map_err(PrepareError::at(&cache)),
        }
    }
}

impl Drop for WarmUp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

impl LaunchPlan {
    /// The PATH of the agent when the VM's own is `base`: the session's wins, the plan's directories come last.
    #[must_use]
    pub fn path(&self, base: &str) -> String {
        let own = self.env.get("PATH").map_or(base, String::as_str);
        let mut parts: Vec<&str> = own.split(':').filter(|part| !part.is_empty()).collect();
        for dir in &self.path_dirs {
            if !parts.contains(&dir.as_str()) {
                parts.push(dir);
            }
        }
        parts.join(":")
    }
}

/// The arguments that make pi a peer instead of a program for people.
const PI_RPC: [&str; 2] = ["--mode", "rpc"];

fn pi_command(request: &PlanRequest<'_>) -> Result<Vec<String>, PlanError> {
    let node = node_binary(request.agent, request.installed)?;
    let entry = pi_entry(request.agent, request.installed, request.node_modules)?;
    Ok([node, entry].into_iter().chain(PI_RPC.iter().map(|arg| (*arg).to_owned())).collect())
}

fn pi_entry(agent: &Agent, installed: &Installed, node_modules: Option<&str>) -> Result<String, PlanError> {
    let package = agent.packages.iter().find(|package| package.name == agent.agent_package);
    let missing =
        || PlanError::MissingPackage { agent: agent.id.clone(), package: agent.agent_package.clone() };
    let package = package.ok_or_else(missing)?;
    if let Some(modules) = node_modules {
        return Ok(format!("{modules}/{}/{}", package.name, package.entry));
    }
    if !installed.holds(package) {
        return Err(missing());
    }
    Ok(format!("{GUEST_PACKAGES}/{}/{}", package.directory_name(), package.entry))
}

fn node_binary(agent: &Agent, installed: &Installed) -> Result<String, PlanError> {
    let node = installed.node().ok_or_else(|| PlanError::MissingPackage {
        agent: agent.id.clone(),
        package: "node for this processor".to_owned(),
    })?;
    Ok(format!("{GUEST_PACKAGES}/{}/{}", node.directory_name(), node.entry))
}

fn node_dirs(installed: &Installed) -> Vec<String> {
    let bin = |node: &crate::registry::Package| format!("{GUEST_PACKAGES}/{}/bin", node.directory_name());
    installed.node().map(bin).into_iter().collect()
}

fn store_mount(packages: &Path) -> PlanMount {
    PlanMount { host_path: packages.to_owned(), guest_path: GUEST_PACKAGES.to_owned(), read_only: true }
}

/// Pi's two configuration files for the demo model.
fn demo_configuration(state: &str, base_url: &str) -> [PlanFile; 2] {
    let models = json!({ "providers": { DEMO_PROVIDER: {
        "name": "agentOS demo model (offline script)",
        "baseUrl": format!("{}/v1", base_url.trim_end_matches('/')),
        "api": "openai-completions",
        "apiKey": DEMO_KEY,
        "models": [{ "id": DEMO_MODEL, "name": "agentOS demo model", "contextWindow": 128_000, "maxTokens": 16_384 }],
    }}});
    let settings = json!({
        "defaultProvider": DEMO_PROVIDER,
        "defaultModel": DEMO_MODEL,
        "quietStartup": true,
        "enableInstallTelemetry": false,
        // A script fails on purpose or not at all: nothing is gained by asking it again.
        "retry": { "enabled": false },
    });
    [("models.json", models), ("settings.json", settings)].map(|(name, value)| PlanFile {
        guest_path: format!("{state}/{name}"),
        content: format!("{value:#}\n").into_bytes(),
    })
}

/// An extension that points pi's providers to the gateway.
///
/// Pi keeps all that it knows of a provider but the address, and the user's own settings, which `models.json` in another
/// directory would hide.
fn gateway_extension(redirects: &[Redirect]) -> Vec<u8> {
    let mut source = String::from("export default function (pi) {\n");
    for Redirect { provider, gateway } in redirects {
        let config = json!({ "baseUrl": format!("{gateway}{}", provider.path) });
        source.push_str(&format!("  pi.registerProvider({}, {config});\n", json!(provider.id)));
    }
    source.push_str("}\n");
    source.into_bytes()
}

/// An extension that registers the session's tool servers with pi, and the variables their values stand in.
///
/// Pi has no flag for tool servers, and its `mcp.json` belongs to the user. Values of env and headers may be secrets,
/// so the file only refers to variables of the agent's process, which pi fills in.
fn mcp_extension(servers: &[McpServer]) -> (Vec<u8>, BTreeMap<String, String>) {
    let mut variables = BTreeMap::new();
    let mut source = String::from("export default function (pi) {\n");
    for (index, server) in servers.iter().enumerate() {
        let number = index + 1;
        let mut refer = |kind: &str, values: &BTreeMap<String, String>| {
            let mut references = serde_json::Map::new();
            for (at, (name, value)) in values.iter().enumerate() {
                let variable = format!("AGENTOS_MCP_{number}_{kind}_{at}");
                references.insert(name.clone(), json!(format!("${{{variable}}}")));
                variables.insert(variable, value.clone());
            }
            references
        };
        let config = match server {
            McpServer::Local { command, args, env } => {
                json!({ "command": command, "args": args, "env": refer("ENV", env), "exposure": "direct" })
            }
            McpServer::Remote { url, headers } => {
                json!({ "url": url, "headers": refer("HEADER", headers), "exposure": "direct" })
            }
        };
        source.push_str(&format!("  pi.registerMcpServer(\"agentos-{number}\", {config});\n"));
    }
    source.push_str("}\n");
    (source.into_bytes(), variables)
}

#[cfg(test)]
mod tests;
