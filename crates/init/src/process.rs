//! Processes of the VM: PID 1 starts them for the sidecar, reaps every orphan, and lists what is there.
//!
//! ```text
//! spawned ──► started ──► ended ──► reaped ──► told
//!                            └ supervised: not told before everything it had started is gone, too, or for
//!                              [`PATIENCE`] can't be ended
//! ```
//! What a supervised program starts carries its label, so `setsid` and double forks don't lead away from it.

mod list;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agentos_guest_protocol::process::{SpawnFailure, SpawnRequest, SpawnStep, Status, Stdio};
use agentos_linux::label::Label;
use agentos_linux::signal::{self, Ended};
use agentos_linux::spawn::{self, Identity, Program, Report, Step};
use agentos_linux::{Errno, terminal};
use rustix::pipe::PipeFlags;

use crate::event_loop::Guest;
pub(crate) use list::list;

/// The processes the sidecar asked for whose end it has not been told.
#[derive(Debug, Default)]
pub(crate) struct Children {
    by_pid: HashMap<i32, Child>,
    /// Supervised programs that are reaped while something they had started is left.
    leaving: Vec<Leaving>,
    last_look: Option<Instant>,
    /// When they are looked at again, should nothing else give reason to.
    next_look: Option<Instant>,
    last_label: u32,
}

#[derive(Debug)]
pub(crate) struct Child {
    /// Open until exec has succeeded or failed.
    pub report: Option<OwnedFd>,
    started: Instant,
    terminal: bool,
    /// Of what is supervised.
    label: Option<Label>,
}

#[derive(Debug)]
struct Leaving {
    pid: i32,
    label: Label,
    /// Taken when it is told.
    status: Option<Status>,
    /// When it is told at the latest; known from the first look on.
    tell_at: Option<Instant>,
}

/// A process that was just forked, and the descriptors that the sidecar gets.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub pid: i32,
    pub descriptors: Vec<OwnedFd>,
}

impl Children {
    /// Forks a process on its way to exec.
    pub(crate) fn spawn(&mut self, guest: &Guest, request: &SpawnRequest) -> Result<Spawned, SpawnFailure> {
        let at = |step| move |errno: Errno| SpawnFailure { step, errno: errno.raw_os_error() };
        let strings = Strings::new(request).map_err(at(SpawnStep::Setup))?;
        let stdio = make_stdio(request.stdio).map_err(at(SpawnStep::Stdio))?;
        let label = self.new_label(request.supervised).map_err(at(SpawnStep::Setup))?;
        let program = Program {
            candidates: &strings.candidates,
            argv: &strings.argv,
            env: &strings.env,
            cwd: &strings.cwd,
            stdio: stdio.guest_side(guest.null.as_fd()),
            terminal: matches!(request.stdio, Stdio::Terminal { .. }),
            identity: Identity {
                uid: guest.user,
                gid: guest.user,
                drop_groups: guest.drop_groups,
                capabilities: guest.capabilities,
            },
            open_files: guest.open_files,
            label,
        };
        let child = guest.with_guest_oom_score(|| spawn::spawn(&program)).map_err(at(SpawnStep::Fork))?;
        let record =
            Child { report: Some(child.report), started: Instant::now(), terminal: program.terminal, label };
        self.by_pid.insert(child.pid, record);
        Ok(Spawned { pid: child.pid, descriptors: stdio.into_host_side() })
    }

    fn new_label(&mut self, supervised: bool) -> Result<Option<Label>, Errno> {
        if !supervised {
            return Ok(None);
        }
        self.last_label = self.last_label.wrapping_add(1);
        Label::nth(self.last_label).map(Some).ok_or(Errno::AGAIN)
    }

