//! What must happen in a VM so that an agent runs there, as data.
//!
//! ```text
//! Agent + Installed + ModelChoice ── plan_session ──► LaunchPlan ──► (the sidecar) mounts, spawns ──► byte streams
//! ```
//!
//! What is particular to an agent is in its data; the planner takes the layers of it that concern the session
//! ([`crate::registry::launch`]) and fills their gaps. It knows paths and nothing of VMs. Inside the VM there are two
//! places, the same for every session: [`GUEST_PACKAGES`] shows the whole store read-only, so one mount serves every
//! agent and session, and [`GUEST_SESSIONS`] has one writable directory per session, with the agent's configuration and
//! whatever it keeps there. That directory is on the VM's own disk: what a guest writes into it counts against the VM's
//! limit, and it goes with the session. Nothing a guest can write is on the host. No file holds a secret: keys reach the
//! agent through its environment alone.

mod compose;
mod tool_servers;
mod warm_up;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::model::{ModelChoice, ModelKind};
use crate::permission::PermissionPolicy;
use crate::provider::Redirect;
use crate::registry::launch::ToolServers;
use crate::registry::template::Gap;
use crate::registry::{Adapter, Agent, Launch, Package, Source};
use crate::session::SessionId;
use crate::store::Installed;
use compose::Composition;
pub use warm_up::{PrepareError, WarmUp, plan_warm_up};

/// Where the VM sees the store's finished packages.
pub const GUEST_PACKAGES: &str = "/opt/agentos/packages";
/// Where the VM sees the state directories of its sessions.
pub const GUEST_SESSIONS: &str = "/opt/agentos/sessions";

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
    /// What must be mounted. The store's mount is the same for every plan of one host that needs it.
    pub mounts: Vec<PlanMount>,
    /// The session's own directory in the VM: to be made for the VM's user before the launch, to be removed after it.
    pub state_dir: Option<String>,
    /// Files to be written before the launch.
    pub files: Vec<PlanFile>,
    /// The files and directories in the VM that hold what the agent needs to go on with this session in another one.
    pub state: Vec<String>,
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
    /// The server of the host's tools.
    pub host_tools: Option<AcpHostTools>,
    /// Members of the parameters of `session/new`, `session/load` and `session/resume` beside the usual ones, which win.
    pub session: Map<String, Value>,
    /// The mode that the session is put into by `session/set_mode` before anything is prompted, also when it was loaded:
    /// agents go on in the mode of the former session otherwise.
    pub mode: Option<String>,
    /// Whether it never asks for permission, which its capabilities say then: no agent says so by itself.
    pub never_asks: bool,
    /// The way to authenticate where the agent wants one: one of the ids it offers.
    pub auth_method: Option<String>,
    /// Whether the agent has to be offered the client's files; agents in a VM work on its files directly.
    pub client_files: bool,
    /// Whether the agent has to be offered the client's terminals.
    pub client_terminals: bool,
}

/// The server of the host's tools, in ACP's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpHostTools {
    /// As a server over HTTP.
    pub over_http: Value,
    /// As one over stdio, for agents that take no others.
    pub over_stdio: Value,
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

/// The tool server of the host's own tools, in its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTools {
    /// What agents call it.
    pub name: String,
    /// Its address in the VM, over HTTP.
    pub url: String,
    /// The command in the VM that speaks the same over its stdio.
    pub command: Vec<String>,
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
    /// The command that an adapter in there names, for an agent that is started by it.
    pub adapter: Option<&'a Adapter>,
    /// The home of the VM's user.
    pub home: &'a str,
    /// Whether that user has a configuration of the agent there.
    pub own_configuration: bool,
    /// The id by which the agent knows the session, where a former one goes on.
    pub former: Option<&'a str>,
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
    /// The server of the host's tools, where there are any.
    pub host_tools: Option<&'a HostTools>,
    /// Who decides what the agent asks; it is started accordingly.
    pub permission_policy: PermissionPolicy,
}

