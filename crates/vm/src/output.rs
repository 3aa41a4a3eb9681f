//! One output stream of a process: a [`Window`], the task that fills it and the readers that wait for it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::pipe;
use crate::sync::lock;
pub use crate::window::Chunk;
use crate::window::{MAX_CHUNK_BYTES, Read, ReaderId, Window};

/// One output stream, for any number of readers; clones are the same stream.
#[derive(Debug, Clone, Default)]
pub struct Output {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held for one read or write of at most [`MAX_CHUNK_BYTES`].
    window: Mutex<Window>,
    /// Bytes came, or the end.
    grown: Notify,
    /// A reader read, or left.
    room: Notify,
}

/// A reader with a position of its own. While it is attached nothing it has not read is discarded, and a process that
/// writes more than the window holds waits for it.
#[derive(Debug)]
pub struct OutputReader {
    shared: Arc<Shared>,
    id: ReaderId,
}

/// How a fill went; `WouldBlock` stays an error, because the runtime must hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    Some(usize),
    /// A reader came between and has to read first.
    NoRoom,
    End,
}

impl Output {
    /// Attaches a reader that starts at this offset of the stream, or at the oldest byte there still is.
    pub fn from_offset(&self, offset: u64) -> OutputReader {
        let id = lock(&self.shared.window).attach(offset);
        OutputReader { shared: Arc::clone(&self.shared), id }
    }

    pub(crate) async fn wait_for_room(&self) {
        loop {
            let room = self.shared.room.notified();
            if lock(&self.shared.window).room() > 0 {
                return;
            }
            room.await;
        }
    }

    /// Reads once from a non-blocking descriptor, at most what there is room for.
    pub(crate) fn fill_from(&self, source: BorrowedFd<'_>) -> io::Result<Filled> {
        // Room, read and push are one step: a reader that attaches meanwhile must find its bytes safe.
        let mut window = lock(&self.shared.window);
        let room = window.room().min(MAX_CHUNK_BYTES);
        if room == 0 {
            return Ok(Filled::NoRoom);
        }
        let read = pipe::read_with(source, room, |data| window.push(data))?;
        drop(window);
        if read == 0 {
            return Ok(Filled::End);
        }
        self.shared.grown.notify_waiters();
        Ok(Filled::Some(read))
    }

    /// Adds what the process itself could not say.
    pub(crate) fn push(&self, data: &[u8]) {
        lock(&self.shared.window).push(data);
        self.shared.grown.notify_waiters();
    }

    pub(crate) fn finish(&self) {
        lock(&self.shared.window).finish();
        self.shared.grown.notify_waiters();
    }

    /// Frees what is kept, unless somebody is reading it.
    pub(crate) fn forget(&self) {
        lock(&self.shared.window).forget();
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        lock(&self.shared.window).kept_bytes()
    }
}

impl OutputReader {
    /// The next bytes; None when the stream's last writer is gone and all is read. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Chunk> {
        loop {
            // Listens before it looks: `notify_waiters` wakes futures made before it.
            let grown = self.shared.grown.notified();
            match lock(&self.shared.window).read(self.id) {
                Read::Chunk(chunk) => {
                    self.shared.room.notify_one();
                    return Some(chunk);
                }
                Read::End => return None,
                Read::Pending => {}
            }
            grown.await;
        }
    }
}

impl Drop for OutputReader {
    fn drop(&mut self) {
        lock(&self.shared.window).detach(self.id);
        self.shared.room.notify_one();
    }
}
