//! What a caller may wish for when creating VMs and sidecars: values only, nothing is checked here. The sidecar
//! validates a VM's wishes as a whole and its errors name the option.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent_config::AgentConfig;
use crate::mount::Mount;
use crate::policy::EgressPolicy;
use crate::secret::Secret;
use crate::sidecar::AgentOsSidecar;
use crate::tool::{ToolKit, ToolPermissions};

/// The pool that is used where none is named.
const DEFAULT_POOL: &str = "default";

/// How a VM is made.
///
/// ```
/// use agentos::{AgentOsOptions, Limits, Mount};
///
/// let options = AgentOsOptions::default()
///     .mount("/work", Mount::host_dir("./src").read_write())
///     .env("RUST_LOG", "debug")
///     .limits(Limits::default().memory_bytes(512 << 20));
/// ```
#[derive(Clone, Default)]
pub struct AgentOsOptions {
    pub(crate) mounts: Vec<(String, Mount)>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) command_dirs: Vec<PathBuf>,
    pub(crate) loopback_exempt_ports: Vec<u16>,
    pub(crate) additional_instructions: Option<String>,
    pub(crate) model: Option<ModelChoice>,
    pub(crate) limits: Limits,
    pub(crate) sidecar: AgentOsSidecarConfig,
    pub(crate) detached: Option<String>,
    pub(crate) dispose_grace: Option<Duration>,
    pub(crate) base: Base,
    pub(crate) root: bool,
    pub(crate) agents: BTreeMap<String, AgentConfig>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) network: Option<EgressPolicy>,
    pub(crate) dns_servers: Vec<SocketAddr>,
    pub(crate) storage: Storage,
    pub(crate) tool_kits: Vec<ToolKit>,
    pub(crate) tool_permissions: ToolPermissions,
}

impl AgentOsOptions {
    /// Shows a directory of the host, or fresh memory, at a path of the VM.
    #[must_use]
    pub fn mount(mut self, path: impl Into<String>, mount: Mount) -> Self {
        self.mounts.push((path.into(), mount));
        self
    }

    /// Sets a variable for every process of the VM.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets several variables.
    #[must_use]
    pub fn envs<K: Into<String>, V: Into<String>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        self.env.extend(vars.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Mounts a host directory of executables read-only and puts it first on `PATH`.
    #[must_use]
    pub fn command_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.command_dirs.push(directory.into());
        self
    }

    /// Lets 127.0.0.1:`port` inside the VM reach 127.0.0.1:`port` of the host.
    #[must_use]
    pub fn loopback_exempt_port(mut self, port: u16) -> Self {
        self.loopback_exempt_ports.push(port);
        self
    }

    /// Text added to the OS instructions that agents in this VM are given.
    #[must_use]
    pub fn additional_instructions(mut self, text: impl Into<String>) -> Self {
        self.additional_instructions = Some(text.into());
        self
    }

    /// Which model agents talk to; [`ModelChoice::Auto`] by default.
    #[must_use]
    pub fn model(mut self, model: ModelChoice) -> Self {
        self.model = Some(model);
        self
    }

    /// Bounds what the VM may use.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The sidecar that hosts the VM: a handle, or a shared pool. The default pool otherwise.
    #[must_use]
    pub fn sidecar(mut self, sidecar: impl Into<AgentOsSidecarConfig>) -> Self {
        self.sidecar = sidecar.into();
        self
    }

    /// Lets the VM outlive this client; [`AgentOs::attach`](crate::AgentOs::attach) finds it again under `name`.
    #[must_use]
    pub fn detached(mut self, name: impl Into<String>) -> Self {
        self.detached = Some(name.into());
        self
    }

    /// The time between SIGTERM and SIGKILL when the VM is disposed; 500 ms by default.
    #[must_use]
    pub fn dispose_grace(mut self, grace: Duration) -> Self {
        self.dispose_grace = Some(grace);
        self
    }

    /// What the VM's root file system is made from; the host's programs by default.
    #[must_use]
    pub fn base(mut self, base: Base) -> Self {
        self.base = base;
        self
    }

    /// Where what the VM writes is kept; [`Storage::Memory`] by default, which goes with it.
    #[must_use]
    pub fn storage(mut self, storage: Storage) -> Self {
        self.storage = storage;
        self
    }

    /// Runs the VM's processes as its root, with a reduced set of capabilities, instead of its plain user.
    #[must_use]
    pub fn root(mut self, root: bool) -> Self {
        self.root = root;
        self
    }

    /// What may leave the VM; [`EgressPolicy::public`] by default.
    #[must_use]
    pub fn network(mut self, policy: EgressPolicy) -> Self {
        self.network = Some(policy);
        self
    }

