//! The socket that clients connect to, and the lock beside it.
//!
//! ```text
//! lock PATH.lock ── busy ──► AlreadyRunning
//!       │ ours: whatever lies at PATH is stale
//!       ▼
//! remove PATH, bind, listen (mode 0600) … serve … remove PATH, remove PATH.lock, unlock
//! ```
//! A socket file alone can't tell a living sidecar from a dead one; the lock can, because the kernel drops it with
//! the process. Nothing at PATH is touched without it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::SidecarError;

/// sockaddr_un has 108 bytes for a path, its NUL included.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The lock of `NAME` is `NAME.lock`.
pub(crate) const LOCK_SUFFIX: &str = ".lock";

/// A locked file that is removed when its holder ends.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl LockFile {
    /// The lock of the socket at `path`, or `None` where somebody alive has it.
    pub(crate) fn beside(path: &Path) -> io::Result<Option<Self>> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(LOCK_SUFFIX);
        Self::try_take(Path::new(&lock))
    }

    /// Takes the lock, or `None` where somebody alive has it.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
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
        // Removed while still locked; whoever opened it before sees another inode at the path and tries again.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file is gone already");
        }
    }
}

/// The bound socket. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    _lock: LockFile,
}

impl Socket {
    pub(crate) fn bind(path: &Path) -> Result<(Self, UnixListener), SidecarError> {
        let len = path.as_os_str().len();
        if len > MAX_SOCKET_PATH_BYTES {
            return Err(SidecarError::SocketPathTooLong { path: path.to_owned(), len });
        }
        let failed = |source| SidecarError::Bind { path: path.to_owned(), source };
        let lock = LockFile::beside(path)
            .map_err(failed)?
            .ok_or_else(|| SidecarError::AlreadyRunning { path: path.to_owned() })?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
            // Not ours to remove; bind says that the address is in use.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Whoever connects before this line is still asked for credentials; the umask, which would close the gap,
        // belongs to the whole process.
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok((Self { path: path.to_owned(), _lock: lock }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket is gone already");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_socket_is_private_and_goes_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (socket, _listener) = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "files stayed behind");
    }

    #[test]
    fn a_second_sidecar_on_one_path_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (_socket, _listener) = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, SidecarError::AlreadyRunning { .. }));
        assert!(error.to_string().contains("a.sock"), "{error}");
        UnixStream::connect(&path).expect("the first one still listens");
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        fs::write(dir.path().join("a.sock.lock"), "").unwrap();
        UnixStream::connect(&path).expect_err("nobody listens");
        let (_socket, _listener) = Socket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "content").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SidecarError::Bind { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"content");
    }

    #[test]
    fn a_path_that_no_address_can_hold_is_refused_by_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(108));
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, SidecarError::SocketPathTooLong { .. }), "{error}");
    }
}