/// Why no plan could be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The installation lacks a package that the launch needs.
    #[error("agent {agent}: the installation holds no {package}")]
    MissingPackage {
        /// The agent's id.
        agent: String,
        /// The package.
        package: String,
    },
    /// The agent takes no tool servers.
    #[error("agent {agent} takes no tool servers (mcpServers): it has no way to be told of them")]
    NoToolServers {
        /// The agent's id.
        agent: String,
    },
    /// The agent's data speaks of something that this launch has not.
    #[error("agent {agent}: its data speaks of {what}, which this launch has not")]
    Nothing {
        /// The agent's id.
        agent: String,
        /// What is missing.
        what: &'static str,
    },
    /// What the agent's data says of a file can't be written as what the file is.
    #[error("agent {agent}: its data can't be written as {path}")]
    File {
        /// The agent's id.
        agent: String,
        /// The file.
        path: String,
    },
}

/// Plans the launch of one session's agent.
pub fn plan_session(request: &PlanRequest<'_>) -> Result<LaunchPlan, PlanError> {
    let agent = request.agent;
    let place = Place::of(request)?;
    let value = |gap: &Gap| place.value(request, gap);
    let mut made = Composition::new(agent, &value)?;
    let data = &agent.data;
    if agent.source == Source::Modules {
        made.run_adapter(request)?;
    }
    if let Some(cache) = request.installed.compile_cache_name() {
        made.set("NODE_COMPILE_CACHE", format!("{GUEST_PACKAGES}/{cache}"));
    }
    made.add(&data.always)?;
    if matches!(agent.source, Source::Store { .. }) && request.node_modules.is_none() {
        made.add(&data.store)?;
    }
    if place.moved.is_some() {
        made.add(&data.moved)?;
    }
    match request.model.kind {
        // Whatever the user's environment says: it would name another model than the session says it has.
        ModelKind::Demo => made.add_fixed(&data.demo)?,
        ModelKind::Provider => {
            made.add(&data.provider)?;
            for redirect in request.redirects {
                made.add_with(&redirect.provider.gateway, &|gap| match gap {
                    Gap::Gateway => Ok(redirect.gateway.clone()),
                    gap => value(gap),
                })?;
            }
        }
    }
    if let Some((variable, directory)) = &place.moved {
        match request.model.kind {
            ModelKind::Demo => made.fix(variable, directory.clone()),
            ModelKind::Provider => made.set(variable, directory.clone()),
        }
    }
    made.add(if request.permission_policy.asks() { &data.ask } else { &data.allow_all })?;
    if !request.instructions.is_empty() {
        made.add(&data.instructions)?;
    }
    if request.former.is_some() {
        made.add(&data.resume)?;
    }
    let auth_method = agent.auth_method.clone();
    let mut acp = AcpSetup { auth_method, never_asks: !agent.asks, ..AcpSetup::default() };
    match agent.tool_servers {
        _ if request.mcp_servers.is_empty() && request.host_tools.is_none() => {}
        ToolServers::Acp => {
            acp.mcp_servers = tool_servers::acp(request.mcp_servers);
            acp.host_tools = request.host_tools.map(tool_servers::acp_host_tools);
        }
        ToolServers::PiExtension => made.add_pi_extension(&place.state, request),
        // The command is there for it, and its instructions say so.
        ToolServers::None if request.mcp_servers.is_empty() => {}
        ToolServers::None => return Err(PlanError::NoToolServers { agent: agent.id.clone() }),
    }
    let composed = made.finish(request.env)?;
    acp.session = composed.session;
    acp.mode = composed.mode;

    Ok(LaunchPlan {
        argv: composed.argv,
        env: composed.env,
        cwd: request.cwd.to_owned(),
        // An agent that needs nothing of the store may be the first one of a home, which has none yet.
        mounts: if request.installed.is_empty() {
            Vec::new()
        } else {
            vec![store_mount(request.installed.packages_dir())]
        },
        state: agent.state.iter().map(|path| path.fill(&value)).collect::<Result<_, _>>()?,
        state_dir: Some(place.state.clone()),
        files: composed.files,
        path_dirs: node_dirs(request.installed),
        launch: agent.launch,
        acp,
        agent_version: agent.version().filter(|_| request.node_modules.is_none()).map(str::to_owned),
    })
}

