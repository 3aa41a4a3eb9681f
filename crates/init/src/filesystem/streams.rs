//! Threads that pump between a pipe and a file whose descriptor must not leave the VM.
//!
//! A pump is no call with a deadline: it lives as long as whoever holds the pipe's other end. There is a limit to
//! their number instead.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::io::{Errno, read, write};

/// Each costs a small stack and a buffer.
const MAX_PUMPS: usize = 64;

pub(super) const STACK_BYTES: usize = 128 * 1024;

/// As much as a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Pumps {
    running: Arc<AtomicUsize>,
}

/// One of the [`MAX_PUMPS`].
struct Slot(Arc<AtomicUsize>);

impl Pumps {
    /// Writes `first` to `to`, then all that `from` still gives. Ends early when nobody reads any more.
    pub(super) fn start(
        &self,
        first: Vec<u8>,
        from: OwnedFd,
        to: OwnedFd,
    ) -> Result<JoinHandle<Result<(), Errno>>, Errno> {
        let slot = self.slot()?;
        let pump = move || {
            let _slot = slot;
            pump(&first, from, to)
        };
        let thread = std::thread::Builder::new().name("file-pump".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(pump).map_err(|_| Errno::AGAIN)
    }

    fn slot(&self) -> Result<Slot, Errno> {
        let slot = Slot(Arc::clone(&self.running));
        if self.running.fetch_add(1, Ordering::Relaxed) < MAX_PUMPS { Ok(slot) } else { Err(Errno::AGAIN) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn pump(first: &[u8], from: OwnedFd, to: OwnedFd) -> Result<(), Errno> {
    write_all(&to, first)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match read(&from, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => write_all(&to, &buffer[..count])?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

pub(super) fn write_all(to: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(&to, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
