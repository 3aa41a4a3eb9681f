//! The table: one function per facility, one line each. Every remedy is a command or a flag that can be copied.

use agentos_vm::errno;
use rustix::io::Errno;

use super::facts::{Container, Facts, Isolation, RefusedCall};

/// The first kernel whose tmpfs has user xattrs, which overlayfs in a user namespace needs.
const KERNEL_FLOOR: (u32, u32) = (6, 6);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facility {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    /// What was tried and what the kernel answered.
    pub(crate) finding: String,
    /// What is lost; empty when nothing is.
    pub(crate) cost: &'static str,
    /// What cures it; empty when nothing is wrong.
    pub(crate) remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ok,
    /// Works without it, at the cost named.
    Degraded,
    /// No VM without it.
    Missing,
}

/// The line for refusals that no other line explains.
const UNEXPLAINED: &str = "isolation";

const NO_VM: &str = "No VM can be created.";

impl Facility {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, state: State::Ok, finding: finding.into(), cost: "", remedy: String::new() }
    }

    /// Whether the line names a cause, not just the call that was refused.
    pub(crate) fn is_explained(&self) -> bool {
        self.name != UNEXPLAINED
    }

    fn missing(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Missing, finding: finding.into(), cost: NO_VM, remedy: remedy.into() }
    }
}

/// All lines, in the order in which a VM needs them.
pub(crate) fn table(facts: &Facts) -> Vec<Facility> {
    let mut lines = vec![
        kernel(facts),
        user_namespaces(facts),
        procfs(facts),
        overlay(facts),
        seccomp(facts),
        ids(facts),
        network(facts),
        cgroup(
            facts,
            "memory limit",
            |found| found.memory,
            "Memory limits are refused; VMs share the memory of the machine.",
        ),
        cgroup(facts, "CPU limit", |found| found.cpu, "CPU limits are refused; VMs share every CPU."),
        cgroup(
            facts,
            "process limit",
            |found| found.processes,
            "Without private user ids process limits are refused; the kernel counts per user.",
        ),
    ];
    // A refusal that no line above explains is still named: the call, its object, the kernel's answer.
    if let Isolation::Refused(call) = &facts.isolation
        && !lines.iter().any(|line| line.state == State::Missing)
    {
        lines.push(Facility::missing(UNEXPLAINED, refused(call), unexplained(facts)));
    }
    lines
}

/// The line that explains a refused call, or `None` where the call's failure says nothing about the host.
pub(crate) fn unsupported(facts: &Facts) -> Option<Facility> {
    table(facts).into_iter().find(|line| line.state == State::Missing)
}

fn kernel(facts: &Facts) -> Facility {
    let name = "kernel";
    let release = &facts.kernel_release;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => {
            let finding = format!("not a Linux kernel: its release is {release:?}");
            return Facility::missing(name, finding, "Run agentOS on Linux 6.6 or later.");
        }
    };
    if version >= KERNEL_FLOOR {
        return Facility::ok(name, format!("Linux {release}"));
    }
    let finding = format!("Linux {release}: overlayfs in a user namespace needs 6.6 or later");
    Facility::missing(name, finding, "Install a kernel of 6.6 or later.")
}

fn user_namespaces(facts: &Facts) -> Facility {
    let name = "user namespaces";
    let Isolation::Refused(call) = &facts.isolation else {
        return Facility::ok(name, "a VM was booted");
    };
    if !concerns(call, &["clone", "unshare", "uid_map", "gid_map", "setgroups", "user namespace"]) {
        return Facility::ok(name, "not what failed");
    }
    let finding = refused(call);
    if facts.max_user_namespaces == Some(0) {
        let finding = format!("{finding}; user.max_user_namespaces is 0");
        return Facility::missing(name, finding, "sudo sysctl -w user.max_user_namespaces=15000");
    }
    if is(call, Errno::NOSPC) || is(call, Errno::USERS) {
        let finding = format!("{finding}; the limit of user namespaces is reached");
        return Facility::missing(name, finding, "sudo sysctl -w user.max_user_namespaces=15000");
    }
    if is(call, Errno::NOSYS) && !facts.filtered {
        return Facility::missing(name, finding, "Run a kernel that is built with CONFIG_USER_NS.");
    }
    if !facts.root && facts.unprivileged_userns_clone == Some(false) {
        let finding = format!("{finding}; kernel.unprivileged_userns_clone is 0");
        return Facility::missing(name, finding, "sudo sysctl -w kernel.unprivileged_userns_clone=1");
    }
    if facts.filtered || facts.container != Container::None {
        let finding = format!("{finding}; a container's seccomp filter refuses new namespaces");
        return Facility::missing(name, finding, seccomp_flag(facts.container));
    }
    if !facts.root && facts.apparmor_restricts_userns {
        let finding = format!("{finding}; AppArmor restricts unprivileged user namespaces");
        let remedy = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
        return Facility::missing(name, finding, remedy);
    }
    Facility::missing(name, finding, unexplained(facts))
}

