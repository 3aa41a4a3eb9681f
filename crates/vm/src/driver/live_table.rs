//! The processes of a VM that were started and have not been reaped.
//!
//! ```text
//! spawned ──► Starting ──ExecDone ok──► Running ──Exited──► (records)
//!                 │ └────ExecDone err──► Failed ──Exited──► forgotten
//!             patience ends
//!                 ▼
//!               Early ───ExecDone ok──► Running
//!                 └──────ExecDone err──► Unrun ──Exited──► (records), with 127
//! ```
//! The handle is given out at Running: before, nobody knows whether there is a program at all. Who can't wait for that gets
//! it at Early.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use agentos_guest_protocol::init::{Failure, Response};
use agentos_guest_protocol::launcher::Cgroups;
use agentos_guest_protocol::process::{SpawnFailure, SpawnStep, Status, Stdio};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::command::{Answer, ProtocolError};
use crate::path::lossy;
use crate::pipe;
use crate::process::live::{KillGuard, Kind, LiveProcess, Running, SpawnPlan};
use crate::process::prepare;
use crate::process::records::Now;
use crate::process::{Exit, SpawnError};
use crate::pump::{self, Pipes, Streams};
use crate::stdin::StdinQueue;
use crate::sync::lock;
use crate::vm::{GoneReason, Shared, VmState};

const SIGKILL: i32 = 9;

/// What shells show for a program that can't be run.
const NOT_RUN: i32 = 127;

#[derive(Debug)]
pub(crate) struct LiveTable {
    shared: Arc<Shared>,
    live: HashMap<i32, Entry>,
    timeouts: BTreeSet<(Instant, i32)>,
    /// When processes are given out that don't run yet.
    patience: BTreeSet<(Instant, i32)>,
    oom: OomWatch,
}

#[derive(Debug)]
struct Entry {
    process: Arc<LiveProcess>,
    stage: Stage,
    /// None where it has none, or where it has passed.
    deadline: Option<Instant>,
    timed_out: bool,
    /// While somebody waits, but not for ever.
    patient_until: Option<Instant>,
    /// Somebody outside of the VM had it killed.
    killed: bool,
    oom_kills_before: u64,
}

/// A spawn that init was asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    plan: Box<SpawnPlan>,
    started: Started,
    /// Read before init is asked: what it starts may use up the memory before its answer is here.
    oom_kills_before: u64,
}

#[derive(Debug)]
enum Stage {
    Starting {
        plan: Box<SpawnPlan>,
        started: Started,
        stdio: Descriptors,
    },
    /// Given out before its program runs. Its descriptors wait: what stands in them until then is nothing.
    Early {
        plan: Box<SpawnPlan>,
        stdio: Descriptors,
    },
    Running,
    /// Was given out, and its program could not be run.
    Unrun,
    Failed,
}

type Started = oneshot::Sender<Result<Running, SpawnError>>;

