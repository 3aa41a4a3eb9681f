//! Labels on process trees: what a labelled process starts carries its label, whatever becomes of parents, sessions and
//! groups, so that the tree can be found and ended as a whole.
//!
//! The kernel has no such thing under this name, but a hard resource limit behaves like one: every fork inherits it,
//! exec keeps it, and nobody raises it without CAP_SYS_RESOURCE, which no guest has. RLIMIT_RTTIME is the one that means
//! something to realtime scheduling alone, and not at the huge values used here. That nobody lowers it is seen to by the
//! guest's seccomp program.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

use crate::clone::last_errno;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label(u64);

impl Label {
    /// One of many. Labels count down from the caller's own limit, which its children can't exceed; None where that
    /// leaves no room.
    pub fn nth(number: u32) -> Option<Self> {
        let unlabelled = rustix::process::getrlimit(Resource::Rttime).maximum.unwrap_or(u64::MAX);
        unlabelled.checked_sub(u64::from(number) + 1).map(Self)
    }

    /// Labels the calling process for good.
    pub(crate) fn put_on(self) -> Result<(), Errno> {
        rustix::process::setrlimit(Resource::Rttime, Rlimit { current: Some(self.0), maximum: Some(self.0) })
    }

    /// Sends SIGKILL to every process of this PID namespace with the label. True when none is left, not even one that
    /// its parent has yet to reap; what can't be looked at counts as left. To be called by who may look at everybody, as
    /// PID 1 may with all capabilities over its VM's user namespace: nobody there is kept from its sight for good.
    ///
    /// A tree that forks meanwhile may get a process past the look; so the caller looks again, each time one has ended,
    /// until there is none.
    pub fn kill_all(self) -> bool {
        let Ok(entries) = fs::read_dir("/proc") else { return false };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // Not `all`: everyone is to be killed, not just the first.
        pids.filter_map(Pid::from_raw).filter(|pid| self.kill(*pid).unwrap_or(true)).count() == 0
    }

    /// Kills one process if it has the label, and says whether it has.
    fn kill(self, pid: Pid) -> Result<bool, Errno> {
        // Opened before the label is read: should the number pass to another process in between, the signal goes to the
        // one that is gone.
        let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(false),
            process => process?,
        };
        match hard_limit(pid) {
            Ok(limit) if limit == self.0 => {}
            Ok(_) | Err(Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        match rustix::process::pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

fn hard_limit(pid: Pid) -> Result<u64, Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a null new limit changes nothing; the old one is written to a live local of the structure's own type.
    let result = unsafe {
        libc::prlimit64(pid.as_raw_nonzero().get(), libc::RLIMIT_RTTIME, std::ptr::null(), &raw mut limit)
    };
    if result == 0 { Ok(limit.rlim_max) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use super::*;

    fn sleeper(label: Option<Label>, script: &str) -> std::process::Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        // SAFETY: setrlimit is a plain system call on values that were copied into the closure; it takes no lock and no
        // memory.
        unsafe { command.pre_exec(move || Ok(label.map_or(Ok(()), Label::put_on)?)) };
        command.spawn().unwrap()
    }

    #[test]
    fn a_labelled_tree_is_found_whole_and_nobody_else() {
        let label = Label::nth(1000).unwrap();
        let mut labelled = sleeper(Some(label), "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000");
        let mut other = sleeper(Some(Label::nth(1001).unwrap()), "exec sleep 1000");
        let mut plain = sleeper(None, "exec sleep 1000");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        // Who may not look at other users' processes is never told that none is left, but it may look at its own.
        let left = || {
            let entries = fs::read_dir("/proc").unwrap().flatten();
            let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
            pids.filter(|pid| hard_limit(*pid) == Ok(label.0)).count()
        };
        while !label.kill_all() && (rustix::process::geteuid().is_root() || left() > 0) {
            // What its parent leaves behind is init's to reap; the first is ours.
            let _ = labelled.try_wait();
            assert!(std::time::Instant::now() < deadline, "labelled processes are left");
            std::thread::yield_now();
        }
        assert_eq!(labelled.wait().unwrap().signal(), Some(libc::SIGKILL));
        for unlabelled in [&mut other, &mut plain] {
            assert_eq!(unlabelled.try_wait().unwrap(), None);
            unlabelled.kill().unwrap();
            unlabelled.wait().unwrap();
        }
    }
}
