//! What is not a file call and may still hang where a file system does: mounting below a mount whose server is silent,
//! reading the command line of a process that waits for one.
//!
//! Each errand has a thread of its own, and a deadline after which its caller is answered without it. A thread that hangs
//! is left where it is; with [`MAX_ERRANDS`] under way nothing is begun any more.
//!
//! A VM that is out of processes has no thread for an errand either, when the list of them is most wanted. So one thread
//! is there from the start and stands by for this case. While it is away, errands without a thread are refused: the event
//! loop itself runs none.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentos_guest_protocol::init::{Failure, RequestId, Response};
use agentos_linux::Errno;
use rustix::event::{EventfdFlags, eventfd};

use crate::wire::failure;

/// As long as a file call may stand still.
const DEADLINE: Duration = Duration::from_secs(30);

/// Under way or hanging.
const MAX_ERRANDS: usize = 16;

const STACK_BYTES: usize = 256 * 1024;

pub(crate) type Outcome = Result<Response, Failure>;

/// Belongs to the event loop; nothing of it waits for a file system.
#[derive(Debug)]
pub(crate) struct Errands {
    shared: Arc<Shared>,
    /// Those whose caller has no answer, in the order begun, which is that of their deadlines.
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
    /// Threads that have not come back.
    threads: usize,
    standby: Standby,
    stack_bytes: usize,
}

/// The thread for errands that can have none of their own.
#[derive(Debug, Default)]
struct Standby {
    /// None where the VM's user had no thread left when the VM was booted.
    jobs: Option<SyncSender<Job>>,
    /// The errand it is away for.
    away: Option<u64>,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    call: String,
    deadline: Instant,
}

#[derive(Debug)]
struct Shared {
    /// Held for a push or a take.
    finished: Mutex<Vec<(u64, Outcome)>>,
    /// Readable while something is finished and not drained.
    done: OwnedFd,
}

impl Shared {
    fn finished(&self) -> MutexGuard<'_, Vec<(u64, Outcome)>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Errands {
    pub(crate) fn new() -> Result<Self, Errno> {
        let done = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { finished: Mutex::default(), done });
        Ok(Self {
            shared,
            waiting: BTreeMap::new(),
            last: 0,
            threads: 0,
            standby: Standby::default(),
            stack_bytes: STACK_BYTES,
        })
    }

    /// Starts the thread for errands that get none of their own. Before there is a guest to take all threads, but not
    /// before whoever waits for the VM has it.
    pub(crate) fn stand_by(&mut self) {
        self.standby = Standby::start();
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }

    /// Begins an errand; `call` is what a message about it says. What comes back at once is the answer.
    pub(crate) fn begin(
        &mut self,
        id: RequestId,
        call: String,
        now: Instant,
        work: impl FnOnce() -> Outcome + Send + 'static,
    ) -> Option<Outcome> {
        if self.threads >= MAX_ERRANDS {
            return Some(Err(Failure::TooManyStuck));
        }
        self.last += 1;
        let (number, shared) = (self.last, Arc::clone(&self.shared));
        let name = call.clone();
        let job: Job = Box::new(move || {
            let outcome = perform(work, &name);
            shared.finished().push((number, outcome));
            // Can't fail: the counter is far from its limit, and it is ours.
            let _ = rustix::io::write(&shared.done, &1u64.to_ne_bytes());
        });
        if !self.run(number, job) {
            return Some(Err(Failure::System(failure(&call, "", Errno::AGAIN))));
        }
        self.threads += 1;
        self.waiting.insert(number, Waiting { id, call, deadline: now + DEADLINE });
        None
    }

    /// Gives a job to a thread of its own or to the one that stands by. False where neither is to be had.
    fn run(&mut self, number: u64, job: Job) -> bool {
        // A thread that is not made drops its closure, so the job is not in it before somebody takes it out.
        let job = Arc::new(Mutex::new(Some(job)));
        let taken = Arc::clone(&job);
        let own = move || take(&taken).into_iter().for_each(|job| job());
        if thread(self.stack_bytes).spawn(own).is_ok() {
            return true;
        }
        match (&self.standby.jobs, take(&job)) {
            (Some(jobs), Some(job)) if self.standby.away.is_none() => {
                self.standby.away = Some(number);
                // There is room: it has nothing else to do.
                jobs.try_send(job).is_ok()
            }
            _ => false,
        }
    }

    /// The outcomes that are there. What comes after its deadline is nobody's any more.
    pub(crate) fn drain(&mut self) -> Vec<(RequestId, Outcome)> {
        let _ = rustix::io::read(&self.shared.done, &mut [0; 8]);
        let finished = std::mem::take(&mut *self.shared.finished());
        self.threads -= finished.len();
        self.standby.away =
            self.standby.away.filter(|away| finished.iter().all(|(number, _)| number != away));
        let answered = |(number, outcome)| Some((self.waiting.remove(&number)?.id, outcome));
        finished.into_iter().filter_map(answered).collect()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, waiting)| waiting.deadline)
    }

    /// Those whose time is up.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(RequestId, Outcome)> {
        let mut late = Vec::new();
        while let Some(first) = self.waiting.first_entry()
            && first.get().deadline <= now
        {
            let Waiting { id, call, .. } = first.remove();
            late.push((id, Err(Failure::TimedOut { call })));
        }
        late
    }
}