    /// A DNS server that is asked instead of the host's own; several are asked in the order given. The VM reaches it by
    /// its own resolver alone, so the policy need not allow it.
    #[must_use]
    pub fn dns_server(mut self, server: SocketAddr) -> Self {
        self.dns_servers.push(server);
        self
    }

    /// Describes an agent; it wins over a built-in one of the same id.
    #[must_use]
    pub fn agent(mut self, id: impl Into<String>, agent: AgentConfig) -> Self {
        self.agents.insert(id.into(), agent);
        self
    }

    /// Declares a secret that the VM's programs can use and never see. There can be several.
    #[must_use]
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secrets.push(secret);
        self
    }

    /// Lets programs in the VM call functions of this program: as tools of agents, and by the command `agentos-tools`.
    /// There can be several kits, with at most 128 tools. They are served until the VM or this program's runtime ends.
    #[must_use]
    pub fn tool_kit(mut self, kit: ToolKit) -> Self {
        self.tool_kits.push(kit);
        self
    }

    /// Which of the host tools may be called; all by default.
    #[must_use]
    pub fn tool_permissions(mut self, permissions: ToolPermissions) -> Self {
        self.tool_permissions = permissions;
        self
    }
}

/// Names of variables are shown, values never: they may be secrets.
impl fmt::Debug for AgentOsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentOsOptions")
            .field("mounts", &self.mounts)
            .field("env", &self.env.keys())
            .field("command_dirs", &self.command_dirs)
            .field("loopback_exempt_ports", &self.loopback_exempt_ports)
            .field("additional_instructions", &self.additional_instructions)
            .field("model", &self.model)
            .field("limits", &self.limits)
            .field("sidecar", &self.sidecar)
            .field("detached", &self.detached)
            .field("dispose_grace", &self.dispose_grace)
            .field("base", &self.base)
            .field("root", &self.root)
            .field("agents", &self.agents)
            .field("secrets", &self.secrets)
            .field("network", &self.network)
            .field("dns_servers", &self.dns_servers)
            .field("storage", &self.storage)
            .field("tool_kits", &self.tool_kits)
            .field("tool_permissions", &self.tool_permissions)
            .finish()
    }
}

/// Which model agents talk to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModelChoice {
    /// A provider where the session's environment or configuration names a key the agent looks for, else the demo.
    #[default]
    Auto,
    /// The offline scripted model.
    Demo,
    /// Whatever the agent's own configuration says.
    Provider,
}

/// Bounds on what one VM uses. What is not set has the documented default.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu: Option<f64>,
    pub(crate) processes: Option<u32>,
    pub(crate) open_files: Option<u32>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) connections: Option<u32>,
    pub(crate) bandwidth_bytes: Option<u64>,
}

impl Limits {
    /// Memory of all processes together.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// CPUs, in fractions of one: 1.5 is one and a half.
    #[must_use]
    pub fn cpu(mut self, cpus: f64) -> Self {
        self.cpu = Some(cpus);
        self
    }

    /// Processes and threads alive at once.
    #[must_use]
    pub fn processes(mut self, count: u32) -> Self {
        self.processes = Some(count);
        self
    }

    /// Open files of one process.
    #[must_use]
    pub fn open_files(mut self, count: u32) -> Self {
        self.open_files = Some(count);
        self
    }

    /// Everything the VM writes outside of mounts of the host. Refused together with a [`Storage::Directory`], whose
    /// bytes nothing here bounds.
    #[must_use]
    pub fn disk_bytes(mut self, bytes: u64) -> Self {
        self.disk_bytes = Some(bytes);
        self
    }

    /// TCP connections out of the VM at a time; 2,048 by default. The next one is refused.
    #[must_use]
    pub fn connections(mut self, count: u32) -> Self {
        self.connections = Some(count);
        self
    }

    /// Bytes of payload that may leave the VM in a second, and as many that may come in. There is no limit by default.
    #[must_use]
    pub fn bandwidth_bytes(mut self, bytes_per_second: u64) -> Self {
        self.bandwidth_bytes = Some(bytes_per_second);
        self
    }
}

/// What a VM's root file system is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Base {
    /// The host's programs, read-only below what the VM writes.
    Host {
        /// Show the host's /usr/local instead of an empty one.
        host_usr_local: bool,
    },
    /// A directory of the host that holds a whole root file system.
    Directory(PathBuf),
}

impl Default for Base {
    fn default() -> Self {
        Self::host()
    }
}

impl Base {
    /// The host's programs.
    #[must_use]
    pub fn host() -> Self {
        Self::Host { host_usr_local: false }
    }

    /// A directory of the host that holds a whole root file system.
    #[must_use]
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory(path.into())
    }
}