/// What came with Spawned, registered with the runtime.
#[derive(Debug)]
enum Descriptors {
    Pipes(Pipes),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl LiveTable {
    pub(crate) fn new(shared: Arc<Shared>, cgroups: Arc<OnceLock<Cgroups>>) -> Self {
        let oom = OomWatch { cgroups, accounted: 0 };
        let (timeouts, patience) = (BTreeSet::new(), BTreeSet::new());
        Self { shared, live: HashMap::new(), timeouts, patience, oom }
    }

    /// To be called before init is asked to start it.
    pub(crate) fn wanted(&self, plan: Box<SpawnPlan>, started: Started) -> Wanted {
        Wanted { plan, started, oom_kills_before: self.oom.kills() }
    }

    /// Init's answer to a spawn. Gives back a process that exists but can't be used, to be killed.
    pub(crate) fn spawned(
        &mut self,
        wanted: Wanted,
        answer: Result<Answer, Failure>,
    ) -> Result<Option<Arc<LiveProcess>>, ProtocolError> {
        let Wanted { plan, started, oom_kills_before } = wanted;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                drop(started.send(Err(SpawnError::of(failure, prepare::object(&plan.request)))));
                return Ok(None);
            }
        };
        let pid = self.new_pid(&answer.response)?;
        check_descriptors(plan.request.stdio, &answer.descriptors)?;
        let stdio = match register(plan.request.stdio, answer.descriptors) {
            Ok(stdio) => stdio,
            Err(errno) => {
                let wanted = Wanted { plan, started, oom_kills_before };
                return self.spawned_in_vain(wanted, answer.response, errno).map(Some);
            }
        };
        let process = Arc::new(LiveProcess::new(pid, &plan, streams(&plan), Now::read().epoch_ms));
        // From the fork on, not from exec: the guest may stop the process in between.
        let deadline = plan.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.timeouts.extend(deadline.map(|deadline| (deadline, pid)));
        let patient_until = plan.patience.and_then(|patience| Instant::now().checked_add(patience));
        self.patience.extend(patient_until.map(|until| (until, pid)));
        let stage = Stage::Starting { plan, started, stdio };
        let entry = Entry { deadline, patient_until, ..Entry::new(process, stage, oom_kills_before) };
        self.live.insert(pid, entry);
        Ok(None)
    }

    /// A process that exists, but whose descriptors can't be used: its caller is told, and it is to be killed.
    pub(crate) fn spawned_in_vain(
        &mut self,
        wanted: Wanted,
        response: Response,
        errno: Errno,
    ) -> Result<Arc<LiveProcess>, ProtocolError> {
        let Wanted { plan, started, oom_kills_before } = wanted;
        let pid = self.new_pid(&response)?;
        let object = prepare::object(&plan.request);
        let errno = errno.raw_os_error();
        drop(started.send(Err(SpawnError::Failed { step: SpawnStep::Stdio, errno, object })));
        let process = Arc::new(LiveProcess::new(pid, &plan, Streams::default(), Now::read().epoch_ms));
        self.live.insert(pid, Entry::new(Arc::clone(&process), Stage::Failed, oom_kills_before));
        Ok(process)
    }

    fn new_pid(&self, response: &Response) -> Result<i32, ProtocolError> {
        let &Response::Spawned { pid } = response else {
            return Err(ProtocolError::WrongAnswer("spawn"));
        };
        let taken = self.live.get(&pid).is_some_and(|entry| !matches!(entry.stage, Stage::Failed));
        if pid <= 1 || taken { Err(ProtocolError::ProcessId(pid)) } else { Ok(pid) }
    }

    /// The program runs, or could not be run.
    pub(crate) fn exec_done(
        &mut self,
        pid: i32,
        result: Result<(), SpawnFailure>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), ProtocolError> {
        let entry = self.live.get_mut(&pid).ok_or(ProtocolError::UnknownProcess(pid))?;
        if let Some(until) = entry.patient_until.take() {
            self.patience.remove(&(until, pid));
        }
        let process = Arc::clone(&entry.process);
        match (std::mem::replace(&mut entry.stage, Stage::Failed), result) {
            (Stage::Starting { started, stdio, .. }, Ok(())) => {
                entry.stage = Stage::Running;
                process.set_executed();
                let pipes = start_pump(&process, stdio, tasks);
                hand_over(&self.shared, process, pipes, started);
            }
            (Stage::Starting { plan, started, .. }, Err(failure)) => {
                drop(started.send(Err(SpawnError::failed(failure, &plan.request))));
            }
            (Stage::Early { stdio, .. }, Ok(())) => {
                entry.stage = Stage::Running;
                process.set_executed();
                // One of exec would have its pipes read by its caller, and is never given out early.
                start_pump(&process, stdio, tasks);
            }
            (Stage::Early { plan, .. }, Err(failure)) => {
                entry.stage = Stage::Unrun;
                let reason = SpawnError::failed(failure, &plan.request);
                process.streams.stderr.push(format!("{reason}\n").as_bytes());
                process.streams.finish();
            }
            // Init had killed it for us before it got that far.
            (Stage::Failed, _) => {}
            (Stage::Running | Stage::Unrun, _) => {
                return Err(ProtocolError::Unexpected("a second ExecDone"));
            }
        }
        Ok(())
    }

    /// Gives out the processes that their callers won't wait for any longer.
    pub(crate) fn give_out_early(&mut self, now: Instant) {
        while let Some(&(until, pid)) = self.patience.first().filter(|(until, _)| *until <= now) {
            self.patience.remove(&(until, pid));
            let Some(entry) = self.live.get_mut(&pid) else { continue };
            entry.patient_until = None;
            match std::mem::replace(&mut entry.stage, Stage::Failed) {
                Stage::Starting { plan, started, stdio } => {
                    entry.stage = Stage::Early { plan, stdio };
                    hand_over(&self.shared, Arc::clone(&entry.process), None, started);
                }
                other => entry.stage = other,
            }
        }
    }

    pub(crate) fn exited(&mut self, pid: i32, status: Status) -> Result<(), ProtocolError> {
        let entry = self.live.remove(&pid).ok_or(ProtocolError::UnknownProcess(pid))?;
        if let Some(deadline) = entry.deadline {
            self.timeouts.remove(&(deadline, pid));
        }
        match entry.stage {
            Stage::Starting { .. } | Stage::Early { .. } => {
                return Err(ProtocolError::Unexpected("Exited before ExecDone"));
            }
            Stage::Failed => return Ok(()),
            Stage::Running | Stage::Unrun => {}
        }
        let exit = match entry.stage {
            // Also where init had to kill it.
            Stage::Unrun => Exit::Exited(NOT_RUN),
            _ => self.judge(status, &entry),
        };
        entry.process.set_exit(exit.clone());
        lock(&self.shared.records).exited(&entry.process, exit, Now::read());
        Ok(())
    }

    /// What a status means: the kernel says "killed" for three different stories.
    fn judge(&mut self, status: Status, entry: &Entry) -> Exit {
        let killed = match status {
            Status::Signaled(SIGKILL) => true,
            // The shell of an exec whose last command was killed says it this way.
            Status::Exited(code) => code == 128 + SIGKILL && entry.process.kind == Kind::Exec,
            Status::Signaled(_) => false,
        };
        match status {
            Status::Signaled(SIGKILL) if entry.timed_out => Exit::TimedOut,
            _ if killed && !entry.killed && self.oom.explains_one_since(entry.oom_kills_before) => {
                Exit::OutOfMemory
            }
            Status::Signaled(signal) => Exit::Signaled(signal),
            Status::Exited(code) => Exit::Exited(code),
        }
    }

    /// The next SIGKILL it dies of is ours.
    pub(crate) fn set_killed(&mut self, process: &Arc<LiveProcess>) {
        if let Some(entry) = self.live.get_mut(&process.pid)
            && Arc::ptr_eq(&entry.process, process)
        {
            entry.killed = true;
        }
    }

    pub(crate) fn is_alive(&self, process: &Arc<LiveProcess>) -> bool {
        self.live.get(&process.pid).is_some_and(|entry| Arc::ptr_eq(&entry.process, process))
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timeouts.first().into_iter().chain(self.patience.first()).map(|&(at, _)| at).min()
    }

    /// Marks and gives out the processes whose time is up.
    pub(crate) fn take_timed_out(&mut self, now: Instant) -> Vec<Arc<LiveProcess>> {
        let mut late = Vec::new();
        while let Some(&(deadline, pid)) = self.timeouts.first().filter(|(deadline, _)| *deadline <= now) {
            self.timeouts.remove(&(deadline, pid));
            if let Some(entry) = self.live.get_mut(&pid) {
                entry.deadline = None;
                entry.timed_out = true;
                late.push(Arc::clone(&entry.process));
            }
        }
        late
    }

    /// The VM is being disposed: whoever waits for a process is told so, now. The processes themselves still have
    /// their grace, and their output is still read.
    pub(crate) fn abandon(&mut self) {
        let reason = match &*self.shared.state.borrow() {
            VmState::Failed(reason) => reason.clone(),
            VmState::Running | VmState::Disposing | VmState::Disposed => GoneReason::Disposed,
        };
        let mut records = lock(&self.shared.records);
        for entry in self.live.values_mut() {
            match std::mem::replace(&mut entry.stage, Stage::Failed) {
                // Dropping what a caller waits for makes it look at the VM's state.
                Stage::Starting { .. } | Stage::Failed => {}
                stage @ (Stage::Early { .. } | Stage::Running | Stage::Unrun) => {
                    entry.process.set_exit(Exit::VmGone(reason.clone()));
                    records.exited(&entry.process, Exit::VmGone(reason.clone()), Now::read());
                    if let Stage::Early { .. } = stage {
                        // Nobody carries its output who would end it.
                        entry.process.streams.finish();
                    }
                }
            }
        }
        drop(records);
        self.timeouts.clear();
        self.patience.clear();
    }

    /// The VM is gone, and every process with it.
    pub(crate) fn end(&mut self) {
        self.abandon();
        self.live.clear();
    }
}

