//! From a wish to what a VM is made of.
//!
//! [`VmOptions`] is what somebody asked for; [`VmSpec::validate`] checks every field once, fills in the defaults of
//! this host and gives a [`VmSpec`], which the rest of the crate trusts. A limit that nothing can enforce on this
//! host is refused where it was asked for and left out where it is a default.

mod environment;
mod limits;
mod mounts;
mod secrets;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::launcher::{
    Base, BootFailure, BootPlan, HostFindings, IdRange, Limits, PlannedMount,
};
use agentos_guest_protocol::network::Uplink;

pub use environment::Environment;
pub(crate) use environment::EnvironmentRefusal;
pub use limits::LimitOptions;
pub use mounts::{MountKind, MountOptions};
pub(crate) use mounts::{MountRefusal, plan_mount};

use crate::launcher::Launcher;
use crate::network::NetworkOptions;
use crate::path::{GuestPath, PathError};
use crate::storage::StorageOptions;
use agentos_netstack::policy::EgressPolicy;

/// Every VM's; agents and scripts may rely on it.
pub const HOSTNAME: &str = "agentos";

/// Time between SIGTERM and SIGKILL at dispose.
pub const DEFAULT_DISPOSE_GRACE: Duration = Duration::from_millis(500);

/// Longer than any shutdown that still makes sense; keeps a typing error from holding a sidecar for days.
pub const MAX_DISPOSE_GRACE: Duration = Duration::from_secs(600);

/// A plain wish for a VM.
#[derive(Debug, Clone, Default)]
pub struct VmOptions {
    /// Merged over the base environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    pub mounts: Vec<MountOptions>,
    /// Host directories of executables, mounted read-only, first on PATH.
    pub command_dirs: Vec<Vec<u8>>,
    /// Directories of the VM that follow them on PATH.
    pub search_path: Vec<Vec<u8>>,
    /// Ports of 127.0.0.1 inside that reach the host's 127.0.0.1.
    pub loopback_exempt_ports: Vec<u16>,
    pub limits: LimitOptions,
    /// None is [`DEFAULT_DISPOSE_GRACE`].
    pub dispose_grace: Option<Duration>,
    pub base: BaseOptions,
    /// Processes run as the VM's root with few capabilities, instead of as its user.
    pub root: bool,
    pub network: NetworkOptions,
    pub storage: StorageOptions,
}

/// What the root file system is made from.
#[derive(Debug, Clone)]
pub enum BaseOptions {
    Host {
        host_usr_local: bool,
    },
    /// Absolute path of a directory of the host that holds a whole root file system.
    Directory(Vec<u8>),
}

impl Default for BaseOptions {
    fn default() -> Self {
        Self::Host { host_usr_local: false }
    }
}

/// What this host can enforce and how much of it there is.
#[derive(Debug, Clone)]
pub struct Host {
    pub findings: HostFindings,
    pub memory_bytes: u64,
    /// Whether the host has an IPv6 address that leads to the internet.
    pub has_ipv6: bool,
}

impl Host {
    /// The host as the launcher and the kernel see it.
    pub fn of(launcher: &Launcher) -> Self {
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit.max(1));
        let total = info.totalram;
        let interfaces = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        Self {
            findings: launcher.findings().clone(),
            memory_bytes: total.saturating_mul(unit),
            has_ipv6: has_global_address(&interfaces),
        }
    }
}

/// Whether a table like /proc/net/if_inet6 has an address of those that are routed between networks, 2000::/3. The kernel
/// gives unique local addresses (fc00::/7) the scope of global ones, and overlay networks give such to hosts that have no
/// IPv6 otherwise: names would then lead VMs to addresses that nothing leads to.
fn has_global_address(table: &str) -> bool {
    let first_digit = |line: &str| line.trim_start().chars().next();
    table.lines().any(|line| matches!(first_digit(line), Some('2' | '3')))
}

/// A validated VM.
#[derive(Debug, Clone)]
pub struct VmSpec {
    environment: Environment,
    base: Base,
    mounts: Vec<PlannedMount>,
    /// Where those are that were asked for as such.
    mount_targets: BTreeSet<GuestPath>,
    limits: limits::DecidedLimits,
    loopback_exempt_ports: Vec<u16>,
    dispose_grace: Duration,
    root: bool,
    network: NetworkOptions,
    has_ipv6: bool,
    no_uplink: Option<BootFailure>,
    storage: Option<GuestPath>,
}

