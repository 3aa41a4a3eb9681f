//! Network namespaces, held by descriptor: they have no name in any file system, so nothing has to be removed.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::Failure;

pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one, which the process is in from now on.
    pub(crate) fn new() -> Result<Self, Failure> {
        unshare(UnshareFlags::NEWNET)?;
        let file = File::open("/proc/self/ns/net").map_err(|error| Failure::Io("open a namespace", error))?;
        Ok(Self(file))
    }

    /// The process's one thread goes there. What it opens from then on stays there.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| Failure::Step("enter a namespace", errno))
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Where other processes find it for as long as this one lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Lets every group open sockets for echo requests, as distributions do; a new namespace lets none. Where the
    /// setting can't be written, only the tests of echo requests miss it.
    pub(crate) fn allow_ping(&self) {
        let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    }
}

fn unshare(flags: UnshareFlags) -> Result<(), Failure> {
    // SAFETY: only flags that unshare the descriptor table are dangerous, and no caller passes them.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|errno| Failure::Step("unshare", errno))
}

/// Becomes the program. Returns only if that failed.
pub(crate) fn run_in(path: &str, resolv_conf: &str, program: &str, arguments: &[&str]) -> Failure {
    let enter = || -> Result<(), Failure> {
        let namespace = File::open(path).map_err(|error| Failure::Io("open the namespace", error))?;
        Namespace(namespace).enter()?;
        unshare(UnshareFlags::NEWNS)?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private).map_err(|errno| Failure::Step("make mounts private", errno))?;
        mount_bind(resolv_conf, "/etc/resolv.conf").map_err(|errno| Failure::Step("put resolv.conf", errno))
    };
    match enter() {
        Ok(()) => Failure::Io("run the program", Command::new(program).args(arguments).exec()),
        Err(failure) => failure,
    }
}