/// A container runtime that masks parts of /proc makes the kernel refuse a new /proc in a user namespace.
fn procfs(facts: &Facts) -> Facility {
    let name = "/proc";
    let paths: Vec<_> = facts.proc_overmounts.iter().take(3).map(|path| path.display().to_string()).collect();
    let covered = format!("mounts cover parts of /proc: {}", paths.join(", "));
    match &facts.isolation {
        Isolation::Refused(call) if concerns(call, &["proc"]) && !facts.proc_overmounts.is_empty() => {
            let remedy = match facts.container {
                Container::Kubernetes => {
                    "In the pod: securityContext.procMount: Unmasked, with hostUsers: false"
                }
                Container::Docker | Container::Other => {
                    "docker run --security-opt systempaths=unconfined ..."
                }
                Container::None => &format!("sudo umount {}", paths.join(" ")),
            };
            Facility::missing(name, format!("{}; {}", refused(call), covered), remedy)
        }
        _ if facts.proc_overmounts.is_empty() => Facility::ok(name, "nothing covers parts of it"),
        _ => Facility::ok(name, covered),
    }
}

fn overlay(facts: &Facts) -> Facility {
    let name = "overlayfs";
    match &facts.isolation {
        Isolation::Refused(call) if concerns(call, &["overlay"]) => {
            let remedy = if !facts.overlay || is(call, Errno::NODEV) {
                "sudo modprobe overlay".to_owned()
            } else {
                unexplained(facts)
            };
            Facility::missing(name, refused(call), remedy)
        }
        Isolation::Refused(_) => Facility::ok(name, "not what failed"),
        Isolation::Works { .. } => Facility::ok(name, "mounted in a user namespace"),
    }
}

fn seccomp(facts: &Facts) -> Facility {
    let name = "seccomp";
    if !facts.seccomp {
        let remedy = "Run a kernel that is built with CONFIG_SECCOMP_FILTER.";
        return Facility::missing(name, "the kernel can't filter system calls", remedy);
    }
    match &facts.isolation {
        Isolation::Refused(call) if concerns(call, &["seccomp"]) => {
            Facility::missing(name, refused(call), unexplained(facts))
        }
        _ => Facility::ok(name, "the kernel filters system calls"),
    }
}

fn ids(facts: &Facts) -> Facility {
    let name = "private user ids";
    match facts.isolation {
        Isolation::Works { private_ids: false, .. } => Facility {
            name,
            state: State::Degraded,
            finding: "not root: one id is mapped to the VM's user".to_owned(),
            cost: "VMs have no root and no second user; /usr is read-only in them.",
            remedy: "Run the sidecar as root.".to_owned(),
        },
        Isolation::Works { private_ids: true, .. } => Facility::ok(name, "65,536 for every VM"),
        Isolation::Refused(_) => Facility::ok(name, "not tried"),
    }
}

fn network(facts: &Facts) -> Facility {
    let name = "network";
    let Some(call) = &facts.no_uplink else {
        return match facts.isolation {
            Isolation::Works { .. } => Facility::ok(name, "a TUN device for every VM"),
            Isolation::Refused(_) => Facility::ok(name, "not tried"),
        };
    };
    let remedy = match facts.container {
        Container::Docker | Container::Other => "docker run --device /dev/net/tun ...",
        Container::Kubernetes => "In the pod: securityContext.privileged: true",
        Container::None if is(call, Errno::ACCESS) => "sudo chmod 0666 /dev/net/tun",
        Container::None => "sudo modprobe tun",
    };
    Facility {
        name,
        state: State::Degraded,
        finding: refused(call),
        cost: "VMs have their loopback and nothing else; policies that let something out are refused.",
        remedy: remedy.to_owned(),
    }
}

struct Found {
    memory: bool,
    cpu: bool,
    processes: bool,
}

