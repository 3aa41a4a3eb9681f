//! Copying a tree from one file system to another, for a move that the kernel can't do.
//!
//! Links are copied as links, hard links within the tree are linked again, holes stay holes. A mount point inside is
//! EBUSY, as is a tree that the guest changes so fast that the copy loses its way. Set-id bits and file capabilities
//! don't come along: what a base image may hold must not reach a directory of the host.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    Access, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Statx, Uid, accessat, chownat,
    fchmod, ftruncate, futimens, linkat, mkdirat, mknodat, openat, openat2, readlinkat, seek, symlinkat,
    utimensat,
};
use rustix::io::{Errno, pread};

use super::descent::{Descent, Mounts, open_dir};
use super::in_place::write_all_at;
use super::list::for_each_entry;
use super::metadata::{lenient, resemble, times};
use super::progress::Progress;
use super::root::{Place, open_entry};
use super::stat::{Identity, file_type, identity, plain_permissions, stat_descriptor, stat_entry};

const CHUNK_BYTES: usize = 256 * 1024;

/// Nobody else looks into a copy before it is whole.
const PRIVATE_FILE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIRECTORY: Mode = Mode::from_raw_mode(0o700);

/// Copies whatever `from` names to `to`, which must not exist. A copy that fails is left to the caller to remove.
pub(super) fn copy_tree(from: &Place, to: &Place, progress: &Progress) -> Result<(), Errno> {
    let stat = stat_entry(&from.dir, from.name.as_slice())?;
    let mut copier = Copier { hard_links: HashMap::new(), base: None, path: Vec::new(), progress };
    if file_type(&stat) != FileType::Directory {
        let pair = Pair { from: from.dir.as_fd(), to: to.dir.as_fd() };
        return copier.copy_entry(pair, &from.name, &to.name, &stat).map(drop);
    }
    let source = open_dir(&from.dir, &from.name, Mounts::Refuse).map_err(busy_at_mount)?;
    mkdirat(&to.dir, to.name.as_slice(), PRIVATE_DIRECTORY)?;
    let base = open_dir(&to.dir, &to.name, Mounts::Refuse)?;
    copier.base = Some(base.try_clone().map_err(|_| Errno::MFILE)?);
    copier.copy_below(Descent::new(source, Mounts::Refuse)?, Descent::new(base, Mounts::Refuse)?)
}

struct Copier<'a> {
    /// Paths below `base` of the first copy of each file that has several names.
    hard_links: HashMap<Identity, Vec<u8>>,
    /// The copy's own root.
    base: Option<OwnedFd>,
    /// Of the directory that is being filled, below `base`, with a trailing slash.
    path: Vec<u8>,
    progress: &'a Progress,
}

/// A directory and its copy.
#[derive(Clone, Copy)]
struct Pair<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
}

/// A directory the copy is in.
struct Level {
    pending: Vec<Vec<u8>>,
    path_len: usize,
}

