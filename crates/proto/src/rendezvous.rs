//! Where a user's clients and sidecars meet: the part of the contract that is files, which no message can carry.
//!
//! ```text
//! $XDG_RUNTIME_DIR/agentos, /run/agentos as root, else /tmp/agentos-UID
//!   NAME.sock        the sidecar listens; NAME is a pool or the id of an explicit sidecar
//!   NAME.sock.lock   held by the sidecar while it lives
//!   NAME.lock.start  held by a client while it starts the sidecar
//!   NAME.log         standard error of a sidecar that a client started; one that ends well takes an explicit one's along
//! ```
//! Everything in the directory is trusted, so whoever is about to use it checks that nobody else can put anything there.
//! Each file is closed to others (0600), so that they may look into a directory that somebody chose.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Long enough for any name people choose, short enough for a socket path below /run/user.
pub const MAX_NAME_BYTES: usize = 64;

/// `sockaddr_un` has 108 bytes for a path, its NUL included.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// What the name of every sidecar's socket ends with.
pub const SOCKET_SUFFIX: &str = ".sock";

/// The lock of a socket is named as the socket with this after it.
pub const LOCK_SUFFIX: &str = ".lock";

/// What the name of a lock that a client starts a sidecar under ends with.
pub const START_LOCK_SUFFIX: &str = ".lock.start";

/// Whether pools, sidecars and detached VMs may be called so: names become names of files and words of commands.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// The user's directory of runtime files, where nobody names another.
#[must_use]
pub fn default_directory() -> PathBuf {
    directory_for(std::env::var_os("XDG_RUNTIME_DIR"), rustix::process::geteuid().as_raw())
}

fn directory_for(xdg_runtime_dir: Option<OsString>, uid: u32) -> PathBuf {
    // The specification of these variables has a relative path ignored.
    match xdg_runtime_dir.map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(xdg) => xdg.join("agentos"),
        None if uid == 0 => PathBuf::from("/run/agentos"),
        None => PathBuf::from(format!("/tmp/agentos-{uid}")),
    }
}

/// Why a directory can't be the place to meet.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It can't be made or looked at.
    #[error("cannot create the runtime directory {}", .path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others own it or may write to it.
    #[error(
        "the runtime directory {} must belong to uid {uid} and be writable by nobody else, but its owner is {owner} and \
         its mode {mode:04o}", .path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Who we are.
        uid: u32,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

/// Makes the directory if need be, closed to others, and refuses one that somebody else could have made or can write to.
///
/// # Errors
///
/// When it can't be made, is no directory, or others could put something there.
pub fn make_private(path: &Path) -> Result<(), DirectoryError> {
    let failed = |source| DirectoryError::Create { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    // In /tmp, a link to a directory of ours would pass for one.
    let metadata = path.symlink_metadata().map_err(failed)?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        return Err(DirectoryError::NotPrivate { path: path.to_owned(), uid, owner, mode });
    }
    Ok(())
}

/// The files of one sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Where it listens.
    pub socket: PathBuf,
    /// Held while it is started.
    pub start_lock: PathBuf,
    /// What it complains.
    pub log: PathBuf,
}

impl Rendezvous {
    /// Those of the sidecar with this name.
    #[must_use]
    pub fn new(directory: &Path, name: &str) -> Self {
        Self {
            socket: directory.join(format!("{name}{SOCKET_SUFFIX}")),
            start_lock: directory.join(format!("{name}{START_LOCK_SUFFIX}")),
            log: directory.join(format!("{name}.log")),
        }
    }

    /// Those of the sidecar that listens here; `None` where the path is not one that clients choose.
    #[must_use]
    pub fn of_socket(socket: &Path) -> Option<Self> {
        let name = socket.file_name()?.to_str()?.strip_suffix(SOCKET_SUFFIX)?;
        Some(Self::new(socket.parent()?, name))
    }
}

/// A locked file that is removed when its holder ends. The kernel drops the lock with the process: a file that lies
/// about unlocked is nobody's.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl LockFile {
    /// The lock of the socket at `path`, or `None` where somebody alive has it.
    ///
    /// # Errors
    ///
    /// When the file can't be made or locked.
    pub fn beside(path: &Path) -> io::Result<Option<Self>> {
        Self::try_take(Path::new(&[path.as_os_str(), OsStr::new(LOCK_SUFFIX)].join(OsStr::new(""))))
    }

    /// Takes the lock, or `None` where somebody alive has it.
    ///
    /// # Errors
    ///
    /// When the file can't be made or locked.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        Self::lock_with(path, |file| match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        })
    }

    /// Takes the lock and blocks the thread for as long as somebody alive has it.
    ///
    /// # Errors
    ///
    /// When the file can't be made or locked.
    pub fn take(path: &Path) -> io::Result<Self> {
        loop {
            if let Some(taken) = Self::lock_with(path, |file| file.lock().map(|()| true))? {
                return Ok(taken);
            }
        }
    }

    fn lock_with(path: &Path, lock: impl Fn(&File) -> io::Result<bool>) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
            if !lock(&file)? {
                return Ok(None);
            }
            // Its former holder may have removed it between our open and our lock: then this lock guards nothing.
            let ours = file.metadata()?;
            match fs::symlink_metadata(path) {
                Ok(there) if there.ino() == ours.ino() && there.dev() == ours.dev() => {
                    return Ok(Some(Self { path: path.to_owned(), _file: file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Removed while still locked; whoever opened it before sees another file at the path and tries again. Where it
        // can't be removed it stays as a file that nobody has locked.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_or_need_quoting_are_none() {
        for name in ["", ".", "..", "../x", ".hidden", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(!is_name(name), "{name:?} was taken");
        }
        for name in ["default", "team-1.blue_2", &"x".repeat(64)] {
            assert!(is_name(name), "{name:?} was refused");
        }
    }

    #[test]
    fn the_directory_is_the_sessions_or_the_users_own_and_never_a_relative_one() {
        let directory = |xdg: Option<&str>, uid| directory_for(xdg.map(Into::into), uid);
        assert_eq!(directory(Some("/run/user/7"), 7), Path::new("/run/user/7/agentos"));
        for unusable in [None, Some(""), Some("run")] {
            assert_eq!(directory(unusable, 0), Path::new("/run/agentos"));
            assert_eq!(directory(unusable, 7), Path::new("/tmp/agentos-7"));
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_or_that_is_a_link_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/agentos");
        make_private(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        make_private(&path).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(make_private(&link), Err(DirectoryError::NotPrivate { .. })));
        for mode in [0o775, 0o702] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = make_private(&path).unwrap_err();
            assert!(matches!(refused, DirectoryError::NotPrivate { .. }), "{mode:o}");
        }
    }

    #[test]
    fn a_sidecar_finds_its_files_by_its_socket() {
        let files = Rendezvous::new(Path::new("/run/agentos"), "blue.1");
        assert_eq!(Rendezvous::of_socket(&files.socket), Some(files));
        assert_eq!(Rendezvous::of_socket(Path::new("/run/agentos/other")), None);
    }

    #[test]
    fn a_lock_has_one_holder_at_a_time_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.lock");
        fs::write(&path, "").unwrap();
        let first = LockFile::try_take(&path).unwrap().expect("nobody holds what a dead one left");
        assert!(LockFile::try_take(&path).unwrap().is_none());
        let held = std::sync::atomic::AtomicUsize::new(1);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let lock = LockFile::take(&path).unwrap();
                    assert_eq!(held.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two hold it");
                    held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(lock);
                });
            }
            held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            drop(first);
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "a lock stayed behind");
    }
}
