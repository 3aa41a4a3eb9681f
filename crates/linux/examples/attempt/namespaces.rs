//! New namespaces, and those of others.

use std::fs;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::process::WaitStatus;

use crate::syscall::{call, in_child, pointer, reap};
use crate::{Outcome, done, io};

const FLAGS: [(&str, i32); 8] = [
    ("mnt", libc::CLONE_NEWNS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("user", libc::CLONE_NEWUSER),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("time", libc::CLONE_NEWTIME),
];

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["unshare", kind] => done(call(libc::SYS_unshare, &[flag(kind)?])),
        ["clone", kind] => clone(flag(kind)?),
        ["clone3", kind] => clone3(flag(kind)?),
        ["clone3"] => clone3(0),
        ["setns", path] => setns(path),
        ["threads-and-fork"] => threads_and_fork(),
        _ => return None,
    };
    Some(outcome)
}

fn flag(kind: &str) -> Option<u64> {
    FLAGS.iter().find(|(name, _)| *name == kind).map(|(_, flag)| *flag as u64)
}

/// Where nothing that a control does can be seen from outside. Who isn't root becomes the root of a user namespace.
pub(crate) fn enter_private() -> Result<(), Errno> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
    if !uid.is_root() {
        flags |= libc::CLONE_NEWUSER;
    }
    call(libc::SYS_unshare, &[flags as u64])?;
    if !uid.is_root() {
        io(fs::write("/proc/self/setgroups", "deny"))?;
        io(fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw())))?;
        io(fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw())))?;
    }
    let root = pointer(c"/".to_bytes_with_nul());
    let none = pointer(c"none".to_bytes_with_nul());
    call(libc::SYS_mount, &[none, root, 0, libc::MS_REC | libc::MS_PRIVATE, 0])?;
    Ok(())
}

/// A clone without a stack of its own goes on with a copy of ours, as fork does.
fn clone(flags: u64) -> Outcome {
    let pid = call(libc::SYS_clone, &[flags | libc::SIGCHLD as u64, 0, 0, 0, 0])?;
    after_fork(pid)
}

fn clone3(flags: u64) -> Outcome {
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let arguments: [u64; 8] = [flags, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    let pid = call(libc::SYS_clone3, &[pointer(&arguments), size_of_val(&arguments) as u64])?;
    after_fork(pid)
}

fn after_fork(pid: i64) -> Outcome {
    if pid == 0 {
        std::process::exit(0);
    }
    done(reap(i32::try_from(pid).unwrap_or(0)))
}

fn setns(path: &str) -> Outcome {
    let namespace = io(fs::File::open(path))?;
    done(call(libc::SYS_setns, &[namespace.as_raw_fd() as u64, 0]))
}

/// What the refusals must not cost: ordinary threads and processes.
fn threads_and_fork() -> Outcome {
    let thread = io(std::thread::Builder::new().spawn(|| 20))?;
    let from_thread = thread.join().map_err(|_| Errno::IO)?;
    let status = in_child(|| 22)?;
    let from_child = WaitStatus::exit_status(status).ok_or(Errno::CHILD)?;
    if from_thread + from_child == 42 { Ok("ok".to_owned()) } else { Err(Errno::CHILD) }
}
