//! What the launcher does once, before the first VM.
//!
//! Stage 1 leaves the host's mount namespace (and, without root, its user namespace: an unprivileged process can't
//! clone a mount tree otherwise) and execs itself again from a read-only mount. Stage 2 builds, on a tmpfs that only
//! this process sees, what all VMs share: the template of the root directory and the device nodes.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use agentos_guest_protocol::launcher::{BootFailure, HostFindings, IdMode, IdRange, LauncherEvent};
use agentos_linux::clone::{SingleThreaded, unshare_mounts};
use agentos_linux::mount::{self, Restrictions};
use agentos_linux::{Errno, clone, seqpacket};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Resource, Rlimit};

use super::{cgroups, template};
use crate::wire::{failure, io_failure};

/// Where the launcher's own tmpfs is mounted. Nobody mounts parts of sysfs into a VM, so hiding it costs nothing;
/// the control groups below it are opened before.
pub(crate) const WORKSHOP: &str = "/sys";

/// Directories of the workshop.
pub(crate) const TEMPLATE: &str = "/sys/template";
pub(crate) const DEVICES: &str = "/sys/dev";
pub(crate) const STAGE: &str = "/sys/stage";
/// Where a VM mounts its own tmpfs, in its own copy of the mount namespace.
pub(crate) const VM_DISK: &str = "/sys/vm";
/// A /dev/net/tun that a VM's root may open, which the host's own need not be.
pub(crate) const TUN: &str = "/sys/net/tun";
const NET_DEVICES: &str = "/sys/net";

/// The lowest host id of the first VM; a user namespace that maps it has ids for VMs.
const ID_BASE: u32 = 0x4000_0000;

/// What all VMs of this launcher share.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub findings: HostFindings,
    pub cgroups: cgroups::Hierarchies,
    /// The directories of the host below a Base::Host: /usr, and /bin and the like where they are not links into it.
    pub host_directories: Vec<String>,
}

/// Stage 1. Returns only when it failed; the failure is told to the sidecar.
pub(crate) fn enter() -> ExitCode {
    let failure = match leave_host() {
        Ok(executable) => {
            let errno = clone::exec_descriptor(executable.as_fd(), crate::PREPARED_NAME);
            failure("execveat", "agentos", errno)
        }
        Err(failure) => failure,
    };
    super::report(rustix::stdio::stdin(), LauncherEvent::StartFailed(failure));
    ExitCode::FAILURE
}

fn leave_host() -> Result<OwnedFd, BootFailure> {
    let alone = SingleThreaded::check().map_err(|errno| failure("read", "/proc/self/task", errno))?;
    let root = rustix::process::geteuid().is_root();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let step = if root { "unshare mount namespace" } else { "unshare user namespace" };
    unshare_mounts(&alone, !root).map_err(|errno| failure(step, "", errno))?;
    if !root {
        // The caller is root in here, so that exec keeps the capabilities that the rest of the launcher needs.
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
        write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    }
    // From the host to here and never back.
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|errno| failure("mount --make-rslave", "/", errno))?;
    own_executable()
}

/// The running executable in a form that no guest can write to. A process of a VM reaches its program's file through
/// /proc/PID/exe; where the guest's user is the host's user, a plain path would let it replace the host's binary.
fn own_executable() -> Result<OwnedFd, BootFailure> {
    let running =
        File::open("/proc/self/exe").map_err(|error| io_failure("open", "/proc/self/exe", &error))?;
    let path = std::fs::read_link("/proc/self/exe")
        .map_err(|error| io_failure("readlink", "/proc/self/exe", &error))?;
    let same = match (running.metadata(), std::fs::metadata(&path)) {
        (Ok(running), Ok(named)) => (running.dev(), running.ino()) == (named.dev(), named.ino()),
        _ => false,
    };
    if same {
        let tree = mount::open_tree_alone(&path)
            .map_err(|errno| failure("open_tree", path.as_os_str().as_encoded_bytes(), errno))?;
        let restrictions = Restrictions { read_only: true, ..Restrictions::default() };
        mount::restrict(tree.as_fd(), restrictions, None)
            .map_err(|errno| failure("mount_setattr", path.as_os_str().as_encoded_bytes(), errno))?;
        return Ok(tree);
    }
    // Replaced since it was started, by an upgrade or a build: what runs is copied into memory that never changes.
    let mut program = Vec::new();
    let mut running = running;
    running.read_to_end(&mut program).map_err(|error| io_failure("read", "/proc/self/exe", &error))?;
    seqpacket::sealed_memfd(&program).map_err(|errno| failure("memfd_create", "agentos", errno))
}

