//! The threads that do file calls, and the deadlines that keep hanging mounts from taking init with them.
//!
//! ```text
//! submit ─► at once, where nothing can hang ─► answered
//!        └► queue ─► worker ─► answered, by the worker itself
//!              │         │
//!              │         ├ no heartbeat for a second: slow, another worker may take its place
//!              │         └ none for 30 seconds: answered as timed out; the thread is left where it hangs
//!              └ not begun after 30 seconds: answered as timed out
//! ```
//! At most [`MAX_HEALTHY`] workers do calls that get on, beside at most [`MAX_STUCK`] that don't. A thread that comes
//! back after all is of use again, and what it brings is thrown away.
//!
//! The pool has no clock for its deadlines: the event loop says what time it is, and is told when to look again.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileRequest, FileResponse};
use agentos_guest_protocol::init::{Failure, RequestId};
use rustix::io::Errno;

use super::calls::{FileSystem, Outcome, call_of, path_of};
use super::path::failure;
use super::progress::Progress;
use super::streams::STACK_BYTES;

const MAX_HEALTHY: usize = 4;
const MAX_STUCK: usize = 16;
/// Calls queued or running that nobody has answered; one more is EAGAIN.
const MAX_IN_FLIGHT: usize = 1024;

const SLOW_AFTER: Duration = Duration::from_secs(1);
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// For calls that get on without coming to an end, because the guest undoes what they do.
const ENDLESS_AFTER: Duration = Duration::from_secs(600);

/// How long the end of a VM waits for its temporary files in host directories to be removed.
const REMOVAL_WAIT: Duration = Duration::from_secs(1);

const _: () = assert!(SLOW_AFTER.as_secs() < STUCK_AFTER.as_secs());
const _: () = assert!(STUCK_AFTER.as_secs() < ENDLESS_AFTER.as_secs());

/// What a call has come to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) id: RequestId,
    pub(crate) result: Result<(FileResponse, Option<OwnedFd>), Failure>,
}

/// Tells the sidecar. Called on any thread, and never while the pool's state is locked.
pub(crate) type Answers = Box<dyn Fn(Answer) + Send + Sync>;

/// Does file calls on threads. Belongs to the event loop; nothing of it ever waits for a file system.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    files: FileSystem,
    state: Mutex<State>,
    /// There is a job, or an end.
    work: Condvar,
    answers: Answers,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    workers: BTreeMap<WorkerId, Worker>,
    last_worker: WorkerId,
    idle: usize,
    in_flight: usize,
    closing: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct WorkerId(u64);

pub(super) type Work = Box<dyn FnOnce(&FileSystem, &Progress) -> Result<Outcome, FileFailure> + Send>;

pub(super) struct Job {
    pub(super) id: RequestId,
    pub(super) subject: Subject,
    pub(super) submitted: Instant,
    pub(super) work: Work,
}

/// What a message about a call names.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) call: FileCall,
    pub(super) path: Vec<u8>,
}

#[derive(Debug, Default)]
struct Worker {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    id: RequestId,
    subject: Subject,
    progress: Arc<Progress>,
    began: Instant,
    /// Heartbeats at the last look, and when they last were more than before.
    beats: u64,
    moved: Instant,
    pace: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Steady,
    Slow,
    /// Answered already.
    Stuck,
}

impl Pool {
    pub(crate) fn new(files: FileSystem, answers: Answers) -> Self {
        let shared = Shared { files, state: Mutex::new(State::default()), work: Condvar::new(), answers };
        Self { shared: Arc::new(shared) }
    }

    /// Takes a call on, or does it here and now where that can't hang.
    pub(crate) fn submit(&self, id: RequestId, request: FileRequest, now: Instant) {
        let files = &self.shared.files;
        // A panic is the worker's to report.
        if let Ok(Some(outcome)) = catch_unwind(AssertUnwindSafe(|| files.handle_at_once(&request))) {
            self.shared.answer(id, Ok(outcome));
            return;
        }
        let subject = Subject { call: call_of(&request), path: path_of(&request).to_vec() };
        let work = move |files: &FileSystem, progress: &Progress| files.handle(&request, progress);
        self.submit_work(Job { id, subject, submitted: now, work: Box::new(work) });
    }

