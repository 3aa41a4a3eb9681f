//! What the daemon is started with, and the paths that follow from it.
//!
//! [`Options`] is the wish of whoever starts the sidecar; [`Config`] is what came of it: every default decided,
//! every directory made and checked. Nothing below reads the environment.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use agentos_agents::{Home, HomeError};

use crate::SidecarError;

/// How long a sidecar stays after its last client and its last kept VM are gone: a program that creates one VM
/// after another shall not pay for a new sidecar each time.
pub const DEFAULT_LINGER: Duration = Duration::from_millis(500);

/// The pool of clients that name none.
pub const DEFAULT_POOL: &str = "default";

/// What the caller of [`crate::run`] wishes. The default is a sidecar without a pool at its own path.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; absent means `NAME.sock` in the runtime directory.
    pub socket: Option<PathBuf>,
    /// The sidecar's id; absent means one is made.
    pub id: Option<String>,
    /// The pool it serves; absent makes an explicit sidecar, which belongs to the client that started it.
    pub pool: Option<String>,
    /// State directory; absent means `$AGENTOS_HOME`, else XDG's directories.
    pub home: Option<PathBuf>,
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { socket: None, id: None, pool: None, home: None, linger: DEFAULT_LINGER }
    }
}

/// Everything decided.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) socket: PathBuf,
    pub(crate) id: String,
    /// Empty for an explicit sidecar.
    pub(crate) pool: String,
    pub(crate) linger: Duration,
    /// Agents' state. A sidecar without one serves VMs; sessions fail and name the variables.
    pub(crate) home: Result<Home, HomeError>,
    /// Sockets, locks: gone after a restart of the host.
    pub(crate) runtime_dir: PathBuf,
}

impl Config {
    pub(crate) fn resolve(options: Options) -> Result<Self, SidecarError> {
        let pool = options.pool.unwrap_or_default();
        let id = options.id.unwrap_or_else(|| match pool.as_str() {
            "" => format!("agent-os-sidecar-{}", uuid::Uuid::new_v4()),
            pool => format!("agent-os-shared-sidecar:{pool}"),
        });
        let runtime_dir = runtime_dir()?;
        let socket = match options.socket {
            Some(path) => std::path::absolute(&path)
                .map_err(|source| SidecarError::Directory { path: path.clone(), source })?,
            None => {
                let name = if pool.is_empty() { &id } else { &pool };
                check_name(name)?;
                runtime_dir.join(format!("{name}.sock"))
            }
        };
        let home = options.home.map_or_else(Home::from_env, |home| Ok(Home::new(home)));
        Ok(Self { socket, id, pool, linger: options.linger, home, runtime_dir })
    }
}

/// Where no path is given, the pool's name or the id becomes a file's name.
fn check_name(name: &str) -> Result<(), SidecarError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(());
    }
    Err(SidecarError::Name { name: name.to_owned() })
}

/// The directory of runtime files, made where it is missing, refused where another user could reach into it.
pub fn runtime_dir() -> Result<PathBuf, SidecarError> {
    let uid = rustix::process::geteuid().as_raw();
    let path = match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(xdg) => xdg.join("agentos"),
        None if uid == 0 => PathBuf::from("/run/agentos"),
        None => PathBuf::from(format!("/tmp/agentos-{uid}")),
    };
    private_dir(&path, uid)?;
    Ok(path)
}

/// Makes a directory that only `uid` may enter. In /tmp somebody else may have made it first: then its owner or
/// its mode tell, and symbolic links are not followed.
fn private_dir(path: &Path, uid: u32) -> Result<(), SidecarError> {
    let failed = |source| SidecarError::Directory { path: path.to_owned(), source };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.permissions().mode() & 0o077 != 0 {
        return Err(SidecarError::NotPrivate { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_file_names_are_refused() {
        for name in ["", "../x", ".hidden", "a/b", "a b", &"x".repeat(65)] {
            assert!(matches!(check_name(name), Err(SidecarError::Name { .. })), "{name} was taken");
        }
        for name in ["default", "team-1.blue_2"] {
            assert!(check_name(name).is_ok(), "{name} was refused");
        }
    }

    #[test]
    fn a_directory_others_can_enter_is_refused() {
        let uid = rustix::process::geteuid().as_raw();
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("agentos");
        private_dir(&path, uid).unwrap();
        private_dir(&path, uid).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(private_dir(&path, uid), Err(SidecarError::NotPrivate { .. })));
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(private_dir(&link, uid), Err(SidecarError::NotPrivate { .. })));
        assert!(matches!(private_dir(&path, uid + 1), Err(SidecarError::NotPrivate { .. })));
    }
}