/// Stage 2's preparation.
pub(crate) fn prepare(_alone: &SingleThreaded) -> Result<Prepared, BootFailure> {
    let ids = id_mode()?;
    let sidecar = sidecar(rustix::stdio::stdin(), rustix::process::getppid())?;
    let cgroups = cgroups::Hierarchies::open(sidecar);
    let workshop = mount::tmpfs(u64::from(WORKSHOP_MIB) << 20, 0, 0o755)
        .map_err(|errno| failure("fsmount tmpfs", WORKSHOP, errno))?;
    // Its device nodes must work, so nodev is not wanted here; each tree handed to a VM is restricted by itself.
    mount::attach_path(workshop.as_fd(), Path::new(WORKSHOP))
        .map_err(|errno| failure("move_mount", WORKSHOP, errno))?;
    for directory in [TEMPLATE, DEVICES, STAGE, VM_DISK] {
        rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755))
            .map_err(|errno| failure("mkdir", directory, errno))?;
    }
    let host_directories = template::build(Path::new(TEMPLATE), ids)?;
    build_devices(ids)?;
    let no_uplink = prepare_tun(ids).err();
    let findings = HostFindings {
        ids,
        cgroup_memory: cgroups.has_memory(),
        cgroup_cpu: cgroups.has_cpu(),
        cgroup_processes: cgroups.has_processes(),
        max_open_files: raise_open_files(ids),
        no_uplink,
    };
    Ok(Prepared { findings, cgroups, host_directories })
}

/// The sidecar's pid: whoever has made the control socket, and our parent. A sidecar that was killed before the launcher
/// could bind itself to it has another parent take its place, PID 1 as a rule, which nothing must be done to.
fn sidecar(control: BorrowedFd<'_>, parent: Option<Pid>) -> Result<u32, BootFailure> {
    let maker = agentos_linux::seqpacket::peer_process(control)
        .map_err(|errno| failure("getsockopt", "SO_PEERCRED", errno))?;
    let pid = u32::try_from(maker).ok().filter(|pid| *pid != 0 && Pid::as_raw(parent) == maker);
    pid.ok_or_else(|| failure("find the sidecar", maker.to_string(), Errno::SRCH))
}

/// Raises the hard limit as far as the kernel lets root go, and says what it is. Nobody may raise it later: a VM's
/// user namespace has no say in it.
fn raise_open_files(ids: IdMode) -> u32 {
    let wanted = Rlimit { current: Some(MAX_OPEN_FILES.into()), maximum: Some(MAX_OPEN_FILES.into()) };
    // Without the right to raise it, what there is has to do.
    let _ = rustix::process::setrlimit(Resource::Nofile, wanted);
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    let hard = hard.and_then(|hard| u32::try_from(hard).ok()).unwrap_or(MAX_OPEN_FILES);
    match ids {
        IdMode::Range => hard,
        // Descriptors in flight are counted for the host's user, and compared with the limit of whoever sends next:
        // the guest has to come to its limit while the sidecar and the launcher can still send.
        IdMode::Single => hard.saturating_sub(OPEN_FILES_OF_OUR_OWN).max(MIN_OPEN_FILES),
    }
}

const OPEN_FILES_OF_OUR_OWN: u32 = 1024;
const MIN_OPEN_FILES: u32 = 64;

/// The kernel's default for fs.nr_open.
const MAX_OPEN_FILES: u32 = 1 << 20;

/// The template holds copies of the host's public configuration; certificates are the largest part.
const WORKSHOP_MIB: u32 = 128;

fn id_mode() -> Result<IdMode, BootFailure> {
    let map = std::fs::read_to_string("/proc/self/uid_map")
        .map_err(|error| io_failure("read", "/proc/self/uid_map", &error))?;
    Ok(if maps(&map, ID_BASE) { IdMode::Range } else { IdMode::Single })
}

/// Whether a uid_map has an id inside.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(first), Some(_), Some(count)) => (first..first + count).contains(&u64::from(id)),
            _ => false,
        }
    })
}

