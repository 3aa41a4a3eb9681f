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

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use agentos_proto::rendezvous::MAX_SOCKET_PATH_BYTES;

pub(crate) use agentos_proto::rendezvous::LockFile;

use crate::SidecarError;

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
