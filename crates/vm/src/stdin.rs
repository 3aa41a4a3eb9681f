//! What is on its way into a process: at most [`QUEUE_BYTES`], whoever brings more waits.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore};

use crate::pipe;
use crate::process::StdinError;
use crate::sync::lock;

/// Queued for one process.
pub(crate) const QUEUE_BYTES: usize = 1024 * 1024;

/// Queued in one step, so that room is shared in small change.
const PIECE_BYTES: usize = 64 * 1024;

const _: () = assert!(PIECE_BYTES <= QUEUE_BYTES);

#[derive(Debug)]
pub(crate) struct StdinQueue {
    /// Held for copying one piece.
    state: Mutex<State>,
    /// A permit per free byte; closed when the process takes no more.
    room: Semaphore,
    /// One write after the other: the pieces of two must not mix. Waited for, hence tokio's.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queued: VecDeque<u8>,
    closed: bool,
    broken: bool,
}

impl Default for StdinQueue {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            room: Semaphore::new(QUEUE_BYTES),
            turn: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }
}

impl StdinQueue {
    /// A queue that holds these bytes and takes no more.
    pub(crate) fn holding(bytes: &Bytes) -> Self {
        let queue = Self::default();
        *lock(&queue.state) = State { queued: bytes.iter().copied().collect(), closed: true, broken: false };
        queue
    }

    /// Returns when all of `data` is queued. A dropped future may have queued a part.
    pub(crate) async fn write(&self, data: Bytes) -> Result<(), StdinError> {
        let _turn = self.turn.lock().await;
        lock(&self.state).refusal()?;
        for piece in data.chunks(PIECE_BYTES) {
            let room = self.room.acquire_many(piece.len() as u32).await;
            let mut state = lock(&self.state);
            state.refusal()?;
            state.queued.extend(piece);
            drop(state);
            if let Ok(room) = room {
                room.forget();
            }
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The process sees the end once what is queued is written. Closing twice is fine.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_one();
    }

    /// The process reads no more.
    pub(crate) fn break_off(&self) {
        let mut state = lock(&self.state);
        state.broken = true;
        state.queued = VecDeque::new();
        drop(state);
        self.room.close();
        self.changed.notify_one();
    }

    /// Feeds the process until its stdin is closed or it reads no more.
    pub(crate) async fn feed(&self, target: &AsyncFd<OwnedFd>) {
        loop {
            match self.next() {
                Next::Write => {}
                Next::Wait => {
                    self.changed.notified().await;
                    continue;
                }
                Next::End => return,
            }
            let Ok(mut ready) = target.writable().await else { return self.break_off() };
            match ready.try_io(|target| self.write_front(target)) {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(_)) => return self.break_off(),
            }
        }
    }

    fn next(&self) -> Next {
        let state = lock(&self.state);
        match (state.queued.is_empty(), state.closed || state.broken) {
            (false, _) => Next::Write,
            (true, false) => Next::Wait,
            (true, true) => Next::End,
        }
    }

    fn write_front(&self, target: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
        let mut state = lock(&self.state);
        let (front, _) = state.queued.as_slices();
        if front.is_empty() {
            return Ok(());
        }
        let written = pipe::write_now(target.as_fd(), front)?;
        state.queued.drain(..written);
        // The buffer of a burst is given back once it is through.
        if state.queued.is_empty() {
            state.queued = VecDeque::new();
        }
        drop(state);
        self.room.add_permits(written);
        Ok(())
    }
}

enum Next {
    Write,
    Wait,
    End,
}

impl State {
    fn refusal(&self) -> Result<(), StdinError> {
        if self.broken {
            return Err(StdinError::BrokenPipe);
        }
        if self.closed { Err(StdinError::Closed) } else { Ok(()) }
    }
}
