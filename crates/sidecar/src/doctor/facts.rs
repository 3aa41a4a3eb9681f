//! Facts about the host, read from /proc and from what a trial boot ran into.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Everything the table is made from. Made up in tests.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// As uname has it, such as `6.8.0-45-generic`.
    pub(crate) kernel_release: String,
    pub(crate) root: bool,
    /// `user.max_user_namespaces`, where the kernel has it.
    pub(crate) max_user_namespaces: Option<u64>,
    /// Debian's `kernel.unprivileged_userns_clone`.
    pub(crate) unprivileged_userns_clone: Option<bool>,
    /// Ubuntu's `kernel.apparmor_restrict_unprivileged_userns`.
    pub(crate) apparmor_restricts_userns: bool,
    /// The kernel can filter system calls.
    pub(crate) seccomp: bool,
    /// The sidecar itself runs under somebody's filter.
    pub(crate) filtered: bool,
    /// The kernel knows overlayfs now; it may still load it as a module.
    pub(crate) overlay: bool,
    /// What is mounted over parts of /proc.
    pub(crate) proc_overmounts: Vec<PathBuf>,
    pub(crate) container: Container,
    /// What came of trying.
    pub(crate) isolation: Isolation,
    /// Why VMs have nothing but loopback.
    pub(crate) no_uplink: Option<RefusedCall>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    None,
    Docker,
    Kubernetes,
    Other,
}

/// What the launcher and a trial boot found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// A VM stood.
    Works { private_ids: bool, cgroup_memory: bool, cgroup_cpu: bool, cgroup_processes: bool },
    /// The kernel said no.
    Refused(RefusedCall),
}

/// A step that failed: what was attempted, on what, and the kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefusedCall {
    pub(crate) step: String,
    pub(crate) object: String,
    pub(crate) errno: i32,
}

impl Facts {
    /// Reads the host. Files that are absent say something too, so nothing here fails.
    pub(crate) fn collect(isolation: Isolation, no_uplink: Option<RefusedCall>) -> Self {
        let status = read("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        Self {
            kernel_release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            root: rustix::process::geteuid().is_root(),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone").map(|n| n != 0),
            apparmor_restricts_userns: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                .is_some_and(|n| n != 0),
            seccomp: field("Seccomp:").is_some(),
            filtered: field("Seccomp:").is_some_and(|mode| mode == "2"),
            overlay: has_overlay(&read("/proc/filesystems").unwrap_or_default()),
            proc_overmounts: proc_overmounts(&read("/proc/self/mountinfo").unwrap_or_default()),
            container: Container::detect(),
            isolation,
            no_uplink,
        }
    }
}

impl Container {
    fn detect() -> Self {
        let there = |path: &str| Path::new(path).exists();
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            || there("/var/run/secrets/kubernetes.io/serviceaccount")
        {
            Self::Kubernetes
        } else if there("/.dockerenv") {
            Self::Docker
        } else if there("/run/.containerenv") || std::env::var_os("container").as_deref().is_some_and(named) {
            Self::Other
        } else {
            Self::None
        }
    }
}

fn named(value: &OsStr) -> bool {
    !value.is_empty()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

fn has_overlay(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay"))
}

/// Mount points below /proc hide parts of it; the kernel then refuses a new /proc in a user namespace, because that
/// would show them. The exceptions are those the kernel itself allows: empty directories made for mounts.
fn proc_overmounts(mountinfo: &str) -> Vec<PathBuf> {
    let point = |line: &str| {
        let path = line.split(' ').nth(4)?;
        let harmless = path == "/proc/sys/fs/binfmt_misc" || path == "/proc/fs/nfsd";
        (path.starts_with("/proc/") && !harmless).then(|| PathBuf::from(path))
    };
    mountinfo.lines().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overmounts_are_what_lies_below_proc() {
        let mountinfo = "\
            22 1 0:21 / /proc rw,nosuid - proc proc rw\n\
            23 22 0:30 / /proc/sys/fs/binfmt_misc rw - binfmt_misc binfmt_misc rw\n\
            24 22 0:31 / /proc/kcore rw,nosuid - tmpfs tmpfs rw\n\
            25 22 0:21 /sys /proc/sys ro,nosuid - proc proc rw\n\
            26 1 0:33 / /process rw - tmpfs tmpfs rw\n";
        assert_eq!(proc_overmounts(mountinfo), [PathBuf::from("/proc/kcore"), PathBuf::from("/proc/sys")]);
    }

    #[test]
    fn overlay_is_found_among_the_file_systems() {
        assert!(has_overlay("nodev\ttmpfs\n\text4\nnodev\toverlay\n"));
        assert!(!has_overlay("nodev\ttmpfs\n\text4\n"));
    }

    #[test]
    fn this_host_can_be_read() {
        let facts = Facts::collect(
            Isolation::Refused(RefusedCall { step: "clone3".into(), object: String::new(), errno: 1 }),
            None,
        );
        assert!(!facts.kernel_release.is_empty());
    }
}