    /// The report pipe of a process, if it is still open.
    pub(crate) fn report(&self, pid: i32) -> Option<BorrowedFd<'_>> {
        self.by_pid.get(&pid)?.report.as_ref().map(AsFd::as_fd)
    }

    /// Looks whether exec is done. The report pipe comes back with the answer: it is done with.
    pub(crate) fn exec_done(&mut self, pid: i32) -> Option<(Result<(), SpawnFailure>, OwnedFd)> {
        let child = self.by_pid.get_mut(&pid)?;
        let result = match spawn::read_report(child.report.as_ref()?.as_fd()) {
            Report::Pending => return None,
            Report::Executed => Ok(()),
            Report::Failed(step, errno) => {
                let step = match step {
                    Step::Setup => SpawnStep::Setup,
                    Step::Cwd => SpawnStep::Cwd,
                    Step::Exec => SpawnStep::Exec,
                };
                Err(SpawnFailure { step, errno: errno.raw_os_error() })
            }
        };
        Some((result, child.report.take()?))
    }

    /// When the next exec is overdue, if one is pending.
    pub(crate) fn next_overdue(&self) -> Option<Instant> {
        let pending = self.by_pid.values().filter(|child| child.report.is_some());
        pending.map(|child| child.started + EXEC_TIMEOUT).min()
    }

    /// Gives up the processes whose exec is overdue: they are killed, and their report pipes come back.
    pub(crate) fn give_up_overdue(&mut self, now: Instant) -> Vec<(i32, OwnedFd)> {
        let mut overdue = Vec::new();
        for (pid, child) in &mut self.by_pid {
            if child.report.is_some() && child.started + EXEC_TIMEOUT <= now {
                // Stopped or not, nobody survives this one; what is gone already needs no signal.
                let _ = signal::send(*pid, SIGKILL);
                overdue.extend(child.report.take().map(|report| (*pid, report)));
            }
        }
        overdue
    }

    /// Reaps one process, ours or an orphan. Its status is for the sidecar, unless [`Self::tend`] will tell it.
    pub(crate) fn reap(&mut self, pid: i32) -> Option<Status> {
        let ended = signal::reap(pid)?;
        let child = self.by_pid.remove(&pid)?;
        let status = match ended {
            Ended::Exited(code) => Status::Exited(code),
            Ended::Signaled(signal) => Status::Signaled(signal),
        };
        match child.label {
            None => Some(status),
            Some(label) => {
                self.leaving.push(Leaving { pid, label, status: Some(status), tell_at: None });
                None
            }
        }
    }

    /// Kills what supervised programs have left behind. Gives back those that are gone with everything they had started,
    /// and those that are not to be waited for any longer, what they left behind being looked after all the same.
    /// To be called whenever something was reaped: with its parent, a process that was just being forked comes to light.
    pub(crate) fn tend(&mut self, now: Instant) -> Vec<(i32, Status)> {
        if self.leaving.is_empty() {
            return Vec::new();
        }
        // A tree that ends one by one would have all of /proc read as often.
        if let Some(early) = self.last_look.map(|last| last + LOOK_PAUSE).filter(|again| now < *again) {
            self.next_look = Some(early);
            return Vec::new();
        }
        self.last_look = Some(now);
        let mut told = Vec::new();
        self.leaving.retain_mut(|leaving| {
            let gone = leaving.label.kill_all();
            let tell_at = *leaving.tell_at.get_or_insert(now + PATIENCE);
            if gone || tell_at <= now {
                told.extend(leaving.status.take().map(|status| (leaving.pid, status)));
            }
            !gone
        });
        self.next_look = (!self.leaving.is_empty()).then_some(now + LOOK_AGAIN);
        told
    }

    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// Kills a supervised program with everything it has started; [`Self::tend`] goes on with it. False where there is no
    /// such program, or nothing is left of it.
    pub(crate) fn kill_supervised(&self, pid: i32) -> Result<bool, Errno> {
        let Some(child) = self.by_pid.get(&pid) else {
            return Ok(self.leaving.iter().any(|leaving| leaving.is_awaited(pid)));
        };
        // The program itself may not have come to its label yet.
        signal::send(pid, SIGKILL)?;
        if let Some(label) = child.label {
            label.kill_all();
        }
        Ok(true)
    }

    /// A program whose pid has passed to a new process while something it had started is left: it is told now, or its
    /// pid would mean two.
    pub(crate) fn forget_namesake(&mut self, pid: i32) -> Option<Status> {
        self.leaving.iter_mut().find(|leaving| leaving.is_awaited(pid))?.status.take()
    }

    /// Not reaped yet: until then its pid is nobody else's, and signals reach whom they are meant for.
    pub(crate) fn is_ours(&self, pid: i32) -> bool {
        self.by_pid.contains_key(&pid)
    }

    pub(crate) fn terminal_leaders(&self) -> Vec<i32> {
        self.by_pid.iter().filter(|(_, child)| child.terminal).map(|(pid, _)| *pid).collect()
    }
}