impl Copier<'_> {
    fn copy_below(&mut self, mut from: Descent, mut to: Descent) -> Result<(), Errno> {
        let mut levels = vec![self.copy_entries(&from, &to)?];
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path_len);
            if let Some(name) = level.pending.pop() {
                from.enter(&name).map_err(busy_at_mount)?;
                mkdirat(to.current(), name.as_slice(), PRIVATE_DIRECTORY)?;
                to.enter(&name)?;
                self.path.extend_from_slice(&name);
                self.path.push(b'/');
                levels.push(self.copy_entries(&from, &to)?);
                continue;
            }
            let stat = stat_descriptor(from.current())?;
            resemble(from.current(), &stat, to.current())?;
            futimens(to.current(), &times(&stat))?;
            levels.pop();
            let (left, left_copy) = (from.leave()?, to.leave()?);
            if left != left_copy || left.is_some_and(|left| left.levels != 1) {
                return Err(Errno::BUSY);
            }
        }
        Ok(())
    }

    /// Copies what isn't a directory and returns the names of what is.
    fn copy_entries(&mut self, from: &Descent, to: &Descent) -> Result<Level, Errno> {
        let pair = Pair { from: from.current(), to: to.current() };
        // What is copied is to be deleted afterwards: better to know now that it can't be.
        accessat(pair.from, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
        let mut level = Level { pending: Vec::new(), path_len: self.path.len() };
        let progress = self.progress;
        for_each_entry(pair.from, progress, |name, _| {
            progress.beat()?;
            let stat = match stat_entry(pair.from, name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno),
            };
            if file_type(&stat) == FileType::Directory {
                level.pending.push(name.to_vec());
                return Ok(());
            }
            self.copy_entry(pair, name, name, &stat)
        })?;
        Ok(level)
    }

    fn copy_entry(&mut self, pair: Pair<'_>, name: &[u8], new: &[u8], stat: &Statx) -> Result<(), Errno> {
        if stat.stx_nlink > 1 && self.link_again(pair, new, stat) {
            return Ok(());
        }
        match file_type(stat) {
            FileType::RegularFile => copy_file(pair, name, new, self.progress)?,
            FileType::Symlink => {
                let link = readlinkat(pair.from, name, Vec::new())?;
                symlinkat(link, pair.to, new)?;
                copy_name_metadata(pair.to, new, stat)?;
            }
            special @ (FileType::Fifo | FileType::Socket) => {
                mknodat(pair.to, new, special, Mode::from_raw_mode(plain_permissions(stat)), 0)?;
                if special == FileType::Fifo {
                    // The umask has had its say; a socket's mode can't be set without following its name.
                    let fifo = open_entry(pair.to, new, OFlags::RDONLY | OFlags::NONBLOCK)?;
                    lenient(fchmod(&fifo, Mode::from_raw_mode(plain_permissions(stat))))?;
                }
                copy_name_metadata(pair.to, new, stat)?;
            }
            // Devices can't be made in a VM.
            _ => return Err(Errno::PERM),
        }
        if stat.stx_nlink > 1 && self.base.is_some() {
            self.hard_links.insert(identity(stat), [&self.path, new].concat());
        }
        Ok(())
    }

    /// Gives the first copy of this file another name, if there is one and its path isn't too long.
    fn link_again(&self, pair: Pair<'_>, new: &[u8], stat: &Statx) -> bool {
        let (Some(base), Some(first)) = (&self.base, self.hard_links.get(&identity(stat))) else {
            return false;
        };
        let cut = first.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = first.split_at(cut);
        let parent = if parent.is_empty() { b"." } else { parent };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(base, parent, flags, Mode::empty(), resolve)
            .and_then(|dir| linkat(&dir, name, pair.to, new, AtFlags::empty()))
            .is_ok()
    }
}

fn copy_file(pair: Pair<'_>, name: &[u8], new: &[u8], progress: &Progress) -> Result<(), Errno> {
    let from = open_entry(pair.from, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let stat = stat_descriptor(&from)?;
    if file_type(&stat) != FileType::RegularFile {
        return Err(Errno::BUSY);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = openat(pair.to, new, flags, PRIVATE_FILE)?;
    copy_content(&from, &to, stat.stx_size, progress)?;
    resemble(from.as_fd(), &stat, to.as_fd())?;
    futimens(&to, &times(&stat))
}

/// Copies the parts that hold data. A file that grows meanwhile is copied as long as it was.
fn copy_content(from: &OwnedFd, to: &OwnedFd, len: u64, progress: &Progress) -> Result<(), Errno> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data.min(len),
            // A hole up to the end.
            Err(Errno::NXIO) => break,
            // The file system has no holes to tell of.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno),
        };
        let end = seek(from, SeekFrom::Hole(data)).unwrap_or(len).min(len);
        at = data;
        while at < end {
            progress.beat()?;
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            match pread(from, &mut buffer[..wanted], at) {
                Ok(0) => return ftruncate(to, at),
                Ok(count) => {
                    write_all_at(to, &buffer[..count], at)?;
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    ftruncate(to, len)
}

/// Owner and times of what can't be opened.
fn copy_name_metadata(dir: BorrowedFd<'_>, name: &[u8], stat: &Statx) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.stx_uid), Gid::from_raw(stat.stx_gid));
    lenient(chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))?;
    utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn busy_at_mount(errno: Errno) -> Errno {
    if errno == Errno::XDEV { Errno::BUSY } else { errno }
}
