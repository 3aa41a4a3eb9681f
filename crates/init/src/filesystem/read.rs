//! Reading files: small ones into the answer, larger ones through a descriptor.

use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileResponse, MAX_INLINE_CONTENT_BYTES};
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, OFlags, SeekFrom, Statx, seek};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};

use super::calls::Outcome;
use super::path::GuestPath;
use super::root::{Backing, Root, backing, refuse_own_proc_entry};
use super::stat::{file_type, stat_descriptor};
use super::streams::Pumps;

/// Where the size isn't known beforehand, as in /proc.
const FIRST_READ_BYTES: usize = 4096;

pub(super) fn read_file(root: &Root, pumps: &Pumps, path: &GuestPath) -> Result<Outcome, FileFailure> {
    let (file, stat) = open_regular(root, path)?;
    let fault = path.fault(FileCall::Read);
    let backing = backing(&file).map_err(&fault)?;
    if backing == Backing::Proc {
        refuse_own_proc_entry(file.as_fd()).map_err(path.fault(FileCall::Open))?;
    }
    let size_bytes = stat.stx_size;
    if backing == Backing::Plain && size_bytes > MAX_INLINE_CONTENT_BYTES as u64 {
        return Ok(Outcome::with_descriptor(FileResponse::Stream { size_bytes }, file));
    }
    let content = read_up_to_limit(&file, size_bytes).map_err(&fault)?;
    if content.len() <= MAX_INLINE_CONTENT_BYTES {
        return Ok(FileResponse::Content(Bytes::from(content)).into());
    }
    // There is more than stat said, or than fits.
    if backing == Backing::Plain {
        seek(&file, SeekFrom::Start(0)).map_err(&fault)?;
        return Ok(Outcome::with_descriptor(FileResponse::Stream { size_bytes }, file));
    }
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(&fault)?;
    pumps.start(content, file, writer).map_err(&fault)?;
    Ok(Outcome::with_descriptor(FileResponse::Stream { size_bytes }, reader))
}

/// Opening a FIFO or a device is felt by others, so the first look opens nothing. The guest may swap the file before
/// the second, which therefore judges again.
fn open_regular(root: &Root, path: &GuestPath) -> Result<(OwnedFd, Statx), FileFailure> {
    let fault = path.fault(FileCall::Open);
    let located = root.locate(path.as_bytes(), OFlags::empty()).map_err(&fault)?;
    refuse_irregular(path, &stat_descriptor(&located).map_err(&fault)?)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open(path.as_bytes(), flags).map_err(&fault)?;
    let stat = stat_descriptor(&file).map_err(&fault)?;
    refuse_irregular(path, &stat)?;
    Ok((file, stat))
}

fn refuse_irregular(path: &GuestPath, stat: &Statx) -> Result<(), FileFailure> {
    match file_type(stat) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(path.fault(FileCall::Read)(Errno::ISDIR)),
        _ => Err(path.fault(FileCall::Open)(Errno::INVAL)),
    }
}

/// Reads to the end, or one byte more than an answer may hold.
fn read_up_to_limit(file: &OwnedFd, size_bytes: u64) -> Result<Vec<u8>, Errno> {
    const LIMIT: usize = MAX_INLINE_CONTENT_BYTES + 1;
    let expected = usize::try_from(size_bytes).unwrap_or(LIMIT);
    let first = if expected == 0 { FIRST_READ_BYTES } else { (expected + 1).min(LIMIT) };
    let mut content = Vec::with_capacity(first);
    while content.len() < LIMIT {
        if content.len() == content.capacity() {
            let more = content.len().min(LIMIT - content.len());
            content.reserve_exact(more);
        }
        match read(file, spare_capacity(&mut content)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(content)
}
