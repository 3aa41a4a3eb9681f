//! The VM's file tree: one tmpfs that holds everything it writes, or without a storage directory would write, overlays
//! on top of the staged layers, /dev, and the mounts of the plan.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agentos_guest_protocol::launcher::{Base, BootFailure, BootPlan, IdRange, PlannedMountKind};
use agentos_linux::mount;
use rustix::fs::Mode;
use rustix::mount::MountFlags;

use super::layers::Layers;
use super::{fail, proc, user_id};
use crate::launcher::{Staged, VM_DISK};
use crate::mounts;

/// The root directory, relative to the VM's disk, which is the current directory while this runs.
pub(super) const ROOT: &str = "root";

pub(super) fn build(plan: &BootPlan, staged: &Staged) -> Result<(), BootFailure> {
    let disk = mount::tmpfs(plan.limits.disk_bytes, plan.limits.disk_inodes, 0o755)
        .map_err(|errno| fail("fsmount tmpfs", VM_DISK, errno))?;
    mount::attach_path(disk.as_fd(), Path::new(VM_DISK))
        .map_err(|errno| fail("move_mount", VM_DISK, errno))?;
    rustix::process::chdir(VM_DISK).map_err(|errno| fail("chdir", VM_DISK, errno))?;
    // Modes are meant as they stand here; the VM's own umask is set at the end of the boot.
    rustix::process::umask(Mode::empty());
    for (name, mode) in [
        (ROOT, 0o755),
        ("tmp", 0o1777),
        ("run", 0o755),
        ("run/lock", 0o1777),
        ("shm", 0o1777),
        ("empty", 0o555),
    ] {
        make_directory(name, mode)?;
    }
    let layers = Layers::open(plan, staged)?;
    layers.overlay("root", &staged.root.to_string_lossy(), ROOT)?;
    for (name, lower) in &staged.bases {
        let target = format!("{ROOT}/{name}");
        layers.expect_directory(&target)?;
        if name == "usr" && !shows_usr_local(plan) {
            // The upper of the two lower layers hides the host's local directory.
            let lower = format!("{}:{}", staged.usr_local.display(), lower.display());
            layers.overlay(name, &lower, &target)?;
        } else {
            layers.overlay(name, &lower.to_string_lossy(), &target)?;
        }
    }
    if let Base::Directory { .. } = plan.base {
        complete_foreign_root()?;
    }
    layers.expect_directory(&format!("{ROOT}/proc"))?;
    proc::mount(plan)?;
    devices(plan, staged)?;
    bind("tmp", &format!("{ROOT}/tmp"))?;
    bind("run", &format!("{ROOT}/run"))?;
    proc::mask()?;
    planned_mounts(plan, staged)
}

pub(super) fn make_directory(name: &str, mode: u32) -> Result<(), BootFailure> {
    rustix::fs::mkdir(name, Mode::from_raw_mode(mode)).map_err(|errno| fail("mkdir", name, errno))
}

fn shows_usr_local(plan: &BootPlan) -> bool {
    matches!(plan.base, Base::Host { host_usr_local: true })
}

/// /dev is one read-only tree for all VMs, with a terminal file system and shared memory of the VM's own.
fn devices(plan: &BootPlan, staged: &Staged) -> Result<(), BootFailure> {
    let target = format!("{ROOT}/dev");
    bind_tree(&staged.devices, &target)?;
    // Where ids are mapped, terminals belong to the group that write(1) and its like expect. The kernel counts the
    // terminals of all instances together (kernel.pty.max): without a maximum of its own one VM takes everybody's.
    let options = match plan.ids {
        IdRange::Range { .. } => c"newinstance,gid=5,mode=620,ptmxmode=666,max=256",
        IdRange::Single => c"newinstance,mode=620,ptmxmode=666,max=256",
    };
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let terminals = format!("{target}/pts");
    rustix::mount::mount("devpts", terminals.as_str(), "devpts", flags, Some(options))
        .map_err(|errno| fail("mount devpts", &terminals, errno))?;
    bind("shm", &format!("{target}/shm"))
}

/// Shows a directory of the VM's disk below its root.
fn bind(source: &str, target: &str) -> Result<(), BootFailure> {
    let tree = mount::open_tree_alone(Path::new(source)).map_err(|errno| fail("open_tree", source, errno))?;
    mount::attach_path(tree.as_fd(), Path::new(target)).map_err(|errno| fail("move_mount", target, errno))
}

/// Shows a staged tree below the root. Its flags are locked already, and a copy keeps the locks.
fn bind_tree(source: &Path, target: &str) -> Result<(), BootFailure> {
    let tree = mount::open_tree(source).map_err(|errno| fail("open_tree", source, errno))?;
    mount::attach_path(tree.as_fd(), Path::new(target)).map_err(|errno| fail("move_mount", target, errno))
}

/// The directories and files that a VM needs and a root file system made for other purposes may lack.
fn complete_foreign_root() -> Result<(), BootFailure> {
    for (name, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("etc", 0o755),
        ("home", 0o755),
    ] {
        let path = format!("{ROOT}/{name}");
        match rustix::fs::mkdir(path.as_str(), Mode::from_raw_mode(mode)) {
            Ok(()) | Err(agentos_linux::Errno::EXIST) => {}
            Err(errno) => return Err(fail("mkdir", path, errno)),
        }
    }
    Ok(())
}

/// The mounts of the plan, in its order.
fn planned_mounts(plan: &BootPlan, staged: &Staged) -> Result<(), BootFailure> {
    let root = mounts::open_directory(Path::new(ROOT)).map_err(|errno| fail("open", ROOT, errno))?;
    for (index, planned) in plan.mounts.iter().enumerate() {
        let path = Path::new(std::ffi::OsStr::from_bytes(&planned.target));
        let target =
            mounts::make_target(root.as_fd(), path).map_err(|errno| fail("make mount point", path, errno))?;
        let tree = match &planned.kind {
            PlannedMountKind::Memory { max_bytes, read_only } => {
                mounts::memory(*max_bytes, *read_only, user_id(plan))
                    .map_err(|errno| fail("mount tmpfs", path, errno))?
            }
            PlannedMountKind::HostDir(_) => {
                let staged = staged.mounts.iter().find(|mount| mount.index == index);
                let source = staged.map(|mount| mount.path.as_path()).unwrap_or(path);
                mount::open_tree(source).map_err(|errno| fail("open_tree", source, errno))?
            }
        };
        mount::attach(tree.as_fd(), target.as_fd()).map_err(|errno| fail("move_mount", path, errno))?;
    }
    Ok(())
}