/// Where what a VM writes is kept, outside of its mounts and of /tmp, /run and /dev/shm, which are always in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// In memory. It goes with the VM.
    #[default]
    Memory,
    /// In a directory of the host. A VM that is made with the same one finds what the former has left, however that
    /// ended.
    Directory(PathBuf),
}

impl Storage {
    /// In a directory of the host, which is made where it is missing. It has to be empty or a VM's storage already,
    /// belong to the user of the sidecar, have mode 0700, and lie on a file system such as ext4, xfs or btrfs; one VM
    /// at a time uses it. A relative path is taken from this process's working directory.
    #[must_use]
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory(path.into())
    }
}

/// Which sidecar hosts a VM.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AgentOsSidecarConfig {
    /// The sidecar of a pool, started where it does not run.
    Shared(AgentOsSharedSidecarOptions),
    /// This one.
    Explicit(AgentOsSidecar),
}

impl Default for AgentOsSidecarConfig {
    fn default() -> Self {
        Self::Shared(AgentOsSharedSidecarOptions::default())
    }
}

impl AgentOsSidecarConfig {
    /// The sidecar of this pool.
    #[must_use]
    pub fn shared(pool: impl Into<String>) -> Self {
        Self::Shared(AgentOsSharedSidecarOptions::default().pool(pool))
    }

    /// The sidecar behind this handle.
    #[must_use]
    pub fn explicit(handle: AgentOsSidecar) -> Self {
        Self::Explicit(handle)
    }
}

impl From<AgentOsSidecar> for AgentOsSidecarConfig {
    fn from(handle: AgentOsSidecar) -> Self {
        Self::Explicit(handle)
    }
}

impl From<&AgentOsSidecar> for AgentOsSidecarConfig {
    fn from(handle: &AgentOsSidecar) -> Self {
        Self::Explicit(handle.clone())
    }
}

impl From<AgentOsSharedSidecarOptions> for AgentOsSidecarConfig {
    fn from(options: AgentOsSharedSidecarOptions) -> Self {
        Self::Shared(options)
    }
}

/// The setters that shared and explicit sidecars share.
macro_rules! start_setters {
    () => {
        /// The directory of sockets, instead of `$XDG_RUNTIME_DIR/agentos`, `/run/agentos` or `/tmp/agentos-UID`.
        #[must_use]
        pub fn runtime_dir(mut self, directory: impl Into<PathBuf>) -> Self {
            self.runtime_dir = Some(directory.into());
            self
        }

        /// The `agentos` binary to start the sidecar with, instead of the one found.
        #[must_use]
        pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
            self.binary = Some(path.into());
            self
        }
    };
}

/// Which pool's sidecar, and how to find or start it.
#[derive(Debug, Clone)]
pub struct AgentOsSharedSidecarOptions {
    pub(crate) pool: String,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) binary: Option<PathBuf>,
}

impl Default for AgentOsSharedSidecarOptions {
    fn default() -> Self {
        Self { pool: DEFAULT_POOL.to_owned(), runtime_dir: None, binary: None }
    }
}

impl AgentOsSharedSidecarOptions {
    /// The pool's name, `default` unless set: letters, digits, `.`, `_` and `-`.
    #[must_use]
    pub fn pool(mut self, name: impl Into<String>) -> Self {
        self.pool = name.into();
        self
    }

    start_setters!();
}

/// How a sidecar of one's own is started.
#[derive(Debug, Clone, Default)]
pub struct AgentOsCreateSidecarOptions {
    pub(crate) sidecar_id: Option<String>,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) binary: Option<PathBuf>,
}

impl AgentOsCreateSidecarOptions {
    /// The id, `agent-os-sidecar-UUID` unless set: letters, digits, `.`, `_` and `-`.
    #[must_use]
    pub fn sidecar_id(mut self, id: impl Into<String>) -> Self {
        self.sidecar_id = Some(id.into());
        self
    }

    start_setters!();
}

/// What `exec`, `spawn` and `open_shell` have in common.
#[derive(Clone, Default)]
pub(crate) struct ProcessOptions {
    pub(crate) env: BTreeMap<String, OsString>,
    pub(crate) cwd: Option<crate::GuestPath>,
    pub(crate) timeout: Option<Duration>,
}

impl ProcessOptions {
    pub(crate) fn set_env(&mut self, name: impl Into<String>, value: impl AsRef<OsStr>) {
        self.env.insert(name.into(), value.as_ref().to_owned());
    }
}

impl fmt::Debug for ProcessOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessOptions")
            .field("env", &self.env.keys())
            .field("cwd", &self.cwd)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Host paths are the client's, so they are made absolute with the client's working directory.
pub(crate) fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}