impl Standby {
    fn start() -> Self {
        let (jobs, wanted) = sync_channel::<Job>(1);
        let started = thread(STACK_BYTES).spawn(move || wanted.into_iter().for_each(|job| job()));
        Self { jobs: started.is_ok().then_some(jobs), away: None }
    }
}

fn thread(stack_bytes: usize) -> std::thread::Builder {
    std::thread::Builder::new().name("errand".to_owned()).stack_size(stack_bytes)
}

fn take<T>(job: &Mutex<Option<T>>) -> Option<T> {
    job.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn perform(work: impl FnOnce() -> Outcome, call: &str) -> Outcome {
    let fault = |_| Err(Failure::System(failure(call, "", Errno::IO)));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(fault)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn begin(
        errands: &mut Errands,
        id: u32,
        work: impl FnOnce() -> Outcome + Send + 'static,
    ) -> Option<Outcome> {
        errands.begin(RequestId(id), format!("errand {id}"), Instant::now(), work)
    }

    fn drain(errands: &mut Errands) -> Vec<(RequestId, Outcome)> {
        poll(&mut [PollFd::new(&errands.fd(), PollFlags::IN)], None).unwrap();
        errands.drain()
    }

    #[test]
    fn one_that_hangs_is_answered_without_and_holds_up_nobody() {
        let mut errands = Errands::new().unwrap();
        let (release, released) = channel::<()>();
        let hang = move || released.recv().map(|()| Response::Done).map_err(|_| Failure::TooManyStuck);
        assert!(begin(&mut errands, 1, hang).is_none());
        assert!(begin(&mut errands, 2, || Ok(Response::Done)).is_none());
        assert!(matches!(drain(&mut errands)[..], [(RequestId(2), Ok(Response::Done))]));
        assert!(errands.expire(Instant::now()).is_empty());
        let late = errands.next_deadline().unwrap();
        let expired = errands.expire(late);
        let [(RequestId(1), Err(Failure::TimedOut { call }))] = &expired[..] else { panic!("{expired:?}") };
        assert_eq!(call, "errand 1");
        release.send(()).unwrap();
        assert!(drain(&mut errands).is_empty(), "an answer was given twice");
        assert_eq!((errands.threads, errands.next_deadline()), (0, None));
    }

    #[test]
    fn with_many_that_hang_none_is_begun() {
        let mut errands = Errands::new().unwrap();
        let releases: Vec<_> = (0..MAX_ERRANDS as u32)
            .map(|id| {
                let (release, released) = channel::<()>();
                let hang =
                    move || released.recv().map(|()| Response::Done).map_err(|_| Failure::TooManyStuck);
                assert!(begin(&mut errands, id, hang).is_none());
                release
            })
            .collect();
        let refused = begin(&mut errands, 99, || Ok(Response::Done));
        assert!(matches!(refused, Some(Err(Failure::TooManyStuck))));
        releases.into_iter().for_each(|release| release.send(()).unwrap());
        let mut back = 0;
        while back < MAX_ERRANDS {
            back += drain(&mut errands).len();
        }
        assert!(begin(&mut errands, 99, || Ok(Response::Done)).is_none());
    }

    #[test]
    fn out_of_threads_one_errand_at_a_time_is_run_and_never_by_the_caller() {
        let mut errands = Errands::new().unwrap();
        // No thread has room for such a stack.
        errands.stand_by();
        errands.stack_bytes = 1 << 60;
        let (release, released) = channel::<()>();
        let hang = move || released.recv().map(|()| Response::Done).map_err(|_| Failure::TooManyStuck);
        assert!(begin(&mut errands, 1, hang).is_none());
        let refused = begin(&mut errands, 2, || Ok(Response::Done));
        let Some(Err(Failure::System(refused))) = refused else { panic!("{refused:?}") };
        assert_eq!(refused.errno, Errno::AGAIN.raw_os_error());

        release.send(()).unwrap();
        assert!(matches!(drain(&mut errands)[..], [(RequestId(1), Ok(Response::Done))]));
        assert!(begin(&mut errands, 3, || panic!("on purpose")).is_none());
        assert!(matches!(drain(&mut errands)[..], [(RequestId(3), Err(Failure::System(_)))]));
        assert!(begin(&mut errands, 4, || Ok(Response::Done)).is_none());
        assert!(matches!(drain(&mut errands)[..], [(RequestId(4), Ok(Response::Done))]));
        assert_eq!(errands.threads, 0);
    }

    #[test]
    fn a_fault_is_an_answer() {
        let mut errands = Errands::new().unwrap();
        assert!(begin(&mut errands, 1, || panic!("on purpose")).is_none());
        assert!(matches!(drain(&mut errands)[..], [(RequestId(1), Err(Failure::System(_)))]));
    }
}