/// A field that can't be had, and why.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    pub field: SpecField,
    pub problem: SpecProblem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecField {
    Env,
    Mounts,
    CommandDirs,
    LoopbackExemptPorts,
    MemoryLimit,
    CpuLimit,
    ProcessLimit,
    OpenFileLimit,
    DiskLimit,
    DisposeGrace,
    Base,
    Secrets,
    Network,
    Storage,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecProblem {
    #[error("{0}")]
    Path(#[from] PathError),
    #[error("nothing can be mounted at {0}")]
    MountTarget(GuestPath),
    #[error("{0} is given twice")]
    DuplicateMount(GuestPath),
    #[error("port {0} is given twice")]
    DuplicatePort(u16),
    #[error("port 0 is no port")]
    PortZero,
    #[error("name '{0}' is empty or contains '=' or NUL")]
    EnvironmentName(String),
    #[error("value of '{0}' contains NUL")]
    EnvironmentValue(String),
    #[error("environment is longer than the kernel takes")]
    EnvironmentTooLong,
    #[error("{0} is given twice")]
    DuplicateSecret(String),
    #[error("{0} is in the environment already, where the VM has a placeholder in the secret's place")]
    SecretInEnvironment(String),
    #[error("{value} is not between {min} and {max}")]
    OutOfRange { value: u64, min: u64, max: u64 },
    /// The host has no means to enforce it.
    #[error("this host can't enforce it: {missing}")]
    NotEnforceable { missing: &'static str },
}

impl SpecProblem {
    /// Whether the host is to blame and not the wish.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::NotEnforceable { .. })
    }
}

impl fmt::Display for SpecField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Env => "env",
            Self::Mounts => "mounts",
            Self::CommandDirs => "command_dirs",
            Self::LoopbackExemptPorts => "loopback_exempt_ports",
            Self::MemoryLimit => "limits.memory_bytes",
            Self::CpuLimit => "limits.cpu_millis",
            Self::ProcessLimit => "limits.processes",
            Self::OpenFileLimit => "limits.open_files",
            Self::DiskLimit => "limits.disk_bytes",
            Self::DisposeGrace => "dispose_grace",
            Self::Base => "base",
            Self::Secrets => "secrets",
            Self::Network => "network",
            Self::Storage => "storage",
        })
    }
}

impl SpecField {
    pub(crate) fn refuse(self, problem: impl Into<SpecProblem>) -> SpecError {
        SpecError { field: self, problem: problem.into() }
    }
}

impl VmSpec {
    /// Checks every field and decides what was left open.
    pub fn validate(options: VmOptions, host: &Host) -> Result<Self, SpecError> {
        let storage = validate_storage(options.storage, &options.limits)?;
        let limits = limits::decide(&options.limits, host)?;
        let base = validate_base(options.base)?;
        let commands = mounts::plan_command_dirs(&options.command_dirs)?;
        let mut command_paths: Vec<Vec<u8>> = commands.iter().map(|mount| mount.target.to_vec()).collect();
        command_paths.extend(options.search_path);
        let (mounts, mount_targets) = mounts::plan(options.mounts, commands, limits.disk_bytes)?;
        let environment = Environment::validate(options.env, &command_paths, &base, options.root)?;
        secrets::check(&options.network.secrets, &environment)?;
        let dispose_grace = options.dispose_grace.unwrap_or(DEFAULT_DISPOSE_GRACE);
        if dispose_grace > MAX_DISPOSE_GRACE {
            let value = u64::try_from(dispose_grace.as_millis()).unwrap_or(u64::MAX);
            let max = MAX_DISPOSE_GRACE.as_millis() as u64;
            return Err(SpecField::DisposeGrace.refuse(SpecProblem::OutOfRange { value, min: 0, max }));
        }
        check_network(&options.network, host)?;
        let loopback_exempt_ports = validate_ports(options.loopback_exempt_ports)?;
        Ok(Self {
            environment,
            base,
            mounts,
            mount_targets,
            limits,
            loopback_exempt_ports,
            dispose_grace,
            root: options.root,
            network: options.network,
            has_ipv6: host.has_ipv6,
            no_uplink: host.findings.no_uplink.clone(),
            storage,
        })
    }

