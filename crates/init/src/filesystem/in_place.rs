//! Writing into the file that is there, where renaming another over it would change what it is: a file with several
//! names, a mount point, a device, a file whose owner can't be given to a new one.
//!
//! Readers may see the new content grow here. What can be promised is that a full disk leaves the old content: the
//! room is reserved before the first byte changes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, fallocate, fchmod, ftruncate};
use rustix::io::{Errno, pread, pwrite};

use super::progress::Progress;
use super::root::{Backing, Place, backing, open_entry};
use super::stat::{file_type, plain_permissions, stat_descriptor};
use super::streams::write_all;

const CHUNK_BYTES: usize = 128 * 1024;

/// Where new content comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    Memory(&'a [u8]),
    /// A regular file, from its beginning.
    File(BorrowedFd<'a>),
}

pub(super) fn overwrite(place: &Place, source: Source<'_>, progress: &Progress) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_entry(&place.dir, &place.name, flags).map_err(|errno| match errno {
        // A socket, or a FIFO that nobody reads.
        Errno::NXIO => Errno::INVAL,
        errno => errno,
    })?;
    // Nothing in /proc is a file to keep content in, and init's own entries there are its memory.
    if backing(&file)? == Backing::Proc {
        return Err(Errno::ACCESS);
    }
    let stat = stat_descriptor(&file)?;
    match file_type(&stat) {
        FileType::RegularFile => {
            replace(&file, stat.stx_size, source, progress)?;
            // With the VM root's rights the kernel leaves the set-id bits on.
            if u32::from(stat.stx_mode) & 0o6000 != 0 {
                fchmod(&file, Mode::from_raw_mode(plain_permissions(&stat)))?;
            }
            Ok(())
        }
        FileType::CharacterDevice => {
            each_chunk(source, 0..u64::MAX, progress, |chunk, _| write_all(&file, chunk)).map(drop)
        }
        _ => Err(Errno::INVAL),
    }
}

/// Gives a regular file of `old_len` bytes other content.
pub(super) fn replace(
    file: &OwnedFd,
    old_len: u64,
    source: Source<'_>,
    progress: &Progress,
) -> Result<(), Errno> {
    let len = source.len()?;
    let write_range = |range| each_chunk(source, range, progress, |chunk, at| write_all_at(file, chunk, at));
    if len > 0 {
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, len) {
            Ok(()) => {}
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                // Gives back what was reserved beyond the end.
                ftruncate(file, old_len)?;
                return Err(errno);
            }
            // It can't reserve. The part beyond the old end goes first: it is what needs room most, and it can be
            // taken back.
            Err(_) if len > old_len => {
                if let Err(errno) = write_range(old_len..len) {
                    ftruncate(file, old_len)?;
                    return Err(errno);
                }
                write_range(0..old_len)?;
                return Ok(());
            }
            Err(_) => {}
        }
    }
    let written = write_range(0..len)?;
    ftruncate(file, written)
}

impl Source<'_> {
    fn len(&self) -> Result<u64, Errno> {
        match self {
            Self::Memory(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(stat_descriptor(file)?.stx_size),
        }
    }
}

/// Calls `sink` with the source's bytes in `range` and their offset; returns where it ended.
fn each_chunk(
    source: Source<'_>,
    range: std::ops::Range<u64>,
    progress: &Progress,
    mut sink: impl FnMut(&[u8], u64) -> Result<(), Errno>,
) -> Result<u64, Errno> {
    match source {
        Source::Memory(bytes) => {
            let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(bytes.len());
            let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(end);
            sink(&bytes[start..end], start as u64)?;
            Ok(end as u64)
        }
        Source::File(file) => {
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut at = range.start;
            while at < range.end {
                progress.beat()?;
                let wanted = usize::try_from(range.end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                match pread(file.as_fd(), &mut buffer[..wanted], at) {
                    Ok(0) => break,
                    Ok(count) => {
                        sink(&buffer[..count], at)?;
                        at += count as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(at)
        }
    }
}

pub(super) fn write_all_at(to: impl AsFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match pwrite(&to, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