impl Leaving {
    /// Nobody has been told of its end.
    fn is_awaited(&self, pid: i32) -> bool {
        self.pid == pid && self.status.is_some()
    }
}

/// A process that has not come to its exec by now was stopped on the way: since it has the guest's ids, the guest may
/// send it signals. Or its program lies in a file system that does not answer.
const EXEC_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that can't be killed now, or not be looked at, gives no sign when it can.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Between two looks at all of /proc.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// How long a program's end waits for what it has started. What SIGKILL has not ended by now hangs in the kernel, or is
/// held by who traces it.
const PATIENCE: Duration = Duration::from_secs(3);

const SIGKILL: i32 = 9;

/// The C strings of a request.
struct Strings {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
}

impl Strings {
    fn new(request: &SpawnRequest) -> Result<Self, Errno> {
        let name = request.argv.first().filter(|name| !name.is_empty()).ok_or(Errno::NOENT)?;
        let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::INVAL);
        Ok(Self {
            candidates: candidates(name, &request.env)
                .into_iter()
                .map(|path| c_string(&path))
                .collect::<Result<_, _>>()?,
            argv: request.argv.iter().map(|argument| c_string(argument)).collect::<Result<_, _>>()?,
            env: request.env.iter().map(|entry| c_string(entry)).collect::<Result<_, _>>()?,
            cwd: c_string(&request.cwd)?,
        })
    }
}

/// Where a program may be: a name without a slash is looked for in the PATH of its own environment.
fn candidates(name: &[u8], env: &[agentos_guest_protocol::Bytes]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    path.split(|byte| *byte == b':')
        // An empty entry would mean the current directory; nobody who is asked would want that.
        .filter(|directory| !directory.is_empty())
        .map(|directory| [directory, b"/", name].concat())
        .collect()
}

/// Both sides of a new process's stdio.
enum Ends {
    Pipes { stdin: Option<(OwnedFd, OwnedFd)>, stdout: (OwnedFd, OwnedFd), stderr: (OwnedFd, OwnedFd) },
    Terminal { master: OwnedFd, terminal: OwnedFd },
}

/// Pipes belong to the VM's user, as everything that PID 1 creates: a program may open /dev/stdout again.
fn make_stdio(stdio: Stdio) -> Result<Ends, Errno> {
    match stdio {
        Stdio::Pipes { stdin } => Ok(Ends::Pipes {
            stdin: if stdin { Some(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?) } else { None },
            stdout: rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?,
            stderr: rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?,
        }),
        Stdio::Terminal { cols, rows } => {
            let (master, terminal) = terminal::open(cols, rows)?;
            Ok(Ends::Terminal { master, terminal })
        }
    }
}

