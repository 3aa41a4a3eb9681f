//! The thread on which this process hears from its sidecars.
//!
//! A multi-threaded runtime wakes a second thread for every answer, in case there is more to do, which on a small machine
//! is a large part of a short call; and a runtime that is busy would leave its connections unread.

use std::io;
use std::sync::mpsc::sync_channel;
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
    let (say, said) = sync_channel(1);
    // Made and dropped over there: here may be a runtime, in which another one can't be dropped.
    let serve = move || match Builder::new_current_thread().enable_io().build() {
        Ok(runtime) => {
            // Whoever started this waits.
            let _ = say.send(Ok(runtime.handle().clone()));
            runtime.block_on(std::future::pending::<()>());
        }
        Err(error) => drop(say.send(Err(error))),
    };
    thread::Builder::new().name("agentos-sidecars".to_owned()).spawn(serve)?;
    let handle = said.recv().map_err(io::Error::other)??;
    *started = Some(handle.clone());
    Ok(handle)
}
