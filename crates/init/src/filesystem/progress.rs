//! How a call on a worker thread and the event loop see each other: the call shows that it moves, the loop may tell
//! it to give up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;

/// One call's heartbeat. A deadline counts from the last beat, so that deleting a million files isn't taken for
/// a hanging mount.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    beats: AtomicU64,
    abandoned: AtomicBool,
}

impl Progress {
    /// Called between steps that may each take long. Fails once nobody waits for the call any more.
    pub(super) fn beat(&self) -> Result<(), Errno> {
        self.beats.fetch_add(1, Ordering::Relaxed);
        if self.abandoned.load(Ordering::Relaxed) { Err(Errno::TIMEDOUT) } else { Ok(()) }
    }

    pub(super) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}
