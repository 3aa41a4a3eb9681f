//! A directory of the host that keeps what a VM writes, from the wish to the lock.
//!
//! ```text
//! path ──► opened, made where it is missing ──► looked at ──► marked ──► locked ──► to the launcher, with the boot plan
//! ```
//! What is looked at is the directory itself and what lies above it. What lies in it is the guest's: nothing there is
//! opened here but the mark, a plain file of our own beside the layers, whose lock says that a VM uses the directory.
//! Nobody here holds that lock for long: the launcher lets go of it when nothing of the VM is left, the VM's init when it
//! ends otherwise, so that neither a dispose nor a killed sidecar gives the directory away too early.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentos_guest_protocol::launcher::{BootFailure, Storage};
use agentos_linux::mount::file_system;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, XattrFlags, fsetxattr, fstat, mkdirat,
    open, openat, statat,
};
use rustix::io::Errno;
use tokio::time::Instant;

use crate::path::lossy;

/// A plain file beside the layers: what lies here is a VM's, and whoever holds its lock uses it.
const MARK: &str = ".agentos-storage";

/// For people who find it.
const MARK_TEXT: &[u8] = b"This directory keeps the files of an agentOS VM.\n";

/// Proves that the file system has extended attributes for users, in which overlayfs keeps what it must remember.
const PROBE: &str = "user.agentos.storage";

/// As long as the launcher gives directories of the host: a server across a network answers within it or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A VM whose client or sidecar has just ended may be on its way out: that takes at most as long.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the lock is asked for meanwhile; nothing tells when a lock is free without waiting for it for ever.
const RETRY: Duration = Duration::from_millis(10);

/// File systems that have all attributes and can't take an overlay's upper layer for another reason.
const UNFIT: [(&[u8], &str); 8] = [
    (b"overlay", "an overlay can't be the upper layer of another"),
    (b"nfs", NETWORK),
    (b"nfs4", NETWORK),
    (b"cifs", NETWORK),
    (b"smb3", NETWORK),
    (b"ceph", NETWORK),
    (b"9p", NETWORK),
    (b"virtiofs", "the kernel does not know when its files change"),
];

const NETWORK: &str = "overlayfs has no upper layers on file servers";

/// Where what a VM writes is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StorageOptions {
    /// What the VM writes goes with it.
    #[default]
    Memory,
    /// Absolute path of a directory of the host that keeps it.
    Directory(Vec<u8>),
}

/// A storage directory that can't be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("storage directory {}: {problem}", path.display())]
pub struct StorageError {
    pub path: PathBuf,
    pub problem: StorageProblem,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageProblem {
    #[error("another VM uses it")]
    InUse,
    #[error("it is no directory; a link is not followed")]
    NotADirectory,
    #[error("it belongs to user {owner}, and user {expected} runs the sidecar")]
    Owner { owner: u32, expected: u32 },
    #[error("others may enter it: its mode is {mode:04o} and has to be 0700")]
    Mode { mode: u32 },
    #[error("it lies in a VM's storage, in or above {}", .0.display())]
    Inside(PathBuf),
    #[error("the root directory can't be one")]
    Root,
    #[error("it holds {entry} and no VM's files; an empty directory is needed, or a name that is not taken")]
    NotOurs { entry: String },
    #[error("{MARK} in it is no file of ours")]
    Mark,
    #[error("its file system is {file_system}: {reason}")]
    FileSystem { file_system: String, reason: &'static str },
    #[error("its file system did not answer within {} s", .after.as_secs())]
    TimedOut { after: Duration },
    #[error("{call}: {source}")]
    Call {
        call: &'static str,
        #[source]
        source: io::Error,
    },
    /// Launcher or init could not use what was found in it.
    #[error("{}, on a file system that is {file_system}", crate::errno::describe(.failure))]
    Refused { failure: BootFailure, file_system: String },
    #[error("fault while it was looked at")]
    Fault,
}

/// A directory that this VM alone uses, on its way to the launcher.
#[derive(Debug)]
pub(crate) struct LockedStorage {
    pub(crate) storage: KnownStorage,
    pub(crate) lock: OwnedFd,
}

#[derive(Debug)]
pub(crate) struct KnownStorage {
    pub(crate) storage: Storage,
    file_system: String,
}

/// Makes, checks and locks a directory.
pub(crate) async fn lock(path: &[u8]) -> Result<LockedStorage, StorageError> {
    lock_within(path, PATIENCE).await
}

async fn lock_within(path: &[u8], patience: Duration) -> Result<LockedStorage, StorageError> {
    let path = Path::new(OsStr::from_bytes(path)).to_owned();
    let failed = |problem| StorageError { path: path.clone(), problem };
    let inspected = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || inspect(&path))
    };
    let found = match tokio::time::timeout(ANSWER_TIMEOUT, inspected).await {
        Ok(Ok(found)) => found.map_err(failed)?,
        Ok(Err(_panicked)) => return Err(failed(StorageProblem::Fault)),
        Err(_) => return Err(failed(StorageProblem::TimedOut { after: ANSWER_TIMEOUT })),
    };
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(&found.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(found),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(RETRY).await,
            Err(Errno::WOULDBLOCK) => return Err(failed(StorageProblem::InUse)),
            Err(errno) => return Err(failed(call("flock")(errno))),
        }
    }
}

