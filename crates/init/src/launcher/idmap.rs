//! User namespaces that exist only to carry an id map for mounts.

use std::os::fd::OwnedFd;

use agentos_linux::Errno;
use agentos_linux::clone::{Cloned, Namespaces, SingleThreaded, clone_namespaces};
use rustix::fs::{Mode, OFlags};

/// One id of a file system and the host id that a mount shows it as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub on_disk: u32,
    pub shown: u32,
}

/// A user namespace with one user id and one group id; every other id is unmapped in a mount that carries it.
pub(super) fn one_pair(alone: &SingleThreaded, user: Pair, group: Pair) -> Result<OwnedFd, Errno> {
    let (pid, pidfd) = match clone_namespaces(alone, Namespaces::USER, None)? {
        Cloned::Child => wait_for_death(),
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    let result = write_maps(
        pid,
        &format!("{} {} 1", user.on_disk, user.shown),
        &format!("{} {} 1", group.on_disk, group.shown),
    )
    .and_then(|()| open_user_namespace(pid));
    // The namespace lives on in its descriptor.
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL)?;
    agentos_linux::signal::reap_waiting(pid);
    result
}

/// The clone holds the namespace until its parent has opened it.
fn wait_for_death() -> ! {
    if agentos_linux::signal::die_with_parent().is_err() {
        std::process::exit(1);
    }
    loop {
        rustix::event::pause();
    }
}

pub(super) fn write_maps(pid: i32, users: &str, groups: &str) -> Result<(), Errno> {
    for (name, map) in [("uid_map", users), ("gid_map", groups)] {
        let file =
            rustix::fs::open(format!("/proc/{pid}/{name}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // A map is taken whole, in one write.
        rustix::io::write(&file, map.as_bytes())?;
    }
    Ok(())
}

pub(super) fn open_user_namespace(pid: i32) -> Result<OwnedFd, Errno> {
    rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