/// Where things are in one session.
struct Place {
    /// The session's own directory.
    state: String,
    /// Where the agent keeps its configuration.
    config: String,
    /// The variable that moves it there and what that one says, where it is not there by itself.
    moved: Option<(String, String)>,
}

impl Place {
    fn of(request: &PlanRequest<'_>) -> Result<Self, PlanError> {
        let state = format!("{GUEST_SESSIONS}/{}", request.session.as_str());
        let mut place = Self { state, config: request.home.to_owned(), moved: None };
        let Some(configuration) = request.agent.configuration.first() else { return Ok(place) };
        let usual = format!("{}/{}", request.home, configuration.directory);
        let own = configuration.variable.as_ref().and_then(|name| request.env.get(name));
        let own_directory = own.filter(|path| !path.is_empty()).map(|path| configuration.within(path));
        place.config = own_directory.unwrap_or(usual);
        let demo = request.model.kind == ModelKind::Demo;
        if let (Some(variable), Some(moved)) = (&configuration.variable, &configuration.moved)
            && (demo || (own.is_none() && !request.own_configuration))
        {
            let directory = moved.fill(&|gap| place.value(request, gap))?;
            place.config = configuration.within(&directory);
            place.moved = Some((variable.clone(), directory));
        }
        Ok(place)
    }

    fn value(&self, request: &PlanRequest<'_>, gap: &Gap) -> Result<String, PlanError> {
        let agent = request.agent;
        let nothing = |what| PlanError::Nothing { agent: agent.id.clone(), what };
        Ok(match gap {
            Gap::Node => node_binary(agent, request.installed)?,
            Gap::Package(key) => match request.node_modules {
                Some(modules) => {
                    let named = agent.packages.iter().find(|package| package.key == *key);
                    format!("{modules}/{}", named.map_or(key, |package| &package.name))
                }
                None => package_dir(agent, request.installed, key)?,
            },
            Gap::State => self.state.clone(),
            Gap::Config => self.config.clone(),
            Gap::Home => request.home.to_owned(),
            Gap::Cwd => request.cwd.to_owned(),
            Gap::Demo => request.demo_base_url.trim_end_matches('/').to_owned(),
            Gap::Gateway => return Err(nothing("a gateway")),
            Gap::Instructions => request.instructions.to_owned(),
            Gap::Former => request.former.ok_or_else(|| nothing("a former session"))?.to_owned(),
            Gap::Arch => npm_arch().to_owned(),
            Gap::Machine => std::env::consts::ARCH.to_owned(),
        })
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

fn package_dir(agent: &Agent, installed: &Installed, key: &str) -> Result<String, PlanError> {
    let package = agent.packages.iter().find(|package| package.key == key);
    match package.filter(|package| installed.holds(package)) {
        Some(package) => Ok(format!("{GUEST_PACKAGES}/{}", package.directory_name())),
        None => Err(PlanError::MissingPackage { agent: agent.id.clone(), package: key.to_owned() }),
    }
}

fn node_binary(agent: &Agent, installed: &Installed) -> Result<String, PlanError> {
    let node = installed.node().ok_or_else(|| PlanError::MissingPackage {
        agent: agent.id.clone(),
        package: "node for this processor".to_owned(),
    })?;
    Ok(format!("{GUEST_PACKAGES}/{}/{}", node.directory_name(), node.entry))
}

fn node_dirs(installed: &Installed) -> Vec<String> {
    let bin = |node: &Package| format!("{GUEST_PACKAGES}/{}/bin", node.directory_name());
    installed.node().map(bin).into_iter().collect()
}

fn store_mount(packages: &Path) -> PlanMount {
    PlanMount { host_path: packages.to_owned(), guest_path: GUEST_PACKAGES.to_owned(), read_only: true }
}

/// npm's name for this processor.
fn npm_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests;
