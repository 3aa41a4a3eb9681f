//! The VM a command works in: made for it, made and kept, or kept by an earlier one.
//!
//! ```text
//! --vm NAME ──► attached ──────────────► left as it is
//! --keep ─────► created, detached ─────► left, its name printed
//! neither ────► created, leased ───────► disposed
//! ```
//! Should this process die in between, the lease's end disposes a leased VM.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use agentos::{AgentOs, AgentOsOptions, Mount, PortForward, Storage};
use clap::Args;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::net::{NetArgs, NetLimitArgs};
use crate::ports;
use crate::spec::{EnvSpec, MountSpec, PROJECT_AT, ProjectSpec, PublishSpec, SecretSpec};
use crate::terminal::notice;

const DISPOSE_PATIENCE: Duration = Duration::from_secs(30);

/// The user's home in every VM.
pub(crate) const HOME: &str = "/home/user";

/// What the VM shows and how its processes start.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// Show this directory at /work and start there; read-only unless :rw
    #[arg(long, value_name = "DIR[:ro|:rw]")]
    pub(crate) project: Option<ProjectSpec>,
    /// Show a directory of the host at a path of the VM; read-only unless :rw
    #[arg(long, value_name = "HOST:GUEST[:ro|:rw]")]
    pub(crate) mount: Vec<MountSpec>,
    /// Keep what the VM writes in this directory, for the next VM with the same; it is made where it is missing
    #[arg(long, value_name = "DIR")]
    pub(crate) storage: Option<PathBuf>,
    /// Start in this directory of the VM [default: /work with --project, else /home/user]
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Set a variable; NAME alone takes its value from here
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<EnvSpec>,
    /// Let the VM use a credential that it never sees: the variable NAME of your environment, sent to HOST in HEADER
    /// [default: authorization]; the key of a known provider needs no HOST
    #[arg(long, value_name = "NAME[=HOST[:HEADER]]")]
    pub(crate) secret: Vec<SecretSpec>,
    /// Show a port of the VM at one of the host, of 127.0.0.1 and the same number unless it says otherwise; with --keep
    /// as long as the VM lives
    #[arg(long, value_name = "[[ADDRESS:]HOST:]GUEST")]
    pub(crate) publish: Vec<PublishSpec>,
    /// Keep the VM afterwards, under this name or one that is made up and printed
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true)]
    pub(crate) keep: Option<Option<String>>,
    #[command(flatten)]
    pub(crate) net: NetArgs,
    #[command(flatten)]
    pub(crate) net_limits: NetLimitArgs,
}

/// For commands that can also work in a VM that was kept.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Work in this kept VM instead of a new one
    #[arg(long, value_name = "NAME", conflicts_with_all = ["project", "mount", "storage", "secret", "keep", "net", "allow",
        "loopback_exempt_port", "connections_limit", "bandwidth_limit"])]
    pub(crate) vm: Option<String>,
}

impl VmArgs {
    /// Every directory of the host that is shown, the project first.
    pub(crate) fn mounts(&self) -> impl Iterator<Item = &MountSpec> {
        self.project.iter().map(|project| &project.0).chain(&self.mount)
    }

    /// Where processes start. A relative `--cwd` is taken from where they would start without it.
    pub(crate) fn cwd(&self) -> String {
        let base = if self.project.is_some() { PROJECT_AT } else { HOME };
        match self.cwd.as_deref() {
            None => base.to_owned(),
            Some(cwd) if cwd.starts_with('/') => cwd.to_owned(),
            Some(cwd) => format!("{base}/{}", cwd.trim_start_matches("./")),
        }
    }