impl KnownStorage {
    /// Whether a boot failed for what is in the storage: then it says so by a path that begins with the directory's own.
    pub(crate) fn blame(&self, failure: &BootFailure) -> Option<StorageError> {
        let path = Path::new(OsStr::from_bytes(&self.storage.path));
        let object = Path::new(OsStr::from_bytes(&failure.object));
        object.starts_with(path).then(|| {
            let (failure, file_system) = (failure.clone(), self.file_system.clone());
            StorageError { path: path.to_owned(), problem: StorageProblem::Refused { failure, file_system } }
        })
    }
}

/// Everything but the lock. May wait for a file system.
fn inspect(path: &Path) -> Result<LockedStorage, StorageProblem> {
    check_name(path)?;
    let directory = open_or_make(path)?;
    let stat = fstat(&directory).map_err(call("fstat"))?;
    check_owner(&stat)?;
    let file_system = check_file_system(&directory)?;
    let lock = open_mark(&directory)?;
    let path = path.as_os_str().as_bytes().to_vec().into();
    let storage = Storage { path, device: stat.st_dev, inode: stat.st_ino };
    Ok(LockedStorage { storage: KnownStorage { storage, file_system }, lock })
}

/// Looks at every directory of the path from the top before it goes on through it: what lies in a storage is a guest's,
/// and no name in it is followed.
fn check_name(path: &Path) -> Result<(), StorageProblem> {
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    let storage = above.into_iter().rev().find(|directory| is_marked(CWD, &directory.join(MARK)));
    storage.map_or(Ok(()), |storage| Err(StorageProblem::Inside(storage.to_owned())))
}

