//! Writing files: small contents in one call, larger ones through a descriptor between OpenWrite and CommitWrite.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileResponse, WriteTicket};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::calls::Outcome;
use super::in_place::{Source, overwrite};
use super::make::make_all;
use super::path::{GuestPath, failure};
use super::progress::Progress;
use super::root::{Backing, Root, Target};
use super::stage::{Staged, check_landing, must_stay};
use super::streams::{Pumps, write_all};

/// Writes begun and not yet ended. Each holds two descriptors or three of init's.
const MAX_OPEN_WRITES: usize = 64;

pub(super) fn write_file(
    root: &Root,
    path: &GuestPath,
    content: &[u8],
    progress: &Progress,
) -> Result<FileResponse, FileFailure> {
    let fault = path.fault(FileCall::Open);
    let target = target_with_parents(root, path).map_err(&fault)?;
    // The detour over memory that a staged write would take is spared where the content is in memory already.
    check_landing(target.found.as_ref()).map_err(&fault)?;
    if target.found.as_ref().is_some_and(must_stay) {
        overwrite(&target.place, Source::Memory(content), progress).map_err(&fault)?;
        return Ok(FileResponse::Done);
    }
    let staged = Staged::new(root, target).map_err(&fault)?;
    let fault = path.fault(FileCall::Write);
    write_all(staged.file(), content).map_err(&fault)?;
    staged.commit(progress).map_err(&fault)?;
    Ok(FileResponse::Done)
}

fn target_with_parents(root: &Root, path: &GuestPath) -> Result<Target, Errno> {
    match root.target(path) {
        Err(Errno::NOENT) => {
            let (parent, _) = path.split().ok_or(Errno::ISDIR)?;
            make_all(root, parent)?;
            root.target(path)
        }
        answer => answer,
    }
}

/// The writes begun by OpenWrite.
#[derive(Debug, Default)]
pub(super) struct OpenWrites {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u32,
    writes: HashMap<WriteTicket, OpenWrite>,
}

#[derive(Debug)]
struct OpenWrite {
    path: GuestPath,
    staged: Staged,
    /// Empties the pipe whose other end the sidecar writes to.
    pump: Option<JoinHandle<Result<(), Errno>>>,
}

impl OpenWrites {
    pub(super) fn open(&self, root: &Root, pumps: &Pumps, path: &GuestPath) -> Result<Outcome, FileFailure> {
        let fault = path.fault(FileCall::Open);
        if self.table().writes.len() >= MAX_OPEN_WRITES {
            return Err(fault(Errno::MFILE));
        }
        let target = target_with_parents(root, path).map_err(&fault)?;
        let staged = Staged::new(root, target).map_err(&fault)?;
        let backing = staged.backing().map_err(&fault)?;
        self.admit(path, staged, backing, pumps).map_err(&fault)
    }

    /// Hands out the gathering file itself, or a pipe into it where its file system may hang.
    pub(super) fn admit(
        &self,
        path: &GuestPath,
        staged: Staged,
        backing: Backing,
        pumps: &Pumps,
    ) -> Result<Outcome, Errno> {
        let file = staged.file().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        let (descriptor, pump) = if backing == Backing::Plain {
            (file, None)
        } else {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            (writer, Some(pumps.start(Vec::new(), reader, file)?))
        };
        let mut table = self.table();
        if table.writes.len() >= MAX_OPEN_WRITES {
            return Err(Errno::MFILE);
        }
        let ticket = table.next_ticket();
        table.writes.insert(ticket, OpenWrite { path: path.clone(), staged, pump });
        Ok(Outcome::with_descriptor(FileResponse::WriteOpened { ticket }, descriptor))
    }

    pub(super) fn commit(
        &self,
        ticket: WriteTicket,
        progress: &Progress,
    ) -> Result<FileResponse, FileFailure> {
        let OpenWrite { path, staged, pump } = self.take(ticket)?;
        let fault = path.fault(FileCall::Write);
        if let Some(pump) = pump {
            // The sidecar has closed its end, so only what is in the pipe is left to be written.
            pump.join().unwrap_or(Err(Errno::IO)).map_err(&fault)?;
        }
        staged.commit(progress).map_err(&fault)?;
        Ok(FileResponse::Done)
    }

    /// When it is answered, nothing of the write holds its file system any more.
    pub(super) fn abort(&self, ticket: WriteTicket) -> Result<FileResponse, FileFailure> {
        let OpenWrite { pump, .. } = self.take(ticket)?;
        if let Some(pump) = pump {
            // The sidecar has closed its end. How the pump fared matters to nobody.
            let _ = pump.join();
        }
        Ok(FileResponse::Done)
    }

    pub(super) fn abort_all(&self) {
        let writes = std::mem::take(&mut self.table().writes);
        // Dropped here, outside the lock: removing files may take its time.
        drop(writes);
    }

    fn take(&self, ticket: WriteTicket) -> Result<OpenWrite, FileFailure> {
        let found = self.table().writes.remove(&ticket);
        found.ok_or_else(|| failure(Errno::BADF, FileCall::Write, b""))
    }

    /// Held for looking things up, never over a call that may hang.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// There are far fewer open writes than numbers, so a free one is near.
    fn next_ticket(&mut self) -> WriteTicket {
        loop {
            self.last = self.last.wrapping_add(1);
            let ticket = WriteTicket(self.last);
            if !self.writes.contains_key(&ticket) {
                return ticket;
            }
        }
    }
}
