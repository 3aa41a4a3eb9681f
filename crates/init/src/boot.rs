//! From a clone to a VM: top to bottom, one call after the other, each with its reason.
//!
//! ```text
//! launcher: maps, stage ──"go"──► ids, death signal, own mount namespace
//!                                  disk, root, /proc, /dev, mounts, pivot ──hang-up──► launcher: clear stage
//!                                  locks ──► Ready to the sidecar
//! ```
//! A step that fails is told to the sidecar with its object and errno, and the clone exits: the kernel undoes the rest.

mod disk;
mod layers;
mod proc;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agentos_guest_protocol::init::InitMessage;
use agentos_guest_protocol::launcher::{Base, BootFailure, BootPlan, IdRange};
use agentos_linux::clone::{self, SingleThreaded};
use agentos_linux::{Errno, credentials, seqpacket, signal};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};

use crate::event_loop::{self, Guest};
use crate::launcher::Staged;
use crate::network::Device;
use crate::wire::{self, failure};

/// The VM's user.
pub(crate) const USER_ID: u32 = 1000;

/// Of what the kernel counts for a user, where all VMs are one user of the host, a VM has one in this many.
const SHARES: u64 = 4;

/// The launcher's word that maps and stage are there.
pub(crate) const GO: &[u8] = b"go";

/// What a clone gets from the launcher: its memory holds more, but this is all that means something to it.
pub(crate) struct Inheritance<'a> {
    pub alone: &'a SingleThreaded,
    /// The socket to the sidecar.
    pub control: OwnedFd,
    /// The socket to the launcher.
    pub launcher: OwnedFd,
    /// Files of control groups to enter.
    pub tasks: &'a [OwnedFd],
    /// The lock of the VM's storage. Held while this process lives: should the launcher die first, nobody else gets the
    /// directory before the VM has lost it.
    pub storage_lock: Option<OwnedFd>,
    pub plan: &'a BootPlan,
    pub staged: &'a Staged,
}

/// The id that the VM's processes run as, and that owns what the API creates.
pub(crate) fn user_id(plan: &BootPlan) -> u32 {
    if plan.root { 0 } else { USER_ID }
}

/// Boots the VM and is its PID 1 from then on.
pub(crate) fn run(inheritance: Inheritance<'_>) -> ! {
    let booted = boot(&inheritance);
    // The launcher may clear the stage now.
    drop(inheritance.launcher);
    let control = inheritance.control.as_fd();
    let code = match booted.and_then(|uplink| harden(inheritance.plan, uplink)) {
        Ok(guest) => event_loop::run(control, guest),
        Err(failure) => {
            // A sidecar that has hung up has no use for the reason.
            drop(wire::send(control, &InitMessage::BootFailed(failure), &[]));
            1
        }
    };
    std::process::exit(code)
}

fn boot(inheritance: &Inheritance<'_>) -> Result<Option<Device>, BootFailure> {
    let plan = inheritance.plan;
    keep_only_own_descriptors(inheritance).map_err(|errno| failure("close_range", "", errno))?;
    enter_control_groups(inheritance.tasks)?;
    await_go(inheritance.launcher.as_fd())?;
    become_own_root(plan).map_err(|errno| failure("setresuid", "", errno))?;
    // After the last change of credentials, which would take it back.
    signal::die_with_parent().map_err(|errno| failure("prctl", "PR_SET_PDEATHSIG", errno))?;
    expect_launcher(inheritance.launcher.as_fd()).map_err(|errno| failure("find launcher", "", errno))?;
    clone::unshare_mounts(inheritance.alone, false)
        .map_err(|errno| failure("unshare mount namespace", "", errno))?;
    // /proc/self/cgroup shows the VM's own group as the root from now on.
    clone::unshare_cgroups(inheritance.alone)
        .map_err(|errno| failure("unshare cgroup namespace", "", errno))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| failure("mount --make-rprivate", "/", errno))?;
    disk::build(plan, inheritance.staged)?;
    rustix::system::sethostname(plan.hostname.as_bytes())
        .map_err(|errno| failure("sethostname", plan.hostname.as_bytes(), errno))?;
    agentos_linux::network::bring_loopback_up().map_err(|errno| failure("bring up", "lo", errno))?;
    // In the VM's network namespace, and by a path that is gone with the next step.
    let uplink = plan.uplink.map(|uplink| Device::open(plan.ids, uplink));
    enter_root().map_err(|errno| failure("pivot_root", "", errno))?;
    Ok(uplink)
}

