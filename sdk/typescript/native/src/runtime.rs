//! The thread that the Rust SDK's futures run on, one for all the Node environments of a process.
//!
//! It is never ended. A worker thread of Node may come and go while others go on with their VMs, and when the process
//! ends the connection to the sidecar ends with it, and so do its VMs.

use std::sync::OnceLock;

use napi::{Error, Result, Status};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

pub(crate) fn get() -> Result<&'static Runtime> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    // One thread is enough: nothing here computes, and calls that block do so on the thread that made them.
    let made = Builder::new_multi_thread().worker_threads(1).thread_name("agentos-node").enable_all().build();
    let made = made.map_err(|error| {
        Error::new(Status::GenericFailure, format!("starting the thread of the SDK: {error}"))
    })?;
    // Two environments may get here at once; the second runtime has done nothing yet and goes.
    Ok(RUNTIME.get_or_init(|| made))
}
