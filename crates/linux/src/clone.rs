//! The first process of a VM: a clone of the caller in new namespaces.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Proof that the calling process has one thread, and the right to clone it without exec.
///
/// The child of a process with threads may find any lock held for ever. Whoever makes this promises to start no
/// thread while it is alive; that the process has none now is checked.
#[derive(Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// `EBUSY` if the process has other threads.
    pub fn check() -> Result<Self, Errno> {
        let tasks = std::fs::read_dir("/proc/self/task").map_err(|error| errno_of(&error))?.count();
        if tasks == 1 { Ok(Self(PhantomData)) } else { Err(Errno::BUSY) }
    }
}

/// Who returned from [`clone_namespaces`].
#[derive(Debug)]
pub enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Namespaces of a clone, as clone3 takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces(u64);

impl Namespaces {
    /// None: a plain fork.
    pub const NONE: Self = Self(0);
    /// A user namespace alone.
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// All of a VM's but its mount namespace, which it leaves later: by then its parent has staged its mounts.
    pub const VM: Self = Self(
        (libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS) as u64,
    );
}

/// Clones the calling process into new namespaces, and into a v2 control group where one is given.
///
/// The child shares nothing with its parent but the open files: its memory is a copy. It goes on from here with its
/// parent's stack, so the caller must let it never return to the parent's business.
pub fn clone_namespaces(
    _alone: &SingleThreaded,
    namespaces: Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Cloned, Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut arguments = CloneArguments {
        flags: namespaces.0 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: clone3 reads `size_of::<CloneArguments>()` bytes at the pointer, a live local of exactly that layout,
    // and writes one int to `pidfd`, which outlives the call. Without CLONE_VM and with no stack given the child runs
    // on a copy of this stack, and `_alone` vouches that no other thread's lock is copied in a held state.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    match pid {
        -1 => Err(last_errno()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: with CLONE_PIDFD a successful clone3 has put a new descriptor there that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// From linux/sched.h; libc has no constant for it on every target.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` up to `cgroup` (CLONE_ARGS_SIZE_VER2).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const _: () = assert!(size_of::<CloneArguments>() == 88);

/// Leaves the caller's mount namespace for a copy of it, and its user namespace too where asked.
pub fn unshare_mounts(_alone: &SingleThreaded, user_namespace: bool) -> Result<(), Errno> {
    let flags = libc::CLONE_NEWNS | if user_namespace { libc::CLONE_NEWUSER } else { 0 };
    // SAFETY: unshare takes no pointers; descriptors stay shared, so no `OwnedFd` changes its meaning.
    let result = unsafe { libc::unshare(flags) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Leaves the caller's cgroup namespace: what is the caller's group now becomes the root that /proc shows.
pub fn unshare_cgroups(_alone: &SingleThreaded) -> Result<(), Errno> {
    // SAFETY: as in `unshare_mounts`.
    let result = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Replaces the calling process by the program open at `executable`, with an empty environment. Returns only to say
/// why not.
pub fn exec_descriptor(executable: BorrowedFd<'_>, argument: &std::ffi::CStr) -> Errno {
    let argv = [argument.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the path is an empty C string, both arrays end with a null pointer and live across the call, and the
    // C string they point to is borrowed for as long.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            executable.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}

pub(crate) fn last_errno() -> Errno {
    errno_of(&std::io::Error::last_os_error())
}

pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Closes every descriptor of the process except these. For a fresh clone, whose parent's descriptors mean nothing to
/// it: the caller never touches an owner of one of the closed again.
pub fn close_all_but(_alone: &SingleThreaded, keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    keep.sort_unstable();
    let mut first = 0;
    for kept in keep {
        if kept > first {
            close_range(first, kept - 1)?;
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: close_range takes integers. The caller of `close_all_but` has given up whatever owns these.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Puts a descriptor at the place of another, as dup2 does; for stdin, stdout and stderr of a process of one's own.
pub fn place_standard(source: BorrowedFd<'_>, target: i32) -> Result<(), Errno> {
    // SAFETY: dup2 takes two integers; 0, 1 and 2 have no Rust owner.
    let result = unsafe { libc::dup2(source.as_raw_fd(), target.clamp(0, 2)) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
