//! What a sidecar leaves when it is killed, and its removal by the next one.
//!
//! The kernel takes processes, mounts and namespaces with a dead sidecar, and each launcher removes the control groups
//! of launchers that are gone. What stays are sockets, beside ours and in the runtime directory, and directories
//! there, each with a lock.
//!
//! ```text
//! NAME.sock, NAME.sock.lock      held ──► alive, hands off
//!                                free ──► dead: remove both
//! sessions-X.dir, and its lock    free ──► dead: remove both
//! NAME.lock.start                free ──► whoever began to start a sidecar is dead: remove it
//! ```
//! These directories may hold files of others, whose locks and names are none of our business: only a socket or a
//! directory is removed, and only a lock that is named as ours are. A sidecar's log stays when it was killed or
//! crashed: it may say why. The next start under the same name replaces it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use agentos_proto::rendezvous::{LOCK_SUFFIX, LockFile, Rendezvous, SOCKET_SUFFIX, START_LOCK_SUFFIX};

/// What the name of a sidecar's directory for its VMs begins and ends with.
pub(crate) const DIRECTORY_PREFIX: &str = "sessions-";
pub(crate) const DIRECTORY_SUFFIX: &str = ".dir";

/// What a name says that it is.
#[derive(Clone, Copy)]
enum Kind {
    Socket,
    Directory,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.as_bytes();
        if name.ends_with(SOCKET_SUFFIX.as_bytes()) {
            Some(Self::Socket)
        } else if name.starts_with(DIRECTORY_PREFIX.as_bytes()) && name.ends_with(DIRECTORY_SUFFIX.as_bytes())
        {
            Some(Self::Directory)
        } else {
            None
        }
    }

    fn is(self, found: fs::FileType) -> bool {
        match self {
            Self::Socket => found.is_socket(),
            Self::Directory => found.is_dir(),
        }
    }

    fn remove(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Socket => fs::remove_file(path),
            Self::Directory => fs::remove_dir_all(path),
        }
    }
}

/// Best effort: what can't be removed now is tried again at the next start. `directory` is the runtime directory, or
/// where somebody wanted a socket: only the former is ours enough to remove directories from.
pub(crate) fn clean(directory: &Path, runtime_dir: &Path) {
    for lock in entries(directory) {
        let name = lock.as_os_str().as_bytes();
        if name.ends_with(START_LOCK_SUFFIX.as_bytes()) {
            // Taken and let go, it is gone; ours is held by whoever starts us.
            drop(LockFile::try_take(&lock));
            continue;
        }
        let Some(name) = name.strip_suffix(LOCK_SUFFIX.as_bytes()) else { continue };
        let path = Path::new(OsStr::from_bytes(name));
        let Some(kind) = Kind::of(path) else { continue };
        if matches!(kind, Kind::Directory) && directory != runtime_dir {
            continue;
        }
        if fs::symlink_metadata(path).is_ok_and(|there| !kind.is(there.file_type())) {
            continue;
        }
        match LockFile::try_take(&lock) {
            // The lock file goes with the lock, when this arm ends.
            Ok(Some(_dead)) => match kind.remove(path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed what a dead sidecar left"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "what a dead sidecar left stays")
                }
            },
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(path = %lock.display(), %error, "can't tell whether a sidecar lives")
            }
        }
    }
}

/// Removes the log of this sidecar, which ends well, so that nobody has a reason to read it.
pub(crate) fn remove_own_log(socket: &Path) {
    let Some(files) = Rendezvous::of_socket(socket).filter(|files| is_stderr(&files.log)) else { return };
    // Held by whoever starts a successor under the same name, from before there is another log until it is ready.
    let Ok(Some(_lock)) = LockFile::try_take(&files.start_lock) else { return };
    if is_stderr(&files.log)
        && let Err(error) = fs::remove_file(&files.log)
    {
        tracing::warn!(path = %files.log.display(), %error, "the log stays");
    }
}

/// A sidecar that was started by hand may have a file of somebody else's where a client would have put its log.
fn is_stderr(path: &Path) -> bool {
    let (Ok(stderr), Ok(there)) = (rustix::fs::fstat(rustix::stdio::stderr()), fs::symlink_metadata(path))
    else {
        return false;
    };
    (stderr.st_dev, stderr.st_ino) == (there.dev(), there.ino())
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let listed: io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
    listed.unwrap_or_default().into_iter().map(|entry: fs::DirEntry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::socket::Socket;

    #[test]
    fn a_dead_sidecars_files_go_and_a_living_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join("dead.sock")).unwrap());
        fs::write(dir.path().join("dead.sock.lock"), "").unwrap();
        for name in ["gone.sock.lock", "gone.lock.start"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir_all(dir.path().join("sessions-dead.dir/vm/sessions")).unwrap();
        fs::write(dir.path().join("sessions-dead.dir.lock"), "").unwrap();
        let starting = LockFile::try_take(&dir.path().join("busy.lock.start")).unwrap();
        for name in
            ["other", "gone.log", "theirs.dir.lock", "Cargo.lock", "Cargo", "file.sock", "file.sock.lock"]
        {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let (_alive, _listener) = Socket::bind(&dir.path().join("alive.sock")).unwrap();
        clean(dir.path(), dir.path());
        // Nothing here is what this process writes its complaints to.
        remove_own_log(&dir.path().join("gone.sock"));
        let mut left = entries(dir.path());
        left.sort();
        let kept = [
            "Cargo",
            "Cargo.lock",
            "alive.sock",
            "alive.sock.lock",
            "busy.lock.start",
            "file.sock",
            "file.sock.lock",
            "gone.log",
            "other",
            "theirs.dir.lock",
        ];
        assert!(starting.is_some());
        assert_eq!(left, kept.map(|name| dir.path().join(name)));
    }

    #[test]
    fn a_directory_that_is_not_there_has_nothing_to_clean() {
        let nowhere = Path::new("/nonexistent/agentos");
        clean(nowhere, nowhere);
    }
}