fn cgroup(facts: &Facts, name: &'static str, which: fn(&Found) -> bool, cost: &'static str) -> Facility {
    let Isolation::Works { cgroup_memory, cgroup_cpu, cgroup_processes, .. } = facts.isolation else {
        return Facility::ok(name, "not tried");
    };
    if which(&Found { memory: cgroup_memory, cpu: cgroup_cpu, processes: cgroup_processes }) {
        return Facility::ok(name, "enforced by a control group per VM");
    }
    let remedy = match (facts.container, facts.root) {
        (Container::Docker | Container::Other, true) => "docker run --privileged --cgroupns=private ...",
        (Container::Docker | Container::Other, false) => {
            "docker run --user 0 --privileged --cgroupns=private ..."
        }
        (Container::Kubernetes, _) => "In the pod: securityContext.privileged: true",
        (Container::None, false) => "systemd-run --user --scope -p Delegate=yes -- agentos sidecar",
        (Container::None, true) => {
            "Mount /sys/fs/cgroup writable and enable the controller in cgroup.subtree_control."
        }
    };
    let finding = "the control group's directory is not writable or lacks the controller".to_owned();
    Facility { name, state: State::Degraded, finding, cost, remedy: remedy.to_owned() }
}

fn seccomp_flag(container: Container) -> &'static str {
    match container {
        Container::Kubernetes => "In the pod: securityContext.seccompProfile.type: Unconfined",
        _ => "docker run --security-opt seccomp=unconfined ...",
    }
}

/// For a refusal whose cause does not show: what refuses such calls most often where we run.
fn unexplained(facts: &Facts) -> String {
    match facts.container {
        Container::Docker | Container::Other => "docker run --privileged ...".to_owned(),
        Container::Kubernetes => "In the pod: securityContext.privileged: true".to_owned(),
        Container::None => "Look for the refusal in the kernel's log: sudo dmesg | tail".to_owned(),
    }
}

fn concerns(call: &RefusedCall, words: &[&str]) -> bool {
    words.iter().any(|word| call.step.contains(word))
}

fn is(call: &RefusedCall, errno: Errno) -> bool {
    call.errno == errno.raw_os_error()
}

