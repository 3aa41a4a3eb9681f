//! A JavaScript function that is told things as they happen.
//!
//! Telling never blocks: the value is queued for the thread of JavaScript. What bounds the queue is [`Pace`], which
//! counts what the function has not taken yet: whatever makes values is polled only while there is room. The function
//! does not keep the process alive. An exception that it throws is an uncaught one, as from any other event of Node.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use napi::bindgen_prelude::{Function, Uint8Array};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode, UnknownReturnValue};
use napi::{Result, Status};

/// What may wait for a function before its source has to.
const ROOM_BYTES: usize = 256 << 10;

/// Neither called with an error first, nor keeping the process alive.
type Weak<T, Args> = ThreadsafeFunction<T, UnknownReturnValue, Args, Status, false, true>;

/// What functions have not taken yet. Several can share one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    state: Arc<Mutex<PaceState>>,
}

#[derive(Debug, Default)]
struct PaceState {
    waiting_bytes: usize,
    /// There is one waiter at most: the task whose future is paced.
    waker: Option<Waker>,
}

impl Pace {
    /// Locked for single reads and updates only.
    fn state(&self) -> MutexGuard<'_, PaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_at_most(&self, bytes: usize, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.waiting_bytes <= bytes {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Lets `work` proceed only while there is room, and ends when its last value has been taken too.
    pub(crate) async fn keep<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let outcome = poll_fn(|context| {
            ready!(self.poll_at_most(ROOM_BYTES, context));
            work.as_mut().poll(context)
        })
        .await;
        self.all_taken().await;
        outcome
    }

    pub(crate) async fn all_taken(&self) {
        poll_fn(|context| self.poll_at_most(0, context)).await;
    }

    fn add(&self, bytes: usize) -> Waiting {
        self.state().waiting_bytes += bytes;
        Waiting { pace: self.clone(), bytes }
    }
}

/// A value on its way. It counts until it is dropped: taken, or lost with the environment it was for.
struct Waiting {
    pace: Pace,
    bytes: usize,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.pace.state();
        state.waiting_bytes -= self.bytes;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// A JavaScript function that takes text, JSON mostly.
pub(crate) type OnText<'env> = Function<'env, String, UnknownReturnValue>;

/// Told pieces of output, as `Uint8Array`.
pub(crate) struct ChunkListener {
    function: Weak<Bytes, Uint8Array>,
    pace: Pace,
}

impl ChunkListener {
    pub(crate) fn new(function: &Function<'_, Uint8Array, UnknownReturnValue>, pace: &Pace) -> Result<Self> {
        let builder = function.build_threadsafe_function::<Bytes>().weak::<true>();
        let function = builder.build_callback(|call| Ok(Uint8Array::from(Vec::from(call.value))))?;
        Ok(Self { function, pace: pace.clone() })
    }

    pub(crate) fn tell(&self, chunk: Bytes) {
        let waiting = self.pace.add(chunk.len());
        tell(&self.function, chunk, waiting);
    }
}

/// Told things in words, JSON mostly.
pub(crate) struct TextListener {
    function: Weak<String, String>,
    pace: Pace,
}

impl TextListener {
    pub(crate) fn new(function: &OnText<'_>, pace: &Pace) -> Result<Self> {
        let builder = function.build_threadsafe_function::<String>().weak::<true>();
        let function = builder.build_callback(|call| Ok(call.value))?;
        Ok(Self { function, pace: pace.clone() })
    }

    pub(crate) fn tell(&self, text: String) {
        let waiting = self.pace.add(text.len());
        tell(&self.function, text, waiting);
    }
}

fn tell<T, Args>(function: &Weak<T, Args>, value: T, waiting: Waiting)
where
    Args: napi::bindgen_prelude::JsValuesTupleIntoVec,
{
    // The only refusal is that of an environment that is ending: nobody is left to be told, and `waiting` is dropped.
    function.call_with_return_value(value, ThreadsafeFunctionCallMode::NonBlocking, move |taken, _| {
        drop(waiting);
        taken.map(drop)
    });
}