/// The launcher's other descriptors, those of other VMs among them, must not live on here. 0, 1 and 2 are the
/// launcher's too; they are replaced once the VM has a /dev/null.
fn keep_only_own_descriptors(inheritance: &Inheritance<'_>) -> Result<(), Errno> {
    let mut keep: Vec<BorrowedFd<'_>> = inheritance.tasks.iter().map(AsFd::as_fd).collect();
    keep.extend(inheritance.storage_lock.as_ref().map(AsFd::as_fd));
    keep.push(inheritance.control.as_fd());
    keep.push(inheritance.launcher.as_fd());
    keep.push(rustix::stdio::stdin());
    keep.push(rustix::stdio::stdout());
    keep.push(rustix::stdio::stderr());
    clone::close_all_but(inheritance.alone, &keep)
}

/// `0` is "the writer": a pid written by somebody else would wait for a grace period of the kernel.
fn enter_control_groups(tasks: &[OwnedFd]) -> Result<(), BootFailure> {
    for file in tasks {
        rustix::io::write(file, b"0").map_err(|errno| failure("enter control group", "tasks", errno))?;
    }
    Ok(())
}

fn await_go(launcher: BorrowedFd<'_>) -> Result<(), BootFailure> {
    let mut buffer = [0; 16];
    let received =
        seqpacket::receive(launcher, &mut buffer).map_err(|errno| failure("receive", "go", errno))?;
    if buffer.get(..received.len) == Some(GO) { Ok(()) } else { Err(failure("receive", "go", Errno::PIPE)) }
}

/// A launcher that died before its death meant anything to this process has hung up.
fn expect_launcher(launcher: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut asked = [PollFd::from_borrowed_fd(launcher, PollFlags::IN)];
    rustix::event::poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let [asked] = asked;
    if asked.revents().contains(PollFlags::HUP) { Err(Errno::PIPE) } else { Ok(()) }
}

/// Becomes the root of the new user namespace; where only the user's id is mapped, the clone is that user already and
/// has the capabilities all the same.
fn become_own_root(plan: &BootPlan) -> Result<(), Errno> {
    match plan.ids {
        IdRange::Range { .. } => {
            credentials::drop_groups()?;
            credentials::set_ids(0, 0)
        }
        IdRange::Single => Ok(()),
    }
}

/// Makes the current directory, the new root, the only one there is.
fn enter_root() -> Result<(), Errno> {
    rustix::process::chdir(disk::ROOT)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root lies above the new one now, and with it everything of the launcher and the host.
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// The last steps before the first guest process: nothing of PID 1 may be of use to one.
fn harden(plan: &BootPlan, uplink: Option<Device>) -> Result<Guest, BootFailure> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failure("open", "/dev/null", errno))?;
    for target in 0..=2 {
        clone::place_standard(null.as_fd(), target).map_err(|errno| failure("dup2", "/dev/null", errno))?;
    }
    // Readable for its owner only while the process is dumpable.
    credentials::set_dumpable(true).map_err(|errno| failure("prctl", "PR_SET_DUMPABLE", errno))?;
    let oom_score =
        rustix::fs::open("/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failure("open", "/proc/self/oom_score_adj", errno))?;
    credentials::set_dumpable(false).map_err(|errno| failure("prctl", "PR_SET_DUMPABLE", errno))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let processes = u64::from(plan.limits.processes);
    let limit = Rlimit { current: Some(processes), maximum: Some(processes) };
    rustix::process::setrlimit(Resource::Nproc, limit)
        .map_err(|errno| failure("setrlimit", "RLIMIT_NPROC", errno))?;
    if plan.ids == IdRange::Single {
        for (resource, name) in
            [(Resource::Sigpending, "RLIMIT_SIGPENDING"), (Resource::Msgqueue, "RLIMIT_MSGQUEUE")]
        {
            let share = rustix::process::getrlimit(resource).maximum.map(|whole| whole / SHARES);
            rustix::process::setrlimit(resource, Rlimit { current: share, maximum: share })
                .map_err(|errno| failure("setrlimit", name, errno))?;
        }
    }
    // What PID 1 and its file threads create belongs to the VM's user, with the rights of its root kept.
    credentials::keep_capabilities_across_ids()
        .map_err(|errno| failure("prctl", "PR_SET_SECUREBITS", errno))?;
    credentials::create_files_as(user_id(plan), user_id(plan));
    let capabilities = if plan.root {
        credentials::guest_root_capabilities()
    } else {
        rustix::thread::CapabilitySet::empty()
    };
    // PID 1 never execs, so it loses nothing; whoever it forks can't gain more.
    credentials::cut_bounding_set(capabilities)
        .map_err(|errno| failure("prctl", "PR_CAPBSET_DROP", errno))?;
    Ok(Guest {
        null,
        oom_score,
        user: user_id(plan),
        drop_groups: plan.ids != IdRange::Single,
        capabilities,
        open_files: u64::from(plan.limits.open_files),
        uplink,
        root_in_memory: matches!(plan.base, Base::Host { .. }) && plan.storage.is_none(),
    })
}

pub(crate) fn fail(step: &str, path: impl AsRef<Path>, errno: Errno) -> BootFailure {
    failure(step, path.as_ref().as_os_str().as_encoded_bytes(), errno)
}