    pub(super) fn submit_work(&self, job: Job) {
        let mut state = self.shared.lock();
        let refusal = if state.stuck() >= MAX_STUCK {
            Some(Failure::TooManyStuck)
        } else if state.in_flight >= MAX_IN_FLIGHT {
            Some(job.subject.failed(Errno::AGAIN))
        } else {
            None
        };
        if let Some(failure) = refusal {
            drop(state);
            self.shared.answer(job.id, Err(failure));
            return;
        }
        state.in_flight += 1;
        state.queue.push_back(job);
        let refused = self.shared.staff(&mut state);
        drop(state);
        self.shared.work.notify_one();
        self.shared.refuse(refused);
    }

    /// When [`Pool::expire`] will next have something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let state = self.shared.lock();
        let waiting = !state.queue.is_empty();
        let running = state.running().filter_map(|running| match running.pace {
            Pace::Steady if waiting => Some(running.moved + SLOW_AFTER),
            Pace::Steady | Pace::Slow => Some(running.moved + STUCK_AFTER),
            Pace::Stuck => None,
        });
        running.chain(state.queue.front().map(|job| job.submitted + STUCK_AFTER)).min()
    }

    /// Calls that were answered without their threads having come back.
    #[cfg(test)]
    pub(super) fn stuck(&self) -> usize {
        self.shared.lock().stuck()
    }

    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.shared.lock().workers.len()
    }

    /// Answers what is overdue and finds new hands for what waits.
    pub(crate) fn expire(&self, now: Instant) {
        let mut state = self.shared.lock();
        let mut overdue = Vec::new();
        for running in state.workers.values_mut().filter_map(|worker| worker.running.as_mut()) {
            if running.judge(now) {
                overdue.push((running.id, running.subject.timed_out()));
            }
        }
        while state.queue.front().is_some_and(|job| job.submitted + STUCK_AFTER <= now) {
            overdue.extend(state.queue.pop_front().map(|job| (job.id, job.subject.timed_out())));
        }
        if state.healthy() == 0 && state.stuck() >= MAX_STUCK {
            overdue.extend(state.queue.drain(..).map(|job| (job.id, Failure::TooManyStuck)));
        }
        state.in_flight -= overdue.len();
        overdue.extend(self.shared.staff(&mut state));
        let waiting = !state.queue.is_empty();
        drop(state);
        if waiting {
            self.shared.work.notify_one();
        }
        self.shared.refuse(overdue);
    }
}

impl Drop for Pool {
    /// Removes the temporary files of open writes, on a thread because that may hang as any call. All threads end by
    /// themselves, or with the process.
    fn drop(&mut self) {
        let queue = {
            let mut state = self.shared.lock();
            state.closing = true;
            std::mem::take(&mut state.queue)
        };
        drop(queue);
        self.shared.work.notify_all();
        let shared = Arc::clone(&self.shared);
        let (done, removed) = sync_channel(1);
        let thread = std::thread::Builder::new().name("file-end".to_owned()).stack_size(STACK_BYTES);
        let removal = move || {
            shared.files.abort_writes();
            // Nobody listens any more when it took too long.
            let _ = done.send(());
        };
        if thread.spawn(removal).is_ok() {
            let _ = removed.recv_timeout(REMOVAL_WAIT);
        }
    }
}