    fn options(&self) -> AgentOsOptions {
        let mut options = AgentOsOptions::default();
        for spec in self.mounts() {
            let mount = Mount::host_dir(&spec.host);
            let mount = if spec.writable { mount.read_write() } else { mount };
            options = options.mount(&spec.guest, mount);
        }
        if let Some(directory) = &self.storage {
            options = options.storage(Storage::directory(directory));
        }
        if let Some(policy) = self.net.policy() {
            options = options.network(policy);
        }
        for spec in &self.secret {
            options = options.secret(spec.secret.clone());
        }
        options = self.net_limits.declare(options);
        options.envs(self.env.iter().map(|env| (&env.name, &env.value)))
    }
}

#[derive(Debug)]
enum Fate {
    Dispose,
    Keep { name: String },
    NotOurs,
}

/// A VM, and what becomes of it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) vm: AgentOs,
    fate: Fate,
    /// What `--publish` asks for, as long as this command runs; those of a kept VM stay with it.
    forwards: Vec<PortForward>,
}

impl Guest {
    pub(crate) async fn create(args: &VmArgs) -> Result<Self, Failure> {
        Self::create_with(args, |options| options).await
    }

    /// As its flags say, and more.
    pub(crate) async fn create_with(
        args: &VmArgs,
        more: impl FnOnce(AgentOsOptions) -> AgentOsOptions,
    ) -> Result<Self, Failure> {
        let options = more(args.options());
        let name = args.keep.as_ref().map(|name| name.clone().unwrap_or_else(make_up_name));
        let (options, fate) = match name {
            None => (options, Fate::Dispose),
            Some(name) => (options.detached(&name), Fate::Keep { name }),
        };
        Self { vm: AgentOs::create(options).await?, fate, forwards: Vec::new() }.publish(args).await
    }

    pub(crate) async fn create_or_attach(args: &VmArgs, attach: &AttachArgs) -> Result<Self, Failure> {
        match &attach.vm {
            None => Self::create(args).await,
            Some(name) => {
                let vm = AgentOs::attach(name).await?;
                Self { vm, fate: Fate::NotOurs, forwards: Vec::new() }.publish(args).await
            }
        }
    }

    async fn publish(mut self, args: &VmArgs) -> Result<Self, Failure> {
        let keep = matches!(self.fate, Fate::Keep { .. });
        match ports::publish(&self.vm, &args.publish, keep).await {
            Ok(forwards) => self.forwards = forwards,
            Err(error) => {
                // A VM that nobody was told of is not kept.
                self.fate = if keep { Fate::Dispose } else { self.fate };
                return self.leave(Err(error.into())).await;
            }
        }
        for forward in &self.forwards {
            notice(&format!("publishing {}", ports::describe(forward)));
        }
        Ok(self)
    }

    /// The name it is kept under.
    pub(crate) fn kept_name(&self) -> Option<&str> {
        match &self.fate {
            Fate::Keep { name } => Some(name),
            _ => None,
        }
    }

    /// Ends the VM, or says where it stays. The outcome of the work goes before a failure of this.
    pub(crate) async fn leave<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        match &self.fate {
            Fate::NotOurs => {}
            Fate::Keep { name } => {
                notice(&format!("kept VM {name}: `agentos shell --vm {name}`, `agentos dispose {name}`"));
            }
            Fate::Dispose => {
                // A sidecar that is stuck must not hold us; the lease's end disposes the VM as well.
                let disposed = timeout(DISPOSE_PATIENCE, self.vm.dispose()).await;
                let outcome = outcome?;
                disposed.unwrap_or(Ok(()))?;
                return Ok(outcome);
            }
        }
        outcome
    }
}

/// `vm-` and eight digits: enough for names that one user's kept VMs bear.
fn make_up_name() -> String {
    // The keys of the hasher are the standard library's way to the system's random numbers.
    format!("vm-{:08x}", RandomState::new().hash_one(std::process::id()) >> 32)
}

#[cfg(test)]
impl VmArgs {
    /// What these flags say, as on a command line.
    pub(crate) fn of(flags: &[&str]) -> Self {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            vm: VmArgs,
        }
        <Line as clap::Parser>::parse_from(["x"].iter().chain(flags)).vm
    }
}