const NODES: [(&CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

/// One /dev for all VMs: read-only, with mount points for what each has of its own.
fn build_devices(ids: IdMode) -> Result<(), BootFailure> {
    let tree = devices_tmpfs().map_err(|errno| failure("fsmount tmpfs", DEVICES, errno))?;
    mount::attach_path(tree.as_fd(), Path::new(DEVICES))
        .map_err(|errno| failure("move_mount", DEVICES, errno))?;
    let devices =
        rustix::fs::open(DEVICES, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failure("open", DEVICES, errno))?;
    for (name, major, minor) in NODES {
        let result = match ids {
            IdMode::Range => make_node(&devices, name, rustix::fs::makedev(major, minor)),
            IdMode::Single => bind_node(&devices, name),
        };
        result.map_err(|errno| failure("make device", name.to_bytes(), errno))?;
    }
    for directory in ["pts", "shm"] {
        rustix::fs::mkdirat(&devices, directory, Mode::from_raw_mode(0o755))
            .map_err(|errno| failure("mkdir", directory, errno))?;
    }
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        rustix::fs::symlinkat(target, &devices, name).map_err(|errno| failure("symlink", name, errno))?;
    }
    Ok(())
}

/// A tmpfs whose device nodes work.
fn devices_tmpfs() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "mode", "755")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(
        context.as_fd(),
        rustix::mount::FsMountFlags::FSMOUNT_CLOEXEC,
        rustix::mount::MountAttrFlags::MOUNT_ATTR_NOSUID,
    )
}

fn make_node(devices: &OwnedFd, name: &CStr, device: u64) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(devices, name, rustix::fs::FileType::CharacterDevice, mode, device)?;
    rustix::fs::chmodat(devices, name, mode, rustix::fs::AtFlags::empty())
}

/// Without root no node can be made: the host's own is bound.
fn bind_node(devices: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(devices, name, flags, Mode::from_raw_mode(0o666))?;
    let name = name.to_string_lossy();
    rustix::mount::mount_bind(format!("/dev/{name}"), format!("{DEVICES}/{name}"))
}

/// Whether a VM can have a TUN device is known when one has been opened.
fn prepare_tun(ids: IdMode) -> Result<(), BootFailure> {
    let path = match ids {
        IdMode::Range => TUN,
        IdMode::Single => HOST_TUN,
    };
    if ids == IdMode::Range {
        make_tun().map_err(|errno| failure("make device", TUN, errno))?;
    }
    agentos_linux::network::open_tun(path).map(drop).map_err(|errno| failure("open", HOST_TUN, errno))
}

/// Beside the devices of VMs and not among them: no guest has a use for it.
fn make_tun() -> Result<(), Errno> {
    rustix::fs::mkdir(NET_DEVICES, Mode::from_raw_mode(0o755))?;
    let tree = devices_tmpfs()?;
    make_node(
        &rustix::fs::openat(&tree, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
        c"tun",
        rustix::fs::makedev(10, 200),
    )?;
    mount::attach_path(tree.as_fd(), Path::new(NET_DEVICES))
}

/// Without root it is the host's own or none.
const HOST_TUN: &str = "/dev/net/tun";

/// The path of the TUN device for a VM with such ids.
pub(crate) fn tun(ids: IdRange) -> &'static str {
    match ids {
        IdRange::Range { .. } => TUN,
        IdRange::Single => HOST_TUN,
    }
}

fn write(path: &str, content: &str) -> Result<(), BootFailure> {
    std::fs::write(path, content).map_err(|error| io_failure("write", path, &error))
}

/// The flags of plain mounts made after boot.
pub(crate) const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::{Pid, maps, sidecar};

    #[test]
    fn the_sidecar_is_who_made_the_socket_and_no_parent_that_took_its_place() {
        let (_ours, control) = agentos_linux::seqpacket::pair().unwrap();
        let maker = rustix::process::getpid();
        assert_eq!(sidecar(control.as_fd(), Some(maker)).unwrap(), std::process::id());
        assert!(sidecar(control.as_fd(), Pid::from_raw(1)).is_err());
        assert!(sidecar(control.as_fd(), None).is_err());
    }

    #[test]
    fn the_hosts_own_map_has_ids_for_vms_and_a_single_one_has_not() {
        assert!(maps("         0          0 4294967295\n", 0x4000_0000));
        assert!(!maps("0 1000 1\n", 0x4000_0000));
        assert!(!maps("0 100000 65536\n", 0x4000_0000));
        assert!(!maps("garbage\n", 0));
    }
}
