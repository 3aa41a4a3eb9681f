//! What a machine may lack, by name, so that `tests/allowed-skips.toml` can say when a skip is fine.
//!
//! Each condition is probed when it is asked for. A condition that can't be told apart from a bug of ours must not be
//! here: then the skip would hide the bug.

use crate::Failure;
use rustix::fs::Access;
use std::path::Path;

/// A named fact about the machine.
#[derive(Clone, Copy)]
pub(crate) struct Condition {
    name: &'static str,
    probe: fn() -> bool,
}

const CONDITIONS: &[Condition] = &[
    Condition { name: "always", probe: || true },
    #[cfg(test)]
    Condition { name: "never", probe: || false },
    // An unprivileged user never may, whatever root can do: rules for that user say `always` instead.
    Condition { name: "cgroups are read-only", probe: || !cgroups_are_writable() },
    Condition { name: "no user namespaces", probe: no_user_namespaces },
    Condition { name: "no newuidmap", probe: || !on_path("newuidmap") },
    Condition { name: "no bubblewrap", probe: || !on_path("bwrap") },
    Condition { name: "no /dev/fuse", probe: || !Path::new("/dev/fuse").exists() },
    Condition { name: "no /dev/net/tun", probe: || !Path::new("/dev/net/tun").exists() },
];

impl Condition {
    pub(crate) fn from_name(name: &str) -> Result<Self, Failure> {
        CONDITIONS.iter().find(|condition| condition.name == name).copied().ok_or_else(|| {
            let known: Vec<&str> = CONDITIONS.iter().map(|condition| condition.name).collect();
            format!("unknown condition `{name}`, known are: {}", known.join(", ")).into()
        })
    }

    pub(crate) fn holds(self) -> bool {
        (self.probe)()
    }
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

/// Version 2 has one hierarchy at the top; version 1 one per controller, of which memory matters most.
fn cgroups_are_writable() -> bool {
    let writable = |path: &str| rustix::fs::access(path, Access::WRITE_OK).is_ok();
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        writable("/sys/fs/cgroup/cgroup.procs")
    } else {
        writable("/sys/fs/cgroup/memory/tasks")
    }
}

fn no_user_namespaces() -> bool {
    let sysctl = |path: &str| std::fs::read_to_string(path).ok().map(|value| value.trim().to_owned());
    let refused_by = |path: &str, value: &str| sysctl(path).as_deref() == Some(value);
    !Path::new("/proc/self/ns/user").exists()
        || refused_by("/proc/sys/user/max_user_namespaces", "0")
        || refused_by("/proc/sys/kernel/unprivileged_userns_clone", "0")
        || refused_by("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1")
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_found_by_their_exact_name() {
        assert!(Condition::from_name("always").unwrap().holds());
        assert!(Condition::from_name("Always").is_err());
    }
}