impl Shared {
    /// Held for moments only, never over a system call on files, so a worker that hangs doesn't hold it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: RequestId, result: Result<Outcome, Failure>) {
        let result = result.map(|outcome| (outcome.response, outcome.descriptor));
        (self.answers)(Answer { id, result });
    }

    fn refuse(&self, calls: Vec<(RequestId, Failure)>) {
        for (id, failure) in calls {
            self.answer(id, Err(failure));
        }
    }

    /// Starts workers for jobs that no idle worker will take. The calls that nobody can be found for.
    fn staff(self: &Arc<Self>, state: &mut State) -> Vec<(RequestId, Failure)> {
        while state.queue.len() > state.idle + state.starting() && state.may_start() {
            state.last_worker.0 += 1;
            let id = state.last_worker;
            state.workers.insert(id, Worker::default());
            let shared = Arc::clone(self);
            let thread = std::thread::Builder::new().name("file-worker".to_owned()).stack_size(STACK_BYTES);
            if thread.spawn(move || shared.work(id)).is_ok() {
                continue;
            }
            state.workers.remove(&id);
            // The VM is out of processes. With other workers the job waits for one of them.
            if state.healthy() > 0 {
                break;
            }
            state.in_flight -= state.queue.len();
            return state.queue.drain(..).map(|job| (job.id, job.subject.failed(Errno::AGAIN))).collect();
        }
        Vec::new()
    }

    /// A worker's life.
    fn work(&self, me: WorkerId) {
        while let Some((job, progress)) = self.next_job(me) {
            let Job { work, subject, .. } = job;
            let result = catch_unwind(AssertUnwindSafe(|| work(&self.files, &progress)));
            let result = result.unwrap_or_else(|_| Err(failure(Errno::IO, subject.call, &subject.path)));
            if !self.hand_in(me, result) {
                return;
            }
        }
    }

    fn next_job(&self, me: WorkerId) -> Option<(Job, Arc<Progress>)> {
        let mut state = self.lock();
        loop {
            if state.closing {
                state.workers.remove(&me);
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                let progress = Arc::new(Progress::default());
                let now = Instant::now();
                let running = Running {
                    id: job.id,
                    subject: job.subject.clone(),
                    progress: Arc::clone(&progress),
                    began: now,
                    beats: 0,
                    moved: now,
                    pace: Pace::Steady,
                };
                state.workers.insert(me, Worker { running: Some(running) });
                return Some((job, progress));
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Reports a result, unless the call was answered without it. False when this worker is one too many.
    fn hand_in(&self, me: WorkerId, result: Result<Outcome, FileFailure>) -> bool {
        let mut state = self.lock();
        let running = state.workers.get_mut(&me).and_then(|worker| worker.running.take());
        let needed = state.healthy() <= MAX_HEALTHY;
        if !needed {
            state.workers.remove(&me);
        }
        match running {
            Some(running) if running.pace != Pace::Stuck => {
                state.in_flight -= 1;
                drop(state);
                self.answer(running.id, result.map_err(Failure::File));
            }
            _ => {
                drop(state);
                if let Ok(Outcome { response: FileResponse::WriteOpened { ticket }, .. }) = result {
                    self.files.discard(ticket);
                }
            }
        }
        needed
    }
}

impl State {
    fn running(&self) -> impl Iterator<Item = &Running> {
        self.workers.values().filter_map(|worker| worker.running.as_ref())
    }

    fn with_pace(&self, pace: Pace) -> usize {
        self.running().filter(|running| running.pace == pace).count()
    }

    fn stuck(&self) -> usize {
        self.with_pace(Pace::Stuck)
    }

    /// Workers that are idle or get on.
    fn healthy(&self) -> usize {
        self.workers.len() - self.with_pace(Pace::Slow) - self.stuck()
    }

    /// Threads that will look for a job without being woken: new ones, and those that are saying an answer.
    fn starting(&self) -> usize {
        self.workers.len() - self.running().count() - self.idle
    }

    fn may_start(&self) -> bool {
        let healthy = self.healthy();
        healthy < MAX_HEALTHY && self.workers.len() - healthy < MAX_STUCK
    }
}

impl Running {
    /// True when the call is given up now.
    fn judge(&mut self, now: Instant) -> bool {
        if self.pace == Pace::Stuck {
            return false;
        }
        let beats = self.progress.beats();
        if beats != self.beats {
            self.beats = beats;
            self.moved = now;
            self.pace = Pace::Steady;
        }
        let stands_for = now.saturating_duration_since(self.moved);
        if stands_for >= STUCK_AFTER || now.saturating_duration_since(self.began) >= ENDLESS_AFTER {
            self.pace = Pace::Stuck;
            self.progress.abandon();
            return true;
        }
        if stands_for >= SLOW_AFTER {
            self.pace = Pace::Slow;
        }
        false
    }
}

impl Subject {
    fn failed(&self, errno: Errno) -> Failure {
        Failure::File(failure(errno, self.call, &self.path))
    }

    fn timed_out(&self) -> Failure {
        let call = match self.call {
            FileCall::Open => "open",
            FileCall::Read => "read",
            FileCall::Write => "write",
            FileCall::Mkdir => "mkdir",
            FileCall::Scandir => "scandir",
            FileCall::Stat => "stat",
            FileCall::Rename => "rename",
            FileCall::Unlink => "unlink",
            FileCall::Rmdir => "rmdir",
            FileCall::Copy => "copy",
        };
        Failure::TimedOut { call: format!("{call} '{}'", String::from_utf8_lossy(&self.path)) }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("state", &self.shared.state).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("id", &self.id).field("subject", &self.subject).finish_non_exhaustive()
    }
}