    /// The environment every process starts from.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Home and default working directory.
    pub fn home(&self) -> &'static str {
        environment::home(self.root)
    }

    pub fn dispose_grace(&self) -> Duration {
        self.dispose_grace
    }

    pub fn loopback_exempt_ports(&self) -> &[u16] {
        &self.loopback_exempt_ports
    }

    pub fn network(&self) -> &NetworkOptions {
        &self.network
    }

    /// The directory of the host that keeps what the VM writes.
    pub(crate) fn storage(&self) -> Option<&[u8]> {
        self.storage.as_ref().map(GuestPath::as_bytes)
    }

    /// Why the VM has nothing but loopback.
    pub fn no_uplink(&self) -> Option<&BootFailure> {
        self.no_uplink.as_ref()
    }

    pub(crate) fn uplink(&self) -> Option<Uplink> {
        self.no_uplink.is_none().then_some(Uplink { v6: self.has_ipv6 })
    }

    pub(crate) fn mount_targets(&self) -> &BTreeSet<GuestPath> {
        &self.mount_targets
    }

    pub fn disk_bytes(&self) -> u64 {
        self.limits.disk_bytes
    }

    /// None where no cgroup enforces one.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.limits.memory_bytes
    }

    pub(crate) fn boot_plan(&self, ids: IdRange, cgroup_name: String) -> BootPlan {
        let limits = Limits {
            cgroup_name,
            memory_bytes: self.limits.memory_bytes,
            cpu_millis: self.limits.cpu_millis,
            processes: self.limits.processes,
            open_files: self.limits.open_files,
            disk_bytes: self.limits.disk_bytes,
            disk_inodes: self.limits.disk_inodes,
        };
        BootPlan {
            ids,
            hostname: HOSTNAME.to_owned(),
            base: self.base.clone(),
            // Known when it is locked.
            storage: None,
            mounts: self.mounts.clone(),
            limits,
            root: self.root,
            uplink: self.uplink(),
        }
    }
}

/// How much is written to a directory of the host, only a quota of its file system bounds.
fn validate_storage(storage: StorageOptions, limits: &LimitOptions) -> Result<Option<GuestPath>, SpecError> {
    let StorageOptions::Directory(path) = storage else { return Ok(None) };
    if limits.disk_bytes.is_some() {
        let missing = "nothing here bounds what a VM writes to its storage directory; leave the limit out";
        return Err(SpecField::DiskLimit.refuse(SpecProblem::NotEnforceable { missing }));
    }
    let path = GuestPath::parse(&path).map_err(|error| SpecField::Storage.refuse(error))?;
    Ok(Some(path))
}

fn validate_base(base: BaseOptions) -> Result<Base, SpecError> {
    match base {
        BaseOptions::Host { host_usr_local } => Ok(Base::Host { host_usr_local }),
        BaseOptions::Directory(path) => {
            let path = GuestPath::parse(&path).map_err(|error| SpecField::Base.refuse(error))?;
            Ok(Base::Directory { path: Bytes::from(path.as_bytes().to_vec()) })
        }
    }
}

/// More connections than one address has ports.
const MAX_CONNECTIONS: u64 = 65_535;

/// Less than this is no network; 0 would be one that hangs.
const MIN_BANDWIDTH: u64 = 1_024;

/// As many as resolvers take: each further one is asked after a longer silence.
const MAX_DNS_SERVERS: u64 = 3;

/// A VM without a way out keeps every promise of a policy but that something may leave.
fn check_network(network: &NetworkOptions, host: &Host) -> Result<(), SpecError> {
    let out_of_range = |value: u64, min: u64, max: u64| {
        Err(SpecField::Network.refuse(SpecProblem::OutOfRange { value, min, max }))
    };
    let connections = network.limits.connections as u64;
    if !(1..=MAX_CONNECTIONS).contains(&connections) {
        return out_of_range(connections, 1, MAX_CONNECTIONS);
    }
    if let Some(bandwidth) = network.limits.bandwidth_bytes.filter(|bandwidth| *bandwidth < MIN_BANDWIDTH) {
        return out_of_range(bandwidth, MIN_BANDWIDTH, u64::MAX);
    }
    let servers = network.dns_servers.len() as u64;
    if servers > MAX_DNS_SERVERS {
        return out_of_range(servers, 0, MAX_DNS_SERVERS);
    }
    if network.dns_servers.iter().any(|server| server.port() == 0) {
        return Err(SpecField::Network.refuse(SpecProblem::PortZero));
    }
    let nothing_leaves = network.policy.as_ref().is_none_or(|policy| *policy == EgressPolicy::none());
    if nothing_leaves || host.findings.no_uplink.is_none() {
        return Ok(());
    }
    let missing = "VMs have no network here, because /dev/net/tun can't be opened; see `agentos doctor`";
    Err(SpecField::Network.refuse(SpecProblem::NotEnforceable { missing }))
}

fn validate_ports(ports: Vec<u16>) -> Result<Vec<u16>, SpecError> {
    let mut seen = BTreeSet::new();
    for &port in &ports {
        if port == 0 {
            return Err(SpecField::LoopbackExemptPorts.refuse(SpecProblem::PortZero));
        }
        if !seen.insert(port) {
            return Err(SpecField::LoopbackExemptPorts.refuse(SpecProblem::DuplicatePort(port)));
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::test_spec;