fn refused(call: &RefusedCall) -> String {
    let error = errno::text(call.errno);
    if call.object.is_empty() {
        format!("{error}, {}", call.step)
    } else {
        format!("{error}, {} '{}'", call.step, call.object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            kernel_release: "6.8.0-45-generic".into(),
            root: true,
            max_user_namespaces: Some(15_000),
            unprivileged_userns_clone: None,
            apparmor_restricts_userns: false,
            seccomp: true,
            filtered: false,
            overlay: true,
            proc_overmounts: Vec::new(),
            container: Container::None,
            isolation: Isolation::Works {
                private_ids: true,
                cgroup_memory: true,
                cgroup_cpu: true,
                cgroup_processes: true,
            },
            no_uplink: None,
        }
    }

    fn refusing(step: &str, errno: Errno) -> Facts {
        let call = RefusedCall { step: step.into(), object: "".into(), errno: errno.raw_os_error() };
        Facts { isolation: Isolation::Refused(call), ..healthy() }
    }

    #[track_caller]
    fn check(facts: &Facts, name: &str, finding: &str, remedy: &str) {
        let line = unsupported(facts).expect("no line says that something is missing");
        assert_eq!(line.name, name, "{line:?}");
        assert!(line.finding.contains(finding), "{line:?}");
        assert!(line.remedy.contains(remedy), "{line:?}");
    }

    #[test]
    fn a_healthy_host_misses_nothing() {
        let lines = table(&healthy());
        assert!(lines.iter().all(|line| line.state == State::Ok && line.remedy.is_empty()), "{lines:#?}");
    }

    #[test]
    fn old_kernels_are_refused_by_name() {
        for release in ["6.5.13-arch1", "5.19.0", "4.4.0-19041-Microsoft"] {
            check(&Facts { kernel_release: release.into(), ..healthy() }, "kernel", release, "6.6");
        }
        for release in ["6.6.0", "6.18.2", "7.0.0-rc1", "10.1"] {
            assert_eq!(
                unsupported(&Facts { kernel_release: release.into(), ..healthy() }),
                None,
                "{release}"
            );
        }
        check(&Facts { kernel_release: "Darwin".into(), ..healthy() }, "kernel", "Darwin", "Linux 6.6");
    }

    #[test]
    fn a_limit_of_no_user_namespaces_is_the_cause() {
        let facts = Facts { max_user_namespaces: Some(0), ..refusing("clone3", Errno::NOSPC) };
        check(&facts, "user namespaces", "user.max_user_namespaces is 0", "user.max_user_namespaces=15000");
    }

    #[test]
    fn a_reached_limit_of_user_namespaces_is_the_cause() {
        check(&refusing("clone3", Errno::NOSPC), "user namespaces", "limit of user namespaces", "sysctl");
    }

    #[test]
    fn apparmors_restriction_is_the_cause_for_plain_users_only() {
        let facts =
            Facts { apparmor_restricts_userns: true, root: false, ..refusing("write uid_map", Errno::PERM) };
        check(&facts, "user namespaces", "AppArmor", "kernel.apparmor_restrict_unprivileged_userns=0");
        let root = Facts { root: true, ..facts };
        assert!(!unsupported(&root).unwrap().finding.contains("AppArmor"));
    }

    #[test]
    fn debians_switch_is_the_cause() {
        let facts =
            Facts { unprivileged_userns_clone: Some(false), root: false, ..refusing("unshare", Errno::PERM) };
        check(&facts, "user namespaces", "unprivileged_userns_clone is 0", "unprivileged_userns_clone=1");
    }

    #[test]
    fn a_containers_filter_is_the_cause_with_the_runtimes_own_flag() {
        let docker =
            Facts { filtered: true, container: Container::Docker, ..refusing("clone3", Errno::PERM) };
        check(&docker, "user namespaces", "clone3", "--security-opt seccomp=unconfined");
        let pod = Facts { container: Container::Kubernetes, ..docker };
        check(&pod, "user namespaces", "seccomp", "seccompProfile");
    }

    #[test]
    fn a_masked_proc_is_the_cause_with_the_runtimes_own_flag() {
        let docker = Facts {
            container: Container::Docker,
            proc_overmounts: vec!["/proc/kcore".into(), "/proc/keys".into()],
            ..refusing("mount proc", Errno::PERM)
        };
        check(&docker, "/proc", "/proc/kcore", "systempaths=unconfined");
        check(&Facts { container: Container::Kubernetes, ..docker }, "/proc", "/proc/keys", "procMount");
    }

    #[test]
    fn a_missing_overlay_module_is_the_cause() {
        let facts = Facts { overlay: false, ..refusing("mount overlay", Errno::NODEV) };
        check(&facts, "overlayfs", "mount overlay", "modprobe overlay");
    }

    #[test]
    fn a_kernel_without_seccomp_is_the_cause() {
        let facts = Facts { seccomp: false, ..healthy() };
        check(&facts, "seccomp", "filter", "CONFIG_SECCOMP_FILTER");
    }

    #[test]
    fn a_refusal_nobody_foresaw_is_still_named() {
        check(&refusing("pivot_root", Errno::INVAL), "isolation", "pivot_root", "dmesg");
        let facts = Facts { container: Container::Docker, ..refusing("mount tmpfs", Errno::PERM) };
        check(&facts, "isolation", "mount tmpfs", "--privileged");
    }

    #[test]
    fn what_only_degrades_is_said_and_does_not_refuse() {
        let facts = Facts {
            root: false,
            isolation: Isolation::Works {
                private_ids: false,
                cgroup_memory: false,
                cgroup_cpu: true,
                cgroup_processes: false,
            },
            no_uplink: None,
            ..healthy()
        };
        let degraded: Vec<_> =
            table(&facts).into_iter().filter(|line| line.state == State::Degraded).collect();
        let names: Vec<_> = degraded.iter().map(|line| line.name).collect();
        assert_eq!(names, ["private user ids", "memory limit", "process limit"]);
        assert!(
            degraded.iter().all(|line| !line.cost.is_empty() && !line.remedy.is_empty()),
            "{degraded:#?}"
        );
        assert_eq!(unsupported(&facts), None);
    }

    #[test]
    fn a_host_without_tun_devices_has_vms_without_a_network() {
        let call = |errno: Errno| RefusedCall {
            step: "open".into(),
            object: "/dev/net/tun".into(),
            errno: errno.raw_os_error(),
        };
        let network = |facts: &Facts| table(facts).into_iter().find(|line| line.name == "network").unwrap();
        assert_eq!(network(&healthy()).state, State::Ok);
        for (errno, container, cure) in [
            (Errno::ACCESS, Container::None, "chmod"),
            (Errno::NOENT, Container::None, "modprobe"),
            (Errno::NOENT, Container::Docker, "--device /dev/net/tun"),
        ] {
            let facts = Facts { no_uplink: Some(call(errno)), container, ..healthy() };
            let line = network(&facts);
            assert_eq!(line.state, State::Degraded);
            assert!(line.finding.contains("/dev/net/tun") && line.remedy.contains(cure), "{line:?}");
            assert_eq!(unsupported(&facts), None);
        }
    }
}
