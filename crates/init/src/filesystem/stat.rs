//! What an entry is, as `statx` tells it without following links.

use std::os::fd::AsFd;

use agentos_guest_protocol::filesystem::{FileType as WireFileType, Stat};
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp, makedev, statx};
use rustix::io::Errno;
use rustix::path::Arg;

/// Which object an entry is. Inode numbers are reused, so this tells apart only what lives at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    dev: (u32, u32),
    ino: u64,
}

/// Of the name itself, not of what it links to.
pub(super) fn stat_entry(dir: impl AsFd, name: impl Arg) -> Result<Statx, Errno> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, wanted())
}

pub(super) fn stat_descriptor(descriptor: impl AsFd) -> Result<Statx, Errno> {
    statx(descriptor, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, wanted())
}

pub(super) fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

pub(super) fn identity(stat: &Statx) -> Identity {
    Identity { dev: (stat.stx_dev_major, stat.stx_dev_minor), ino: stat.stx_ino }
}

/// The permission bits without set-user-id and set-group-id: those are never carried onto content that came from
/// elsewhere, as the kernel itself drops them when somebody writes.
pub(super) fn plain_permissions(stat: &Statx) -> u32 {
    u32::from(stat.stx_mode) & 0o1777
}

pub(super) fn wire_file_type(file_type: FileType) -> WireFileType {
    match file_type {
        FileType::RegularFile => WireFileType::File,
        FileType::Directory => WireFileType::Directory,
        FileType::Symlink => WireFileType::Symlink,
        _ => WireFileType::Other,
    }
}

pub(super) fn wire_stat(stat: &Statx) -> Stat {
    Stat {
        mode: u32::from(stat.stx_mode),
        size_bytes: stat.stx_size,
        blocks: stat.stx_blocks,
        dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        rdev: makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        ino: stat.stx_ino,
        nlink: u64::from(stat.stx_nlink),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        atime_ns: nanoseconds(&stat.stx_atime),
        mtime_ns: nanoseconds(&stat.stx_mtime),
        ctime_ns: nanoseconds(&stat.stx_ctime),
        birthtime_ns: birth_nanoseconds(stat),
    }
}

/// Where the file system keeps no time of birth, the oldest of the other times is shown, as Node does.
fn birth_nanoseconds(stat: &Statx) -> i64 {
    if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
        nanoseconds(&stat.stx_btime)
    } else {
        nanoseconds(&stat.stx_mtime).min(nanoseconds(&stat.stx_ctime))
    }
}

/// Saturates: a guest may set times that 64 bits of nanoseconds (until 2262) don't reach.
fn nanoseconds(time: &StatxTimestamp) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME
}
