//! Mounts that are known when the VM is made, and the checks that live ones share with them.

use std::collections::BTreeSet;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::launcher::{PlannedMount, PlannedMountKind};
use agentos_guest_protocol::mount::HostDir;

use super::{SpecError, SpecField, SpecProblem};
use crate::path::{GuestPath, PathError};

/// What init needs for itself: a mount there would hide the masks of /proc or the VM's own devices.
const RESERVED: [&[u8]; 3] = [b"/proc", b"/dev", b"/sys"];

/// Where command directories appear, one numbered directory each.
const COMMANDS: &str = "/opt/agentos/commands";

const MIN_MEMORY_MOUNT_BYTES: u64 = 4096;

#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Where it appears in the VM.
    pub path: Vec<u8>,
    pub kind: MountKind,
}

#[derive(Debug, Clone)]
pub enum MountKind {
    Memory {
        /// None is half the VM's disk limit.
        max_bytes: Option<u64>,
        read_only: bool,
    },
    HostDir {
        /// Absolute path on the host.
        source: Vec<u8>,
        read_only: bool,
        /// Don't refuse a directory that is or directly holds a socket or FIFO.
        allow_sockets: bool,
    },
    /// A regular file of the host, read-only. Only in a live VM.
    HostFile {
        /// Absolute path on the host.
        source: Vec<u8>,
    },
}

/// A mount whose paths are checked.
#[derive(Debug)]
pub(crate) struct MountPlan {
    pub(crate) target: GuestPath,
    pub(crate) kind: PlannedMountKind,
}

/// What is wrong with a mount by itself.
#[derive(Debug)]
pub(crate) enum MountRefusal {
    Target(GuestPath),
    TargetPath(PathError),
    HostPath(PathError),
    TooSmall { value: u64 },
}

impl From<MountRefusal> for SpecProblem {
    fn from(refusal: MountRefusal) -> Self {
        match refusal {
            MountRefusal::Target(path) => Self::MountTarget(path),
            MountRefusal::TargetPath(error) | MountRefusal::HostPath(error) => Self::Path(error),
            MountRefusal::TooSmall { value } => {
                Self::OutOfRange { value, min: MIN_MEMORY_MOUNT_BYTES, max: u64::MAX }
            }
        }
    }
}

/// Checks one mount without looking at others.
pub(crate) fn plan_mount(mount: MountOptions, disk_bytes: u64) -> Result<MountPlan, MountRefusal> {
    let target = mount_target(&mount.path)?;
    let kind = match mount.kind {
        MountKind::Memory { max_bytes, read_only } => {
            let max_bytes = max_bytes.unwrap_or(disk_bytes / 2);
            if max_bytes < MIN_MEMORY_MOUNT_BYTES {
                return Err(MountRefusal::TooSmall { value: max_bytes });
            }
            PlannedMountKind::Memory { max_bytes, read_only }
        }
        MountKind::HostDir { source, read_only, allow_sockets } => {
            let source = GuestPath::parse(&source).map_err(MountRefusal::HostPath)?.to_wire();
            PlannedMountKind::HostDir(HostDir { source, file: false, read_only, allow_sockets })
        }
        MountKind::HostFile { source } => {
            let source = GuestPath::parse(&source).map_err(MountRefusal::HostPath)?.to_wire();
            PlannedMountKind::HostDir(HostDir { source, file: true, read_only: true, allow_sockets: false })
        }
    };
    Ok(MountPlan { target, kind })
}

fn mount_target(path: &[u8]) -> Result<GuestPath, MountRefusal> {
    let target = GuestPath::parse(path).map_err(MountRefusal::TargetPath)?;
    if target.depth() == 0 || RESERVED.iter().any(|reserved| target.is_within(reserved)) {
        return Err(MountRefusal::Target(target));
    }
    Ok(target)
}

pub(super) fn plan_command_dirs(directories: &[Vec<u8>]) -> Result<Vec<PlannedMount>, SpecError> {
    directories
        .iter()
        .enumerate()
        .map(|(index, directory)| {
            let source = GuestPath::parse(directory).map_err(|error| SpecField::CommandDirs.refuse(error))?;
            let source = source.to_wire();
            let host_dir = HostDir { source, file: false, read_only: true, allow_sockets: false };
            let target = Bytes::from(format!("{COMMANDS}/{index}").into_bytes());
            Ok(PlannedMount { target, kind: PlannedMountKind::HostDir(host_dir) })
        })
        .collect()
}

/// All mounts in the order they are made, and where those of `options` are. A mount above another comes first, so that it
/// hides nothing that was asked for.
pub(super) fn plan(
    options: Vec<MountOptions>,
    commands: Vec<PlannedMount>,
    disk_bytes: u64,
) -> Result<(Vec<PlannedMount>, BTreeSet<GuestPath>), SpecError> {
    let mut targets = BTreeSet::new();
    let mut plans = Vec::with_capacity(options.len());
    for mount in options {
        let plan = plan_mount(mount, disk_bytes).map_err(|refusal| SpecField::Mounts.refuse(refusal))?;
        if !targets.insert(plan.target.clone()) {
            return Err(SpecField::Mounts.refuse(SpecProblem::DuplicateMount(plan.target)));
        }
        plans.push(plan);
    }
    plans.sort_by_key(|plan| plan.target.depth());
    let planned =
        plans.into_iter().map(|plan| PlannedMount { target: plan.target.to_wire(), kind: plan.kind });
    Ok((planned.chain(commands).collect(), targets))
}
