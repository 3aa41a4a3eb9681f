//! Mounts in the VM: at boot, and live ones through PID 1, which alone has the right to mount.
//!
//! Targets are resolved without following any link, and attached to by descriptor: a guest that swaps a directory for
//! a link between the two finds the mount where the directory was. A target below a mount whose server is silent holds
//! whoever resolves it, so live requests are errands.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use agentos_guest_protocol::init::{Failure, Response};
use agentos_guest_protocol::mount::MountRequest;
use agentos_linux::Errno;
use agentos_linux::mount::{self, Restrictions};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::mount::UnmountFlags;

use crate::wire::failure;

/// A directory by descriptor, for paths below it.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the directory at an absolute path below `root`, making what is missing.
pub(crate) fn make_target(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let mut current = open_below(root, Path::new("."))?;
    for component in path.components() {
        let name = match component {
            Component::RootDir => continue,
            Component::Normal(name) => Path::new(name),
            Component::CurDir | Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
        };
        current = match open_below(current.as_fd(), name) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open_below(current.as_fd(), name)?
            }
            other => other?,
        };
    }
    Ok(current)
}

/// Opens the regular file at an absolute path below `root`, making it and what is missing above it.
fn make_file_target(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let directory = make_target(root, parent)?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o644))?;
    let stat = rustix::fs::fstat(&target)?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::RegularFile => Ok(target),
        _ => Err(Errno::INVAL),
    }
}

fn open_below(directory: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, name, DIRECTORY, Mode::empty(), resolve)
}

/// A tmpfs that belongs to the VM's user.
pub(crate) fn memory(max_bytes: u64, read_only: bool, user: u32) -> Result<OwnedFd, Errno> {
    let tree = mount::tmpfs(max_bytes, 0, 0o755)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(user));
    rustix::fs::chownat(&tree, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    if read_only {
        mount::restrict(tree.as_fd(), Restrictions { read_only, ..Restrictions::default() }, None)?;
    }
    Ok(tree)
}

/// What a message about a request says.
pub(crate) fn call(request: &MountRequest) -> String {
    let (call, target) = match request {
        MountRequest::Attach { target, .. } | MountRequest::Memory { target, .. } => ("mount", target),
        MountRequest::Unmount { target } => ("umount", target),
    };
    format!("{call} '{}'", String::from_utf8_lossy(target))
}

/// A live mount or unmount. May wait for a file system.
pub(crate) fn handle(
    request: &MountRequest,
    descriptors: Vec<OwnedFd>,
    user: u32,
) -> Result<Response, Failure> {
    match request {
        MountRequest::Attach { target, file } => {
            let tree = descriptors
                .into_iter()
                .next()
                .ok_or_else(|| Failure::System(failure("receive", "mount", Errno::BADF)))?;
            attach(tree, target, if *file { make_file_target } else { make_target })
        }
        MountRequest::Memory { target, max_bytes, read_only } => {
            let tree = memory(*max_bytes, *read_only, user)
                .map_err(|errno| Failure::System(failure("mount tmpfs", target.as_slice(), errno)))?;
            attach(tree, target, make_target)
        }
        MountRequest::Unmount { target } => unmount(target),
    }
}

fn attach(
    tree: OwnedFd,
    target: &[u8],
    make: fn(BorrowedFd<'_>, &Path) -> Result<OwnedFd, Errno>,
) -> Result<Response, Failure> {
    let path = Path::new(std::ffi::OsStr::from_bytes(target));
    let call = || -> Result<(), Errno> {
        let root = open_directory(Path::new("/"))?;
        let place = make(root.as_fd(), path)?;
        mount::attach(tree.as_fd(), place.as_fd())
    };
    call().map_err(|errno| Failure::System(failure("mount", target, errno)))?;
    Ok(Response::Done)
}

/// Takes the topmost mount at a path away, or at least out of sight where somebody still uses it.
///
/// The guest may have moved a parent away and put a link in its place, to have a mask of /proc taken off instead. So
/// the parent is opened without following links and the last name is taken relative to it: that holds no reference to
/// the mount itself, which would make it busy.
fn unmount(target: &[u8]) -> Result<Response, Failure> {
    let path = Path::new(std::ffi::OsStr::from_bytes(target));
    let fail = |errno| Failure::System(failure("umount", target, errno));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(fail(Errno::INVAL));
    };
    let root = open_directory(Path::new("/")).map_err(fail)?;
    let below = parent.strip_prefix("/").unwrap_or(parent);
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let parent = open_below(root.as_fd(), below).map_err(fail)?;
    // By way of /proc, for the working directory belongs to all threads.
    let place = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    match rustix::mount::unmount(&place, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(Response::Done),
        Err(Errno::BUSY) => rustix::mount::unmount(&place, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            .map(|()| Response::UnmountedBusy)
            .map_err(fail),
        Err(errno) => Err(fail(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parents_of_a_target_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let root = open_directory(directory.path()).unwrap();
        make_target(root.as_fd(), Path::new("/a/b/c")).unwrap();
        assert!(directory.path().join("a/b/c").is_dir());
    }

    #[test]
    fn a_link_on_the_way_to_a_target_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        let root = open_directory(directory.path()).unwrap();
        assert_eq!(make_target(root.as_fd(), Path::new("/link/x")).unwrap_err(), Errno::LOOP);
        assert!(!outside.path().join("x").exists());
    }

    #[test]
    fn a_file_is_made_where_a_file_is_to_be_seen_and_nothing_else_is_taken_for_one() {
        let directory = tempfile::tempdir().unwrap();
        let root = open_directory(directory.path()).unwrap();
        for _ in 0..2 {
            make_file_target(root.as_fd(), Path::new("/bin/tool")).unwrap();
        }
        assert_eq!(std::fs::metadata(directory.path().join("bin/tool")).unwrap().len(), 0);
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("bin/link")).unwrap();
        let refused = |path: &str| make_file_target(root.as_fd(), Path::new(path)).unwrap_err();
        assert_eq!(refused("/bin/link"), Errno::LOOP);
        assert_eq!(refused("/bin"), Errno::ISDIR);
    }

    #[test]
    fn a_file_is_no_target() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let root = open_directory(directory.path()).unwrap();
        assert_eq!(make_target(root.as_fd(), Path::new("/file")).unwrap_err(), Errno::NOTDIR);
    }
}
