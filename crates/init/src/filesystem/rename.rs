//! Moving: the kernel's rename where it can, else a copy that takes its place.
//!
//! ```text
//! copy source ─► temporary sibling of the destination
//! rename source ─► temporary sibling of the source       the source can be taken away, and nobody adds to it any more
//! rename the copy ─► destination                         as atomic as any rename
//! delete the renamed source
//! ```
//! Whatever fails before the destination stands is undone and leaves the source whole.

use std::os::fd::AsFd;

use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileResponse};
use rustix::fs::{FileType, RenameFlags, StatVfsMountFlags, Statx, fstatvfs, renameat, renameat_with};
use rustix::io::Errno;

use super::copy::copy_tree;
use super::delete::remove_tree;
use super::path::GuestPath;
use super::progress::Progress;
use super::root::{Backing, Place, Root, backing};
use super::stage::temporary_name;
use super::stat::{file_type, stat_entry};

pub(super) fn rename(
    root: &Root,
    from: &GuestPath,
    to: &GuestPath,
    progress: &Progress,
) -> Result<FileResponse, FileFailure> {
    let fault = from.fault(FileCall::Rename);
    let source = root.place(from).map_err(&fault)?.ok_or_else(|| fault(Errno::BUSY))?;
    // The source is what a missing thing is reported for; whether it exists is the kernel's first question too.
    stat_entry(&source.dir, source.name.as_slice()).map_err(&fault)?;
    let fault_there = to.fault(FileCall::Rename);
    let destination = root.place(to).map_err(&fault_there)?.ok_or_else(|| fault_there(Errno::BUSY))?;
    match renameat(&source.dir, source.name.as_slice(), &destination.dir, destination.name.as_slice()) {
        Ok(()) => return Ok(FileResponse::Done),
        Err(Errno::XDEV) => {}
        Err(errno) => return Err(fault(errno)),
    }
    move_by_copy(&source, &destination, progress).map_err(|failed| match failed {
        Failed::Source(errno) => fault(errno),
        Failed::Copy(errno) => to.fault(FileCall::Copy)(errno),
        Failed::Rest(errno) => from.fault(FileCall::Unlink)(errno),
    })?;
    Ok(FileResponse::Done)
}

#[derive(Debug)]
enum Failed {
    /// The source can't be taken away, or the two don't go together.
    Source(Errno),
    Copy(Errno),
    /// The destination stands, and something of the source is left under its temporary name.
    Rest(Errno),
}

fn move_by_copy(source: &Place, destination: &Place, progress: &Progress) -> Result<(), Failed> {
    let stat = check_source(source).map_err(Failed::Source)?;
    check_destination(&stat, destination).map_err(Failed::Source)?;
    let copy = Place {
        dir: destination.dir.try_clone().map_err(|_| Failed::Copy(Errno::MFILE))?,
        name: temporary_name().map_err(Failed::Copy)?,
    };
    let copied = copy_tree(source, &copy, progress).map_err(Failed::Copy);
    let replaced = copied.and_then(|()| take_place(source, &copy, destination));
    match replaced {
        Ok(remains) => remove_tree(source.dir.as_fd(), &remains, progress).map_err(Failed::Rest),
        Err(failed) => {
            // The reason of the failure is worth more than one more failure on the way back. The heartbeat of a call
            // that was given up would stop the removal at once, hence one of its own.
            let _ = remove_tree(copy.dir.as_fd(), &copy.name, &Progress::default());
            Err(failed)
        }
    }
}

/// Puts the copy into its place while the source is out of the way. Returns the name that the source has now.
fn take_place(source: &Place, copy: &Place, destination: &Place) -> Result<Vec<u8>, Failed> {
    let (dir, name) = (&source.dir, source.name.as_slice());
    let aside = temporary_name().map_err(Failed::Source)?;
    let moved_aside = match renameat_with(dir, name, dir, aside.as_slice(), RenameFlags::NOREPLACE) {
        Ok(()) => true,
        // A directory of an overlay's lower layer can't be renamed at all, which is why it is copied.
        Err(Errno::XDEV) => false,
        Err(errno) => return Err(Failed::Source(errno)),
    };
    match renameat(&copy.dir, copy.name.as_slice(), &destination.dir, destination.name.as_slice()) {
        Ok(()) => Ok(if moved_aside { aside } else { source.name.clone() }),
        Err(errno) => {
            if moved_aside {
                // Fails only where the guest has taken the name meanwhile; its file is not ours to replace.
                let _ = renameat_with(dir, aside.as_slice(), dir, name, RenameFlags::NOREPLACE);
            }
            Err(Failed::Copy(errno))
        }
    }
}

/// Whether it looks as if the source could be deleted afterwards. The kernel says EXDEV before it looks at this.
fn check_source(source: &Place) -> Result<Statx, Errno> {
    if fstatvfs(&source.dir)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Errno::ROFS);
    }
    if backing(&source.dir)? == Backing::Proc {
        return Err(Errno::PERM);
    }
    let stat = stat_entry(&source.dir, source.name.as_slice())?;
    if stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY);
    }
    Ok(stat)
}

/// Spares a long copy that could not take its place in the end.
fn check_destination(source: &Statx, destination: &Place) -> Result<(), Errno> {
    let Ok(found) = stat_entry(&destination.dir, destination.name.as_slice()) else { return Ok(()) };
    if found.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY);
    }
    let directories = (file_type(source) == FileType::Directory, file_type(&found) == FileType::Directory);
    match directories {
        (true, false) => Err(Errno::NOTDIR),
        (false, true) => Err(Errno::ISDIR),
        _ => Ok(()),
    }
}
