//! Who drives a connection.
//!
//! ```text
//! caller ── queues a call, drives once ──► socket        the call leaves from the caller's own thread
//! socket ──► task ── drives ──► callers, woken once each when all that has arrived is understood
//! ```
//! A call's way costs two wake-ups of threads in this process: of the connection's task when the answer comes, and of
//! the caller. Without the first line it would be three, and without the gathering in the second a caller is woken
//! for an answer's head, message and status each.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use tokio::net::UnixStream;

/// The HTTP/2 state machine: ends when the peer is gone, or nobody has a handle or a call any more.
type Machine = h2::client::Connection<UnixStream, Bytes>;

#[derive(Clone)]
pub(super) struct Driver(Arc<Shared>);

struct Shared {
    /// Nothing when it has ended.
    machine: Mutex<Option<Machine>>,
    /// Known before whoever the end concerns is woken.
    ended: AtomicBool,
    bell: Arc<Bell>,
    /// The bell as what the machine calls.
    waker: Waker,
    callers: Mutex<Callers>,
}

/// What the machine rings when it can get on.
#[derive(Default)]
struct Bell {
    task: Mutex<Option<Waker>>,
    /// Callers that are about to drive. They answer the bell.
    driving: AtomicUsize,
    rung: AtomicBool,
}

#[derive(Default)]
struct Callers {
    at_work: bool,
    /// To be woken when the machine has come to rest.
    put_by: Vec<Waker>,
}

impl Driver {
    pub(super) fn new(machine: Machine) -> Self {
        let bell = Arc::new(Bell::default());
        Self(Arc::new(Shared {
            machine: Mutex::new(Some(machine)),
            ended: AtomicBool::new(false),
            waker: Waker::from(Arc::clone(&bell)),
            bell,
            callers: Mutex::default(),
        }))
    }

    /// The connection's task: runs until the connection has ended.
    pub(super) async fn run(&self) {
        poll_fn(|context| {
            *lock(&self.0.bell.task) = Some(context.waker().clone());
            let machine = self.0.try_machine().or_else(|| {
                // A caller is driving, and has perhaps looked already. It is told, unless it has just stopped.
                self.0.bell.rung.store(true, Ordering::SeqCst);
                self.0.try_machine()
            });
            machine.map_or(Poll::Pending, |machine| self.0.drive(machine))
        })
        .await
    }

    /// Queues something on the connection and sends it at once where nobody else is driving.
    pub(super) fn send<T>(&self, queue: impl FnOnce() -> T) -> T {
        let mut driving = Driving::new(&self.0.bell);
        let queued = queue();
        driving.done = self.0.try_machine().is_some_and(|machine| {
            // What was rung for so far is done now.
            self.0.bell.rung.store(false, Ordering::SeqCst);
            self.0.drive(machine).is_pending()
        });
        queued
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::SeqCst)
    }

    /// Ends the connection and all calls on it.
    pub(super) fn stop(&self) {
        self.0.ended.store(true, Ordering::SeqCst);
        let machine = lock(&self.0.machine).take();
        drop(machine);
        self.0.bell.wake_task();
    }

    /// Polls something of a call that the machine will wake.
    pub(super) fn poll<T>(
        &self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let caller = Arc::new(Caller { waker: context.waker().clone(), driver: self.clone() });
        poll(&mut Context::from_waker(&Waker::from(caller)))
    }
}

impl Shared {
    /// Nothing while somebody else is driving.
    fn try_machine(&self) -> Option<MutexGuard<'_, Option<Machine>>> {
        match self.machine.try_lock() {
            Ok(machine) => Some(machine),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn drive(&self, mut machine: MutexGuard<'_, Option<Machine>>) -> Poll<()> {
        let Some(running) = machine.as_mut() else { return Poll::Ready(()) };
        let at_work = AtWork::new(&self.callers);
        // Why it ended is told by each call that was in flight.
        let poll = Pin::new(running).poll(&mut Context::from_waker(&self.waker)).map(drop);
        let ended = if poll.is_ready() { machine.take() } else { None };
        if poll.is_ready() {
            self.ended.store(true, Ordering::SeqCst);
        }
        drop(machine);
        drop(ended);
        drop(at_work);
        poll
    }
}

/// Between the announcement that somebody drives and the last look at the bell.
struct Driving<'a> {
    bell: &'a Bell,
    /// The machine is at rest, and knew of everything until [`Bell::rung`] was last reset.
    done: bool,
}

impl<'a> Driving<'a> {
    fn new(bell: &'a Bell) -> Self {
        bell.driving.fetch_add(1, Ordering::SeqCst);
        Self { bell, done: false }
    }
}

impl Drop for Driving<'_> {
    /// What was rung for since, the task has to do: also where somebody else was driving, and where all has ended.
    fn drop(&mut self) {
        self.bell.driving.fetch_sub(1, Ordering::SeqCst);
        if self.bell.rung.swap(false, Ordering::SeqCst) || !self.done {
            self.bell.wake_task();
        }
    }
}

/// While the machine is at work. Callers are woken when it ends, by a panic too.
struct AtWork<'a>(&'a Mutex<Callers>);

impl<'a> AtWork<'a> {
    fn new(callers: &'a Mutex<Callers>) -> Self {
        lock(callers).at_work = true;
        Self(callers)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let put_by = {
            let mut callers = lock(self.0);
            callers.at_work = false;
            std::mem::take(&mut callers.put_by)
        };
        put_by.into_iter().for_each(Waker::wake);
    }
}

impl Bell {
    fn wake_task(&self) {
        if let Some(task) = &*lock(&self.task) {
            task.wake_by_ref();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order, as who drives looks at the bell after it has stopped: one of both sees the other.
        self.rung.store(true, Ordering::SeqCst);
        if self.driving.load(Ordering::SeqCst) == 0 {
            self.wake_task();
        }
    }
}

/// Whoever waits for something of a call.
struct Caller {
    waker: Waker,
    driver: Driver,
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut callers = lock(&self.driver.0.callers);
        if callers.at_work {
            callers.put_by.push(self.waker.clone());
        } else {
            drop(callers);
            self.waker.wake_by_ref();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