fn is_marked(directory: impl AsFd, mark: &Path) -> bool {
    let mark = statat(directory, mark, AtFlags::SYMLINK_NOFOLLOW);
    mark.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

fn open_or_make(path: &Path) -> Result<OwnedFd, StorageProblem> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(StorageProblem::Root);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = open(above, flags, Mode::empty()).map_err(not_a_directory("open parent"))?;
    check_parents(&parent, above)?;
    match openat(&parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => {}
        opened => return opened.map_err(not_a_directory("open")),
    }
    match mkdirat(&parent, name, Mode::RWXU) {
        // Made by somebody else meanwhile: then it is looked at like any other.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(call("mkdir")(errno)),
    }
    openat(&parent, name, DIRECTORY, Mode::empty()).map_err(not_a_directory("open"))
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn not_a_directory(name: &'static str) -> impl Fn(Errno) -> StorageProblem {
    move |errno| match errno {
        Errno::NOTDIR | Errno::LOOP => StorageProblem::NotADirectory,
        errno => call(name)(errno),
    }
}

/// Others could prepare what the VM finds, or use what a guest has made there with the bits that the base's own files
/// had.
fn check_owner(stat: &Stat) -> Result<(), StorageProblem> {
    let expected = rustix::process::geteuid().as_raw();
    if stat.st_uid != expected {
        return Err(StorageProblem::Owner { owner: stat.st_uid, expected });
    }
    let mode = stat.st_mode & 0o777;
    if mode == 0o700 { Ok(()) } else { Err(StorageProblem::Mode { mode }) }
}

/// The name of the file system.
fn check_file_system(directory: &OwnedFd) -> Result<String, StorageProblem> {
    let name = file_system(directory.as_fd());
    let refuse = |reason| StorageProblem::FileSystem { file_system: kind_name(name.as_deref()), reason };
    if let Some((_, reason)) = UNFIT.iter().find(|(unfit, _)| name.as_deref() == Some(*unfit)) {
        return Err(refuse(reason));
    }
    match fsetxattr(directory, PROBE, b"1", XattrFlags::empty()) {
        Ok(()) => Ok(kind_name(name.as_deref())),
        Err(Errno::OPNOTSUPP) => {
            Err(refuse("it has no extended attributes for users, in which overlayfs keeps what was deleted"))
        }
        Err(errno) => Err(call("setxattr")(errno)),
    }
}

fn kind_name(name: Option<&[u8]>) -> String {
    name.map_or_else(|| "of an unknown kind".to_owned(), |name| lossy(name).into_owned())
}

/// A guest could change what lies in its own storage, another VM's included; and a link on the path may have led there.
fn check_parents(parent: &OwnedFd, path: &Path) -> Result<(), StorageProblem> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let identity = |directory: &OwnedFd| fstat(directory).map(|stat| (stat.st_dev, stat.st_ino));
    let mut current = openat(parent, ".", flags, Mode::empty()).map_err(call("open parent"))?;
    loop {
        if is_marked(&current, Path::new(MARK)) {
            return Err(StorageProblem::Inside(path.to_owned()));
        }
        let above = match openat(&current, "..", flags, Mode::empty()) {
            Ok(above) => above,
            // What the sidecar can't look into is no storage of its user's.
            Err(Errno::ACCESS) => return Ok(()),
            Err(errno) => return Err(call("open parent")(errno)),
        };
        let same = identity(&above).and_then(|above| Ok(above == identity(&current)?));
        if same.map_err(call("fstat"))? {
            return Ok(());
        }
        current = above;
    }
}

/// The mark, made where the directory is empty: in one that holds anything else, layers would be mixed with it.
fn open_mark(directory: &OwnedFd) -> Result<OwnedFd, StorageProblem> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mark = match openat(directory, MARK, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            refuse_entries(directory)?;
            let made = openat(directory, MARK, flags | OFlags::CREATE, Mode::RUSR | Mode::WUSR);
            let made = made.map_err(call("make mark"))?;
            rustix::io::write(&made, MARK_TEXT).map_err(call("write mark"))?;
            made
        }
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(StorageProblem::Mark),
        opened => opened.map_err(call("open mark"))?,
    };
    let stat = fstat(&mark).map_err(call("fstat"))?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if !ours || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(StorageProblem::Mark);
    }
    Ok(mark)
}

fn refuse_entries(directory: &OwnedFd) -> Result<(), StorageProblem> {
    for entry in Dir::read_from(directory).map_err(call("read"))? {
        let entry = entry.map_err(call("read"))?;
        let name = entry.file_name().to_bytes();
        // `lost+found` is the file system's; the mark is that of somebody who was quicker.
        if ![&b"."[..], b"..", b"lost+found", MARK.as_bytes()].contains(&name) {
            return Err(StorageProblem::NotOurs { entry: lossy(name).into_owned() });
        }
    }
    Ok(())
}

fn call(name: &'static str) -> impl Fn(Errno) -> StorageProblem {
    move |errno| StorageProblem::Call { call: name, source: errno.into() }
}

#[cfg(test)]
mod tests;
