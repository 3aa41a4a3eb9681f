//! Signals as descriptors, for an event loop that is PID 1.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitIdOptions};

use crate::clone::last_errno;

/// SIGCHLD as a descriptor. While it is alive SIGCHLD is blocked; every other signal keeps its default, so that the
/// kernel drops whatever the guest sends to PID 1.
#[derive(Debug)]
pub struct ChildSignals(OwnedFd);

impl ChildSignals {
    pub fn open() -> Result<Self, Errno> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set it is given room for.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialized by the call above.
        let mut set = unsafe { set.assume_init() };
        // SAFETY: the set is initialized and SIGCHLD is a valid signal number.
        unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
        // SAFETY: reads the initialized set; a null pointer asks for no old mask.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
            return Err(last_errno());
        }
        // SAFETY: -1 asks for a new descriptor; the set is initialized.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: signalfd has returned a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Forgets what is pending; one SIGCHLD may stand for many children, so the caller reaps until none is left.
    pub fn clear(&self) {
        let mut buffer = [0; size_of::<libc::signalfd_siginfo>() * 8];
        while rustix::io::read(&self.0, &mut buffer).is_ok() {}
    }
}

impl AsFd for ChildSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
}

/// Looks at one child that has ended, without reaping it: its pid stays taken.
pub fn peek_ended() -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match rustix::process::waitid(rustix::process::WaitId::All, options) {
            Err(Errno::INTR) => {}
            Ok(Some(_)) => return raw_peek(),
            _ => return None,
        }
    }
}

/// `WaitIdStatus` has no pid, so the number is asked for again; nobody else in this process waits in between.
fn raw_peek() -> Option<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: waitid writes at most one siginfo_t to the room it is given.
    let result = unsafe {
        libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
    };
    // SAFETY: zeroed memory is a valid siginfo_t, and waitid has filled it in where it found a child.
    let info = unsafe { info.assume_init() };
    // SAFETY: after a successful waitid the siginfo_t is of the SIGCHLD kind, which has a pid.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid > 0).then_some(pid)
}

/// Reaps one ended child.
pub fn reap(pid: i32) -> Option<Ended> {
    let pid = Pid::from_raw(pid)?;
    loop {
        match rustix::process::waitid(
            rustix::process::WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Err(Errno::INTR) => {}
            Ok(Some(status)) => {
                return Some(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Exited(code),
                    (None, Some(signal)) => Ended::Signaled(signal),
                    (None, None) => Ended::Signaled(libc::SIGKILL),
                });
            }
            _ => return None,
        }
    }
}

/// Sends a signal to one process, which must not have been reaped by the caller. `ESRCH` is no error: the process is
/// gone, which is what every sender wants to hear.
pub fn send(pid: i32, signal: i32) -> Result<(), Errno> {
    deliver(signal, |signal| match Pid::from_raw(pid) {
        Some(pid) => rustix::process::kill_process(pid, signal),
        None => Err(Errno::SRCH),
    })
}

/// Sends a signal to a process group.
pub fn send_group(pgid: i32, signal: i32) -> Result<(), Errno> {
    deliver(signal, |signal| match Pid::from_raw(pgid) {
        Some(pgid) => rustix::process::kill_process_group(pgid, signal),
        None => Err(Errno::SRCH),
    })
}

/// Sends a signal to every process of the PID namespace but its PID 1, the caller.
pub fn send_all(signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes integers; from PID 1 of a namespace, -1 names that namespace's other processes.
    let result = unsafe { libc::kill(-1, signal) };
    match if result == 0 { Ok(()) } else { Err(last_errno()) } {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

fn deliver(signal: i32, call: impl FnOnce(Signal) -> Result<(), Errno>) -> Result<(), Errno> {
    let signal = Signal::from_named_raw(signal).ok_or(Errno::INVAL)?;
    match call(signal) {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// The process dies when the thread that made it does. A change of credentials takes this back, so it comes last.
/// `ESRCH` where that thread's process has died meanwhile; whoever may have lost it before has to ask in its own way.
pub fn die_with_parent() -> Result<(), Errno> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == parent { Ok(()) } else { Err(Errno::SRCH) }
}

/// Lets go of signals that whoever started this process had it ignore (nohup, a shell's background jobs): exec keeps
/// ignored signals ignored, and programs that find them so leave them so. SIGPIPE stays as the runtime has set it.
pub fn stop_ignoring() {
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| *signal != libc::SIGPIPE) {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: a null new action only asks; the old one is written to a place of its own type and size.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
        // The C library keeps two real-time signals for itself and refuses to speak of them.
        if asked != 0 {
            continue;
        }
        // SAFETY: the call succeeded, so it has written the whole structure.
        let action = unsafe { action.assume_init() };
        if action.sa_sigaction == libc::SIG_IGN {
            // SAFETY: SIG_DFL is no function, so no code of ours runs at a signal because of this call.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Reaps one child, waiting for its end.
pub fn reap_waiting(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    while let Err(Errno::INTR) =
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), WaitIdOptions::EXITED)
    {}
}

/// Whether the process has any child, ended or not.
pub fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(rustix::process::waitid(rustix::process::WaitId::All, options), Err(Errno::CHILD))
}

#[cfg(test)]
mod tests {
    use super::stop_ignoring;

    fn disposition(signal: i32) -> libc::sighandler_t {
        // SAFETY: sigaction is a plain C structure of integers and pointers, for which zero is a value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: a null new action only asks; the old one is written to a place of its own type and size.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
        assert_eq!(asked, 0);
        action.sa_sigaction
    }

    #[test]
    fn ignored_signals_are_default_again_and_the_runtimes_own_choice_stays() {
        let pipe = disposition(libc::SIGPIPE);
        // SAFETY: SIG_IGN is no function; no other test of this crate sends or awaits SIGUSR2.
        unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
        stop_ignoring();
        assert_eq!(disposition(libc::SIGUSR2), libc::SIG_DFL);
        assert_eq!(disposition(libc::SIGPIPE), pipe);
    }
}
