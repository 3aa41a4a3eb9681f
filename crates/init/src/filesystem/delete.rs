//! Deleting: links themselves, never what they lead to, and nothing beyond a mount point.

use std::os::fd::{AsFd, BorrowedFd};

use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileResponse};
use rustix::fs::{AtFlags, FileType, unlinkat};
use rustix::io::Errno;

use super::descent::{Descent, Mounts, open_dir};
use super::list::for_each_entry;
use super::path::GuestPath;
use super::progress::Progress;
use super::root::Root;
use super::stat::{file_type, stat_entry};

/// How often a directory that was emptied may be found filled again before the call gives in to whoever fills it.
const MAX_REFILLS: u32 = 10_000;

pub(super) fn delete(
    root: &Root,
    path: &GuestPath,
    recursive: bool,
    progress: &Progress,
) -> Result<FileResponse, FileFailure> {
    let fault = path.fault(FileCall::Unlink);
    // The root is a mount point as any other.
    let place = root.place(path).map_err(&fault)?.ok_or_else(|| path.fault(FileCall::Rmdir)(Errno::BUSY))?;
    let (dir, name) = (&place.dir, place.name.as_slice());
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => return Ok(FileResponse::Done),
        // Linux says EISDIR; POSIX would have EPERM, which file systems behind FUSE may hand on.
        Err(Errno::ISDIR) => {}
        Err(errno) => {
            let directory = stat_entry(dir, name).is_ok_and(|stat| file_type(&stat) == FileType::Directory);
            if !directory {
                return Err(fault(errno));
            }
        }
    }
    let fault = path.fault(FileCall::Rmdir);
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if recursive => {}
        answer => return answer.map(|()| FileResponse::Done).map_err(fault),
    }
    remove_tree(dir.as_fd(), name, progress).map_err(fault)?;
    Ok(FileResponse::Done)
}

/// Removes whatever stands behind a name, a directory with all below it. What others remove meanwhile is as good.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8], progress: &Progress) -> Result<(), Errno> {
    let base = match open_dir(parent, name, Mounts::Refuse) {
        Ok(base) => base,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return remove_file(parent, name).map(drop),
        Err(Errno::XDEV) => return Err(Errno::BUSY),
        Err(errno) => return Err(errno),
    };
    let mut descent = Descent::new(base, Mounts::Refuse)?;
    let mut refills = 0;
    loop {
        remove_below(&mut descent, &mut refills, progress)?;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => count(&mut refills)?,
            Err(errno) => return Err(errno),
        }
    }
}

/// Empties the directory a descent stands in, and comes back to it.
fn remove_below(descent: &mut Descent, refills: &mut u32, progress: &Progress) -> Result<(), Errno> {
    let mut levels = vec![remove_files(descent.current(), progress)?];
    while let Some(pending) = levels.last_mut() {
        progress.beat()?;
        if let Some(name) = pending.pop() {
            match descent.enter(&name) {
                Ok(()) => levels.push(remove_files(descent.current(), progress)?),
                Err(Errno::NOENT) => {}
                // It has been swapped for something else.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    if !remove_file(descent.current(), &name)? {
                        count(refills)?;
                        pending.push(name);
                    }
                }
                Err(Errno::XDEV) => return Err(Errno::BUSY),
                Err(errno) => return Err(errno),
            }
            continue;
        }
        let Some(left) = descent.leave()? else { return Ok(()) };
        levels.truncate(levels.len().saturating_sub(left.levels));
        match unlinkat(descent.current(), left.name.as_slice(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {
                count(refills)?;
                if let Some(pending) = levels.last_mut() {
                    pending.push(left.name);
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Removes all that isn't a directory and returns the names of those that are.
fn remove_files(dir: BorrowedFd<'_>, progress: &Progress) -> Result<Vec<Vec<u8>>, Errno> {
    let mut directories = Vec::new();
    for_each_entry(dir, progress, |name, file_type| {
        if file_type == FileType::Directory || !remove_file(dir, name)? {
            directories.push(name.to_vec());
        }
        Ok(())
    })?;
    Ok(directories)
}

/// False where the name turns out to be a directory.
fn remove_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(errno) => match stat_entry(dir, name) {
            Ok(stat) if file_type(&stat) == FileType::Directory => Ok(false),
            Err(Errno::NOENT) => Ok(true),
            _ => Err(errno),
        },
    }
}

fn count(refills: &mut u32) -> Result<(), Errno> {
    *refills += 1;
    if *refills > MAX_REFILLS { Err(Errno::NOTEMPTY) } else { Ok(()) }
}