impl Entry {
    fn new(process: Arc<LiveProcess>, stage: Stage, oom_kills_before: u64) -> Self {
        let (deadline, patient_until) = (None, None);
        Self { process, stage, deadline, timed_out: false, patient_until, killed: false, oom_kills_before }
    }
}

impl Drop for LiveTable {
    /// Also after a panic of the driver: nobody may wait for an exit that never comes.
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes a process known and gives it to who asked for it.
fn hand_over(shared: &Arc<Shared>, process: Arc<LiveProcess>, pipes: Option<Pipes>, started: Started) {
    lock(&shared.records).started(&process);
    let guard = KillGuard::new(shared, &process);
    // Where nobody waits any more, the guard in what comes back kills the process.
    drop(started.send(Ok(Running { process, pipes, guard })));
}

fn streams(plan: &SpawnPlan) -> Streams {
    let stdin = match (plan.request.stdio, &plan.input) {
        (Stdio::Pipes { stdin: false }, _) => None,
        (_, Some(bytes)) => Some(StdinQueue::holding(bytes)),
        (_, None) => Some(StdinQueue::default()),
    };
    Streams { stdin: stdin.map(Arc::new), ..Streams::default() }
}

/// A hostile init could pass anything; only what can be read and written without blocking a thread is taken.
fn check_descriptors(stdio: Stdio, descriptors: &[OwnedFd]) -> Result<(), ProtocolError> {
    let (expected, kind, what) = match stdio {
        Stdio::Pipes { stdin } => (2 + usize::from(stdin), pipe::Kind::Pipe, "a process's pipe"),
        Stdio::Terminal { .. } => (1, pipe::Kind::Terminal, "a terminal"),
    };
    let found = descriptors.len();
    if found != expected {
        return Err(ProtocolError::Descriptors { expected, found });
    }
    let fits = |descriptor: &OwnedFd| pipe::kind(descriptor.as_fd()) == Ok(kind);
    if descriptors.iter().all(fits) { Ok(()) } else { Err(ProtocolError::DescriptorKind(what)) }
}

/// The number and kind of the descriptors is checked.
fn register(stdio: Stdio, descriptors: Vec<OwnedFd>) -> Result<Descriptors, Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut descriptors = descriptors.into_iter();
    let mut next = |interest| {
        let descriptor = descriptors.next().ok_or(Errno::BADF)?;
        pipe::register(descriptor, interest).map_err(errno)
    };
    match stdio {
        Stdio::Pipes { stdin } => {
            let stdin = if stdin { Some(next(Interest::WRITABLE)?) } else { None };
            let (stdout, stderr) = (next(Interest::READABLE)?, next(Interest::READABLE)?);
            Ok(Descriptors::Pipes(Pipes { stdin, stdout, stderr }))
        }
        Stdio::Terminal { .. } => {
            Ok(Descriptors::Terminal(Arc::new(next(Interest::READABLE | Interest::WRITABLE)?)))
        }
    }
}

