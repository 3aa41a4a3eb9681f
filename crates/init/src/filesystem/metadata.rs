//! Carrying a file's owner, mode, times and extended attributes over to another.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    Gid, Mode, Statx, StatxTimestamp, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr,
    flistxattr, flistxattr_query, fremovexattr, fsetxattr,
};
use rustix::io::Errno;

use super::stat::{plain_permissions, stat_descriptor};

/// The kernel's own limits for a list of names and for one value.
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// File capabilities go when somebody writes to a file, and never come along with a copy.
const CAPABILITIES: &[u8] = b"security.capability";

/// Makes `to` look like `from`, or fails: a replaced file must not change its owner.
pub(super) fn take_over(from: BorrowedFd<'_>, old: &Statx, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let new = stat_descriptor(to)?;
    if (new.stx_uid, new.stx_gid) != (old.stx_uid, old.stx_gid) {
        fchown(to, Some(Uid::from_raw(old.stx_uid)), Some(Gid::from_raw(old.stx_gid)))?;
    }
    copy_xattrs(from, to, Err)?;
    // What the directory gave to the new file and the old one doesn't have, such as a default ACL.
    let kept = xattr_names(from)?;
    for name in xattr_names(to)?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !kept.split(|byte| *byte == 0).any(|old| old == name) {
            fremovexattr(to, name)?;
        }
    }
    fchmod(to, Mode::from_raw_mode(plain_permissions(old)))
}

/// Makes `to` look like `from` as far as its file system can: an owner it doesn't know, or an attribute it can't
/// store, is left out, as mv does.
pub(super) fn resemble(from: BorrowedFd<'_>, old: &Statx, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let owner = fchown(to, Some(Uid::from_raw(old.stx_uid)), Some(Gid::from_raw(old.stx_gid)));
    lenient(owner)?;
    copy_xattrs(from, to, lenient_errno)?;
    lenient(fchmod(to, Mode::from_raw_mode(plain_permissions(old))))
}

pub(super) fn lenient(result: Result<(), Errno>) -> Result<(), Errno> {
    result.or_else(lenient_errno)
}

fn lenient_errno(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OVERFLOW | Errno::OPNOTSUPP => Ok(()),
        errno => Err(errno),
    }
}

pub(super) fn times(stat: &Statx) -> Timestamps {
    let spec = |time: &StatxTimestamp| Timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec.into() };
    Timestamps { last_access: spec(&stat.stx_atime), last_modification: spec(&stat.stx_mtime) }
}

/// `refused` judges an attribute that could not be set.
fn copy_xattrs(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    refused: fn(Errno) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for name in xattr_names(from)?.split(|byte| *byte == 0) {
        if name.is_empty() || name == CAPABILITIES {
            continue;
        }
        let value = match xattr(from, name) {
            Ok(value) => value,
            // Gone meanwhile, or listed without being readable.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(errno) => {
                refused(errno)?;
                continue;
            }
        };
        // Labels that the kernel gives to every new file need no right to be set when they are the same anyway.
        if xattr(to, name).is_ok_and(|present| present == value) {
            continue;
        }
        fsetxattr(to, name, &value, XattrFlags::empty()).or_else(refused)?;
    }
    Ok(())
}

/// Names that end in NUL each.
fn xattr_names(file: impl AsFd) -> Result<Vec<u8>, Errno> {
    // Most files have none, and asking for the length alone says so.
    match flistxattr_query(&file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(errno) => return Err(errno),
    }
    let mut names = vec![0; MAX_XATTR_BYTES];
    let len = flistxattr(&file, names.as_mut_slice())?;
    names.truncate(len);
    Ok(names)
}

fn xattr(file: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; MAX_XATTR_BYTES];
    let len = fgetxattr(&file, name, value.as_mut_slice())?;
    value.truncate(len);
    Ok(value)
}
