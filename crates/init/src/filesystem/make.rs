//! Making directories, and asking what is there.

use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileResponse};
use rustix::fs::{FileType, Mode, OFlags, mkdirat};
use rustix::io::Errno;

use super::path::GuestPath;
use super::root::Root;
use super::stat::{file_type, stat_descriptor, wire_stat};

const NEW_DIRECTORY: Mode = Mode::from_raw_mode(0o755);

pub(super) fn mkdir(root: &Root, path: &GuestPath, recursive: bool) -> Result<FileResponse, FileFailure> {
    let fault = path.fault(FileCall::Mkdir);
    if recursive {
        make_all(root, path.as_bytes()).map_err(&fault)?;
        return Ok(FileResponse::Done);
    }
    let place = root.place(path).map_err(&fault)?.ok_or_else(|| fault(Errno::EXIST))?;
    mkdirat(&place.dir, place.name.as_slice(), NEW_DIRECTORY).map_err(&fault)?;
    Ok(FileResponse::Done)
}

/// Makes a directory and the parents it lacks; what exists stays as it is. Every step starts at the root again, so
/// that a directory which the guest swaps for a link meanwhile leads somewhere else inside at most.
pub(super) fn make_all(root: &Root, path: &[u8]) -> Result<(), Errno> {
    let mut missing = Vec::new();
    let mut end = path.len();
    // Upwards to the deepest directory there is...
    loop {
        match root.locate(&path[..end], OFlags::DIRECTORY) {
            Ok(_) => break,
            Err(Errno::NOENT) if end > 1 => {
                missing.push(end);
                end = path[..end].iter().rposition(|byte| *byte == b'/').unwrap_or(0).max(1);
            }
            // Something that isn't a directory stands in the last place.
            Err(Errno::NOTDIR) if end == path.len() && exists_as_other(root, path)? => {
                return Err(Errno::EXIST);
            }
            Err(errno) => return Err(errno),
        }
    }
    // ... and down again.
    while let Some(child_end) = missing.pop() {
        let dir = root.locate(&path[..end], OFlags::DIRECTORY)?;
        let name_start = if end == 1 { 1 } else { end + 1 };
        match mkdirat(&dir, &path[name_start..child_end], NEW_DIRECTORY) {
            // Somebody else was faster, or the name is a link that leads nowhere: the next step will tell.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        end = child_end;
    }
    root.locate(path, OFlags::DIRECTORY).map(drop)
}

fn exists_as_other(root: &Root, path: &[u8]) -> Result<bool, Errno> {
    match root.locate(path, OFlags::empty()) {
        Ok(found) => Ok(file_type(&stat_descriptor(&found)?) != FileType::Directory),
        Err(_) => Ok(false),
    }
}

pub(super) fn stat(root: &Root, path: &GuestPath) -> Result<FileResponse, FileFailure> {
    let found = root.locate(path.as_bytes(), OFlags::empty());
    let stat = found.and_then(stat_descriptor).map_err(path.fault(FileCall::Stat))?;
    Ok(FileResponse::Stat(wire_stat(&stat)))
}

/// A path that can't exist doesn't: too long a name, a file in the middle, links in a circle.
pub(super) fn exists(root: &Root, path: &GuestPath) -> Result<FileResponse, FileFailure> {
    match root.locate(path.as_bytes(), OFlags::empty()) {
        Ok(_) => Ok(FileResponse::Exists(true)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
            Ok(FileResponse::Exists(false))
        }
        Err(errno) => Err(path.fault(FileCall::Stat)(errno)),
    }
}