/// Gives the descriptors to a task, or to the caller where it reads them itself.
fn start_pump(process: &Arc<LiveProcess>, stdio: Descriptors, tasks: &mut JoinSet<()>) -> Option<Pipes> {
    let streams = process.streams.clone();
    match stdio {
        Descriptors::Pipes(pipes) if process.kind == Kind::Exec => return Some(pipes),
        Descriptors::Pipes(pipes) => tasks.spawn(pump::pump_pipes(pipes, streams)),
        Descriptors::Terminal(master) => {
            *lock(&process.terminal) = Some(Arc::clone(&master));
            tasks.spawn(pump::pump_terminal(master, streams, process.watch_exit()))
        }
    };
    None
}

/// Tells the kernel's killing for want of memory from anybody else's.
///
/// The kernel counts such kills per control group, before it sends the signal, and names the victims in its log
/// alone. So a process is taken for one where a kill fell into its life that no other process's end was put down to.
/// That errs where the victim was none of ours (a grandchild) and the guest then kills one of ours itself.
#[derive(Debug)]
struct OomWatch {
    cgroups: Arc<OnceLock<Cgroups>>,
    /// Of the kernel's count, what is put down to a process or was before all that live.
    accounted: u64,
}

impl OomWatch {
    /// How often the kernel has killed in this VM; 0 where it doesn't tell.
    fn kills(&self) -> u64 {
        let events = self.cgroups.get().and_then(|cgroups| cgroups.oom_events.as_ref());
        let Some(path) = events else { return 0 };
        // A file of cgroupfs: a few lines, made by the kernel while we read. The path is the launcher's.
        std::fs::read_to_string(&*lossy(path)).map_or(0, |text| oom_kills(&text))
    }

    /// Puts one process's end down to a kill after the first `before`, if there is one left.
    fn explains_one_since(&mut self, before: u64) -> bool {
        let accounted = self.accounted.max(before);
        let explained = self.kills() > accounted;
        if explained {
            self.accounted = accounted + 1;
        }
        explained
    }
}

fn oom_kills(events: &str) -> u64 {
    let count = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    events.lines().find_map(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_counted_in_both_versions_of_the_file() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), 7);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn each_kill_of_the_kernel_explains_one_end_in_its_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cgroups = Arc::<OnceLock<Cgroups>>::default();
        let path = file.path().to_str().unwrap().as_bytes().to_vec();
        cgroups.set(Cgroups { oom_events: Some(path.into()) }).unwrap();
        let count = |kills: u64| std::fs::write(file.path(), format!("oom_kill {kills}\n")).unwrap();
        let mut watch = OomWatch { cgroups, accounted: 0 };
        count(0);
        assert!(!watch.explains_one_since(0), "nothing was killed");
        count(2);
        assert!(watch.explains_one_since(0) && watch.explains_one_since(0), "two were killed at once");
        assert!(!watch.explains_one_since(0), "the third was killed by somebody else");
        count(3);
        assert!(!watch.explains_one_since(watch.kills()), "the kill was before its life");
        assert!(watch.explains_one_since(2));
    }
}