impl Ends {
    fn guest_side<'a>(&'a self, null: BorrowedFd<'a>) -> [BorrowedFd<'a>; 3] {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let stdin = stdin.as_ref().map_or(null, |(read, _)| read.as_fd());
                [stdin, stdout.1.as_fd(), stderr.1.as_fd()]
            }
            Self::Terminal { terminal, .. } => [terminal.as_fd(); 3],
        }
    }

    /// What the sidecar gets; the guest's ends close here, so that the sidecar sees their end.
    fn into_host_side(self) -> Vec<OwnedFd> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let mut ends: Vec<OwnedFd> = stdin.into_iter().map(|(_, write)| write).collect();
                ends.extend([stdout.0, stderr.0]);
                ends
            }
            Self::Terminal { master, .. } => vec![master],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentos_guest_protocol::Bytes;

    fn env(path: &str) -> Vec<Bytes> {
        vec![Bytes::from(format!("PATH={path}").into_bytes())]
    }

    #[test]
    fn a_bare_name_is_looked_for_in_the_path_of_the_request() {
        assert_eq!(candidates(b"ls", &env("/a:/b")), vec![b"/a/ls".to_vec(), b"/b/ls".to_vec()]);
        assert_eq!(candidates(b"ls", &env("::/b")), vec![b"/b/ls".to_vec()]);
        assert_eq!(candidates(b"ls", &[]), vec![b"/usr/bin/ls".to_vec(), b"/bin/ls".to_vec()]);
    }

    #[test]
    fn a_name_with_a_slash_is_taken_as_it_is() {
        assert_eq!(candidates(b"./x", &env("/a")), vec![b"./x".to_vec()]);
    }

    /// A program that has been forked and says nothing about its exec, as one does that the guest has stopped.
    fn silent(children: &mut Children, started: Instant) -> (std::process::Child, OwnedFd) {
        let program = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (report, silence) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        let child = Child { report: Some(report), started, terminal: false, label: None };
        children.by_pid.insert(program.id() as i32, child);
        (program, silence)
    }

    #[test]
    fn a_program_that_does_not_come_to_its_exec_is_killed_when_it_is_overdue_and_not_before() {
        use std::os::unix::process::ExitStatusExt;

        let mut children = Children::default();
        let started = Instant::now();
        let (mut program, _silence) = silent(&mut children, started);
        let (mut later, _later_silence) = silent(&mut children, started + Duration::from_secs(1));
        signal::send(program.id() as i32, 19).unwrap();

        let overdue = children.next_overdue().unwrap();
        assert_eq!(overdue, started + EXEC_TIMEOUT);
        assert!(children.exec_done(program.id() as i32).is_none());
        assert!(children.give_up_overdue(overdue - Duration::from_millis(1)).is_empty());
        let given_up: Vec<i32> = children.give_up_overdue(overdue).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(given_up, [program.id() as i32]);
        assert_eq!(program.wait().unwrap().signal(), Some(SIGKILL));
        // It is told once, and the other one still has its time.
        assert!(children.exec_done(program.id() as i32).is_none());
        assert!(children.give_up_overdue(overdue).is_empty());
        assert_eq!(later.try_wait().unwrap(), None);
        later.kill().unwrap();
        later.wait().unwrap();
    }

    /// A child of this test that has the label and that nobody reaps before the test does.
    fn leftover(number: u32) -> (Label, std::process::Child) {
        use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

        let process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let limit = Some(getrlimit(Resource::Rttime).maximum.unwrap_or(u64::MAX) - u64::from(number) - 1);
        let labelled = Rlimit { current: limit, maximum: limit };
        prlimit(Pid::from_raw(process.id() as i32), Resource::Rttime, labelled).unwrap();
        (Label::nth(number).unwrap(), process)
    }

    #[test]
    fn a_program_s_end_is_told_in_time_though_something_it_had_started_does_not_go() {
        use std::os::unix::process::ExitStatusExt;

        let (label, mut leftover) = leftover(2000);
        let mut children = Children::default();
        let status = Status::Exited(3);
        children.leaving.push(Leaving { pid: 4711, label, status: Some(status), tell_at: None });

        let start = Instant::now();
        assert!(children.tend(start).is_empty());
        assert_eq!(children.next_look(), Some(start + LOOK_AGAIN));
        assert!(matches!(children.kill_supervised(4711), Ok(true)));
        // /proc is not read again at once.
        assert!(children.tend(start + Duration::from_millis(1)).is_empty());
        assert_eq!(children.next_look(), Some(start + LOOK_PAUSE));

        assert!(children.tend(start + PATIENCE - Duration::from_millis(1)).is_empty());
        // By the time of a look that comes too early to be one, the program is overdue.
        assert!(children.tend(start + PATIENCE).is_empty());
        let again = children.next_look().unwrap();
        assert_eq!(children.tend(again), [(4711, status)]);

        // Told once, and whoever has its pid from now on is another one; what is left is still looked after.
        assert!(matches!(children.kill_supervised(4711), Ok(false)));
        assert_eq!(children.forget_namesake(4711), None);
        assert_eq!(children.next_look(), Some(again + LOOK_AGAIN));
        assert_eq!(leftover.wait().unwrap().signal(), Some(SIGKILL));
        assert!(children.tend(again + LOOK_AGAIN).is_empty());
        // Who may not look at all processes can't know that none is left.
        if rustix::process::geteuid().is_root() {
            assert_eq!(children.next_look(), None);
        }
    }

    #[test]
    fn a_program_whose_pid_is_given_to_another_one_is_told_first_and_once() {
        let mut children = Children::default();
        let (label, status) = (Label::nth(2001).unwrap(), Status::Signaled(SIGKILL));
        children.leaving.push(Leaving { pid: 4711, label, status: Some(status), tell_at: None });
        assert_eq!(children.forget_namesake(4712), None);
        assert_eq!(children.forget_namesake(4711), Some(status));
        assert_eq!(children.forget_namesake(4711), None);
        assert!(children.tend(Instant::now()).is_empty());
    }
}
