//! /proc: the VM's own processes, with what the kernel shows of the host masked.

use std::os::fd::AsFd;
use std::path::Path;

use agentos_guest_protocol::launcher::{BootFailure, BootPlan, IdRange};
use agentos_linux::Errno;
use agentos_linux::mount::{self, Restrictions};
use rustix::fs::Access;
use rustix::mount::MountFlags;

use super::{disk, fail};

/// Files that show the host, or act on it. Covered by /dev/null.
const MASKED_FILES: [&str; 9] = [
    "kcore",
    "keys",
    "key-users",
    "kallsyms",
    "kmsg",
    "kpagecount",
    "sysrq-trigger",
    "timer_list",
    "sched_debug",
];

/// Directories that show the host's hardware. Covered by an empty one.
const MASKED_DIRECTORIES: [&str; 4] = ["acpi", "asound", "scsi", "driver"];

/// What programs read and nobody in a VM may write.
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "mtrr"];

/// Mounts /proc and sets what a VM has different from a new network namespace.
pub(super) fn mount(plan: &BootPlan) -> Result<(), BootFailure> {
    let target = path("");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", target.as_str(), "proc", flags, None)
        .map_err(|errno| fail("mount proc", &target, errno))?;
    // ping works without a capability, and servers may listen on port 80.
    let groups = match plan.ids {
        IdRange::Range { .. } => "0 65535".to_owned(),
        IdRange::Single => format!("{0} {0}", super::user_id(plan)),
    };
    set("sys/net/ipv4/ping_group_range", &groups)?;
    set("sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    quiet_ipv6(plan)?;
    if plan.ids == IdRange::Single { share_budgets() } else { Ok(()) }
}

/// Interfaces made from now on, which is the uplink, have the addresses they are given and ask nobody for more.
fn quiet_ipv6(plan: &BootPlan) -> Result<(), BootFailure> {
    let Some(uplink) = plan.uplink else { return Ok(()) };
    let settings: &[(&str, &str)] =
        if uplink.v6 { &[("accept_ra", "0"), ("addr_gen_mode", "1")] } else { &[("disable_ipv6", "1")] };
    for (name, value) in settings {
        match std::fs::write(path(&format!("sys/net/ipv6/conf/default/{name}")), value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            written => written.map_err(|error| crate::wire::io_failure("write", name, &error))?,
        }
    }
    Ok(())
}

/// What the kernel counts for a user, and where the VM's own user namespace can have less.
const BUDGETS: [(&str, &str); 2] = [
    ("sys/fs/inotify/max_user_instances", "sys/user/max_inotify_instances"),
    ("sys/fs/inotify/max_user_watches", "sys/user/max_inotify_watches"),
];

/// Where all VMs are one user of the host, what one of them takes is missing to the others, and to that user's own
/// programs: it takes a part of it at most.
fn share_budgets() -> Result<(), BootFailure> {
    for (whole, own) in BUDGETS {
        // A kernel without inotify has no budget of it.
        let whole =
            std::fs::read_to_string(path(whole)).ok().and_then(|whole| whole.trim().parse::<u64>().ok());
        if let Some(whole) = whole {
            set(own, &(whole / super::SHARES).to_string())?;
        }
    }
    Ok(())
}

/// Covers what must not be seen. Needs /dev.
pub(super) fn mask() -> Result<(), BootFailure> {
    let null = format!("{}/dev/null", disk::ROOT);
    for name in MASKED_FILES {
        cover(Path::new(&null), name)?;
    }
    for name in MASKED_DIRECTORIES {
        cover(Path::new("empty"), name)?;
    }
    for name in READ_ONLY {
        let target = path(name);
        let tree = match mount::open_tree_alone(Path::new(&target)) {
            Err(Errno::NOENT) => continue,
            other => other.map_err(|errno| fail("open_tree", &target, errno))?,
        };
        let restrictions = Restrictions { read_only: true, no_exec: true, devices: false };
        mount::restrict(tree.as_fd(), restrictions, None)
            .and_then(|()| mount::attach_path(tree.as_fd(), Path::new(&target)))
            .map_err(|errno| fail("make read-only", &target, errno))?;
    }
    Ok(())
}

/// Attaches `source` over a name that this kernel may or may not have.
fn cover(source: &Path, name: &str) -> Result<(), BootFailure> {
    let target = path(name);
    // Asked first, because a tree that is made and not attached takes the kernel as long to forget as ten others to make.
    match rustix::fs::access(&target, Access::EXISTS) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.map_err(|errno| fail("find", &target, errno))?,
    }
    let tree = mount::open_tree_alone(source).map_err(|errno| fail("open_tree", source, errno))?;
    mount::attach_path(tree.as_fd(), Path::new(&target)).map_err(|errno| fail("mask", &target, errno))
}

fn set(name: &str, value: &str) -> Result<(), BootFailure> {
    let target = path(name);
    std::fs::write(&target, value)
        .map_err(|error| crate::wire::io_failure("write", target.as_bytes(), &error))
}

fn path(name: &str) -> String {
    format!("{}/proc/{name}", disk::ROOT)
}
