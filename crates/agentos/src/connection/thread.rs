//! The thread on which this process hears from its sidecars.
//!
//! A multi-threaded runtime wakes a second thread for every answer, in case there is more to do, which on a small machine
//! is a large part of a short call; and a runtime that is busy would leave its connections unread.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::runtime::{Builder, Handle};

/// Started by the first connection, and there until the process ends.
static THREAD: Mutex<Option<Handle>> = Mutex::new(None);

pub(super) fn handle() -> io::Result<Handle> {
    let mut started = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*started {
        return Ok(handle.clone());
    }
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("agentos-sidecars".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    *started = Some(handle.clone());
    Ok(handle)
}
