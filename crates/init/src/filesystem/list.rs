//! Listing directories.

use std::os::fd::AsFd;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::filesystem::{DirEntry, FileCall, FileFailure, FileResponse};
use agentos_guest_protocol::frame::MAX_SPILL_BYTES;
use rustix::fs::{FileType, OFlags, RawDir};
use rustix::io::Errno;

use super::descent::{Descent, Mounts};
use super::path::{GuestPath, failure};
use super::progress::Progress;
use super::root::{Backing, Root, backing};
use super::stat::{file_type, stat_entry, wire_file_type};

/// A listing travels in one answer; what would not fit is EOVERFLOW. Names count with what the encoding adds.
const MAX_LISTING_BYTES: usize = MAX_SPILL_BYTES / 4 * 3;
const ENTRY_OVERHEAD_BYTES: usize = 16;

/// Several hundred entries per system call.
const BUFFER_BYTES: usize = 32 * 1024;

pub(super) fn read_dir(
    root: &Root,
    path: &GuestPath,
    progress: &Progress,
) -> Result<FileResponse, FileFailure> {
    let fault = path.fault(FileCall::Scandir);
    let dir = root.open(path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(&fault)?;
    let mut names = Vec::new();
    let mut room = MAX_LISTING_BYTES;
    for_each_entry(&dir, progress, |name, _| {
        room = room.checked_sub(name.len() + ENTRY_OVERHEAD_BYTES).ok_or(Errno::OVERFLOW)?;
        names.push(Bytes::from(name.to_vec()));
        Ok(())
    })
    .map_err(&fault)?;
    names.sort_unstable();
    Ok(FileResponse::Names(names))
}

/// Which part of a tree is wanted.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    /// 0: the entries of the directory itself.
    pub(super) max_depth: Option<u32>,
    /// Entries with these names are left out with all below them.
    pub(super) exclude: &'a [Bytes],
}

/// Walks a tree and lists what it meets, links as links. What vanishes meanwhile is left out.
pub(super) fn read_dir_recursive(
    root: &Root,
    path: &GuestPath,
    selection: &Selection<'_>,
    progress: &Progress,
) -> Result<FileResponse, FileFailure> {
    let fault = path.fault(FileCall::Scandir);
    let base = root.open(path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(&fault)?;
    let descent = Descent::new(base, Mounts::Enter).map_err(&fault)?;
    let mut listing = Listing {
        descent,
        selection,
        prefix: if path.is_root() { Vec::new() } else { path.as_bytes().to_vec() },
        entries: Vec::new(),
        room: MAX_LISTING_BYTES,
    };
    listing.walk(progress)?;
    let mut entries = listing.entries;
    entries.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(FileResponse::Entries(entries))
}

struct Listing<'a> {
    descent: Descent,
    selection: &'a Selection<'a>,
    /// Path of the current directory, without a trailing slash.
    prefix: Vec<u8>,
    entries: Vec<DirEntry>,
    room: usize,
}

/// A directory the walk is in.
struct Level {
    /// Names of directories to enter yet.
    pending: Vec<Vec<u8>>,
    /// Length of its path.
    prefix_len: usize,
}

impl Listing<'_> {
    fn walk(&mut self, progress: &Progress) -> Result<(), FileFailure> {
        let mut levels = vec![self.list_current(0, progress)?];
        while let Some(level) = levels.last_mut() {
            self.prefix.truncate(level.prefix_len);
            if let Some(name) = level.pending.pop() {
                match self.descent.enter(&name) {
                    Ok(()) => {
                        self.prefix.push(b'/');
                        self.prefix.extend_from_slice(&name);
                        let listed = self.list_current(levels.len(), progress)?;
                        levels.push(listed);
                    }
                    Err(errno) if self.may_be_skipped(errno) => {}
                    Err(errno) => {
                        let path = [&self.prefix, b"/".as_slice(), &name].concat();
                        return Err(failure(errno, FileCall::Scandir, &path));
                    }
                }
            } else {
                let left = self.descent.leave().map_err(|errno| self.fault(errno))?;
                let gone = left.map_or(levels.len(), |left| left.levels);
                levels.truncate(levels.len().saturating_sub(gone));
            }
        }
        Ok(())
    }

    /// Adds the entries of the current directory and says which to enter.
    fn list_current(&mut self, depth: usize, progress: &Progress) -> Result<Level, FileFailure> {
        let mut level = Level { pending: Vec::new(), prefix_len: self.prefix.len() };
        let deeper = self.selection.max_depth.is_none_or(|max| (max as usize) > depth);
        let exclude = self.selection.exclude;
        let dir = self.descent.current();
        let (entries, room, prefix) = (&mut self.entries, &mut self.room, &self.prefix);
        let listed = for_each_entry(dir, progress, |name, _| {
            if exclude.iter().any(|excluded| excluded.as_slice() == name) {
                return Ok(());
            }
            let stat = match stat_entry(dir, name) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::SRCH) => return Ok(()),
                Err(errno) => return Err(errno),
            };
            let path = [prefix, b"/".as_slice(), name].concat();
            *room = room.checked_sub(path.len() + ENTRY_OVERHEAD_BYTES).ok_or(Errno::OVERFLOW)?;
            let file_type = file_type(&stat);
            entries.push(DirEntry {
                path: Bytes::from(path),
                file_type: wire_file_type(file_type),
                size_bytes: stat.stx_size,
            });
            if file_type == FileType::Directory && deeper {
                level.pending.push(name.to_vec());
            }
            Ok(())
        });
        match listed {
            Ok(()) => Ok(level),
            Err(errno) if self.may_be_skipped(errno) => Ok(level),
            Err(errno) => Err(self.fault(errno)),
        }
    }

    /// Whether a directory below the base that can't be entered just isn't: it is gone or has become something else,
    /// or it is one of the places in /proc that not even its owner may list.
    fn may_be_skipped(&self, errno: Errno) -> bool {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => true,
            Errno::ACCESS | Errno::PERM | Errno::SRCH | Errno::INVAL => {
                matches!(backing(self.descent.current()), Ok(Backing::Proc))
            }
            _ => false,
        }
    }

    fn fault(&self, errno: Errno) -> FileFailure {
        let path = if self.prefix.is_empty() { b"/".as_slice() } else { &self.prefix };
        failure(errno, FileCall::Scandir, path)
    }
}

/// Calls `entry` with each name but `.` and `..`, and its type where the file system says it in passing.
pub(super) fn for_each_entry(
    dir: impl AsFd,
    progress: &Progress,
    mut entry: impl FnMut(&[u8], FileType) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    loop {
        if entries.is_buffer_empty() {
            progress.beat()?;
        }
        match entries.next() {
            None => return Ok(()),
            Some(Err(Errno::INTR)) => {}
            // The directory is deleted.
            Some(Err(Errno::NOENT)) => return Ok(()),
            Some(Err(errno)) => return Err(errno),
            Some(Ok(found)) => match found.file_name().to_bytes() {
                b"." | b".." => {}
                name => entry(name, found.file_type())?,
            },
        }
    }
}
