//! Sidecar ↔ launcher.
//!
//! ```text
//! sidecar ── Boot(plan) + [init's control socket] ──► launcher     clones, writes maps, stages mounts, goes on
//! sidecar ◄─ Cloned{vm} ───────────────────────────── launcher     then init says Ready on the control socket
//! sidecar ◄─ BootFailed{vm} or Exited{vm} ─────────── launcher     exactly one of the two ends every Boot
//! ```
//! The launcher answers in no particular order between VMs. When its socket hangs up it exits, and every VM with it.

use serde::{Deserialize, Serialize};

use crate::Bytes;
use crate::mount::HostDir;
use crate::network::Uplink;

/// The sidecar's number for a VM, never used twice by one sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VmNumber(pub u64);

#[derive(Debug, Serialize, Deserialize)]
pub enum LauncherRequest {
    /// Clone a VM. Descriptors: init's end of its control socket, and where the plan has a storage, the lock of it. The
    /// launcher lets go of the lock when nothing of the VM is left, and the VM's init holds it, too.
    Boot { vm: VmNumber, plan: Box<BootPlan> },
    /// Make a detached, idmapped tree of a host directory for a live mount in this VM, answered by
    /// [`LauncherEvent::HostDirOpened`] or [`LauncherEvent::HostDirFailed`] with the same `token`.
    OpenHostDir { vm: VmNumber, token: u32, host_dir: HostDir },
    /// SIGKILL to the VM's init, and so to all of the VM.
    Kill { vm: VmNumber },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum LauncherEvent {
    /// Sent once, before anything else: what the launcher found out about this host while it prepared itself.
    Started(HostFindings),
    /// The launcher can't work on this host at all; it exits after this.
    StartFailed(BootFailure),
    /// The clone exists. `pid` is the host's.
    Cloned {
        vm: VmNumber,
        pid: i32,
        cgroups: Cgroups,
    },
    /// The VM never became ready; everything of it is gone.
    BootFailed {
        vm: VmNumber,
        failure: BootFailure,
    },
    /// The VM's init is reaped and its cgroups are removed.
    Exited {
        vm: VmNumber,
        status: crate::process::Status,
    },
    /// Descriptor: the detached tree.
    HostDirOpened {
        token: u32,
    },
    HostDirFailed {
        token: u32,
        failure: BootFailure,
    },
}

/// How the launcher came to stand.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HostFindings {
    pub ids: IdMode,
    /// Which limits cgroups enforce here.
    pub cgroup_memory: bool,
    pub cgroup_cpu: bool,
    pub cgroup_processes: bool,
    /// The most descriptors a process of a VM can be allowed.
    pub max_open_files: u32,
    /// Why VMs have nothing but loopback; None where they can have more.
    pub no_uplink: Option<BootFailure>,
}

/// How many ids a VM can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdMode {
    /// Root: a range of its own for every VM.
    Range,
    /// Not root: one id, mapped to the VM's user.
    #[default]
    Single,
}

/// The control-group files of one VM that the sidecar may read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cgroups {
    /// Holds a line `oom_kill N`.
    pub oom_events: Option<Bytes>,
}

/// A step of launcher or init that failed: what was attempted, on what, and the kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// The call, such as `clone3` or `mount overlay`.
    pub step: String,
    /// The path or object of the call.
    pub object: Bytes,
    pub errno: i32,
}

/// All that a VM is made of, decided and validated by the sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootPlan {
    pub ids: IdRange,
    pub hostname: String,
    pub base: Base,
    /// None: what the VM writes is in memory and goes with it.
    pub storage: Option<Storage>,
    /// Mounted in order.
    pub mounts: Vec<PlannedMount>,
    pub limits: Limits,
    /// Processes run as the VM's root with a reduced set of capabilities, instead of as its user.
    pub root: bool,
    /// None: loopback only.
    pub uplink: Option<Uplink>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdRange {
    /// VM ids 0 to 65,535 are host ids `base` to `base + 65,535`.
    Range { base: u32 },
    /// VM id 1000 is the host user that runs the sidecar; there is no other id.
    Single,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Base {
    /// The host's /usr below the VM's own upper, a synthetic /etc.
    Host {
        /// Show the host's /usr/local instead of an empty one.
        host_usr_local: bool,
    },
    /// A whole root file system in a directory of the host, below the VM's own upper.
    Directory { path: Bytes },
}

/// A directory of the host that keeps what the VM writes. The sidecar has made, checked and locked it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Storage {
    pub path: Bytes,
    /// What the path has to lead to: the directory that was locked.
    pub device: u64,
    pub inode: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedMount {
    /// Absolute, normalized path in the VM; made with its parents where it is missing.
    pub target: Bytes,
    pub kind: PlannedMountKind,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum PlannedMountKind {
    Memory { max_bytes: u64, read_only: bool },
    HostDir(HostDir),
}

/// Every limit is decided; where a cgroup can't enforce one, the sidecar refused it before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Limits {
    /// The name of the VM's directory in every cgroup hierarchy.
    pub cgroup_name: String,
    pub memory_bytes: Option<u64>,
    pub cpu_millis: Option<u32>,
    pub processes: u32,
    pub open_files: u32,
    pub disk_bytes: u64,
    pub disk_inodes: u64,
}
