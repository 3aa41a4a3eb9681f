//! Where the `agentos` binary is, and where sidecars meet their clients.
//!
//! The binary: the option, `AGENTOS_SIDECAR`, beside the current executable, `target/{release,debug}` of the
//! directories above it (so that programs and tests of a cargo workspace find the one just built), `PATH`. A place
//! that was named explicitly and does not hold the binary is an error: falling through would start another version.
//!
//! The runtime directory holds one socket, one start lock and one log per pool. Everything in it is trusted, so its
//! owner and mode are checked before anything in it is used.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

const BINARY: &str = "agentos";
const BINARY_VARIABLE: &str = "AGENTOS_SIDECAR";
/// `sun_path` has 108 bytes and wants a terminating NUL.
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// Long enough for any name people choose, short enough for a socket path below /run/user.
const POOL_NAME_MAX_BYTES: usize = 64;

#[derive(Debug, Error)]
pub(crate) enum DiscoverError {
    #[error(
        "no agentos binary to start a sidecar with; searched {}",
        .searched.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoBinary { searched: Vec<PathBuf> },
    #[error("pool name {name:?} must be 1 to {POOL_NAME_MAX_BYTES} letters, digits, '.', '_' or '-'")]
    PoolName { name: String },
    #[error("cannot create the runtime directory {}", .path.display())]
    CreateDirectory { path: PathBuf, source: std::io::Error },
    #[error(
        "the runtime directory {} must belong to uid {uid} and be closed to others, but its owner is {owner} and \
         its mode {mode:04o}", .path.display()
    )]
    NotPrivate { path: PathBuf, uid: u32, owner: u32, mode: u32 },
    #[error("the socket path {} is longer than the {SOCKET_PATH_MAX_BYTES} bytes Linux allows", .path.display())]
    SocketPath { path: PathBuf },
}

/// Finds the binary that sidecars are started from. The path is absolute: they run in a directory of their own.
pub(crate) fn find_binary(option: Option<&Path>) -> Result<PathBuf, DiscoverError> {
    let found = find(option)?;
    Ok(std::path::absolute(&found).unwrap_or(found))
}

fn find(option: Option<&Path>) -> Result<PathBuf, DiscoverError> {
    let named = option
        .map(Path::to_path_buf)
        .or_else(|| std::env::var_os(BINARY_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from));
    if let Some(path) = named {
        return if is_executable(&path) {
            Ok(path)
        } else {
            Err(DiscoverError::NoBinary { searched: vec![path] })
        };
    }
    let current = std::env::current_exe().ok();
    search(current.as_deref(), std::env::var_os("PATH").as_deref())
}

fn search(current: Option<&Path>, path_variable: Option<&OsStr>) -> Result<PathBuf, DiscoverError> {
    let mut places = Vec::new();
    if let Some(current) = current {
        // The CLI itself is the binary, under whatever name it was copied to.
        if current.file_name().is_some_and(|name| name == BINARY) {
            places.push(current.to_path_buf());
        }
        for (depth, directory) in current.ancestors().skip(1).enumerate() {
            if depth == 0 {
                places.push(directory.join(BINARY));
            }
            // Tests run from target/debug/deps, examples from target/debug/examples.
            if directory.file_name().is_some_and(|name| name == "release" || name == "debug") {
                places.push(directory.join(BINARY));
            }
            for profile in ["release", "debug"] {
                let place = directory.join("target").join(profile).join(BINARY);
                // An ancestor may be /tmp, where anybody can put a target directory.
                if !belongs_to_stranger(&place) {
                    places.push(place);
                }
            }
        }
    }
    for directory in path_variable.map(std::env::split_paths).into_iter().flatten() {
        places.push(directory.join(BINARY));
    }
    places.dedup();
    match places.iter().find(|place| is_executable(place)) {
        Some(found) => Ok(found.clone()),
        None => Err(DiscoverError::NoBinary { searched: places }),
    }
}

fn belongs_to_stranger(path: &Path) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    path.metadata().is_ok_and(|meta| meta.uid() != uid && meta.uid() != 0)
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The files of one sidecar in the runtime directory.
#[derive(Debug, Clone)]
pub(crate) struct Rendezvous {
    pub(crate) socket: PathBuf,
    pub(crate) start_lock: PathBuf,
    pub(crate) log: PathBuf,
}

impl Rendezvous {
    pub(crate) fn new(runtime_dir: Option<&Path>, name: &str) -> Result<Self, DiscoverError> {
        check_name(name)?;
        let directory = runtime_dir.map_or_else(default_runtime_dir, Path::to_path_buf);
        // The sidecar has another working directory than its client.
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        ensure_private(&directory)?;
        let socket = directory.join(format!("{name}.sock"));
        if socket.as_os_str().as_bytes().len() > SOCKET_PATH_MAX_BYTES {
            return Err(DiscoverError::SocketPath { path: socket });
        }
        Ok(Self {
            socket,
            start_lock: directory.join(format!("{name}.lock.start")),
            log: directory.join(format!("{name}.log")),
        })
    }
}

/// Pool names become file names: nothing that could leave the directory or need quoting.
fn check_name(name: &str) -> Result<(), DiscoverError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = (1..=POOL_NAME_MAX_BYTES).contains(&name.len());
    if fits && !name.starts_with('.') && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(DiscoverError::PoolName { name: name.to_owned() })
    }
}

fn default_runtime_dir() -> PathBuf {
    if let Some(directory) = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        return PathBuf::from(directory).join("agentos");
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        PathBuf::from("/run/agentos")
    } else {
        PathBuf::from(format!("/tmp/agentos-{}", uid.as_raw()))
    }
}

/// Creates the directory if need be and refuses one that somebody else could have put there or can write to.
fn ensure_private(path: &Path) -> Result<(), DiscoverError> {
    let failed = |source| DiscoverError::CreateDirectory { path: path.to_path_buf(), source };
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) => return Err(failed(error)),
    }
    // symlink_metadata: a link in /tmp to a directory of ours would pass for one.
    let meta = path.symlink_metadata().map_err(failed)?;
    let uid = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(DiscoverError::NotPrivate { path: path.to_path_buf(), uid, owner: meta.uid(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_binary(directory: &Path) -> PathBuf {
        std::fs::create_dir_all(directory).unwrap();
        let path = directory.join(BINARY);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_test_program_finds_the_binary_of_its_own_workspace() {
        let root = tempfile::tempdir().unwrap();
        let binary = place_binary(&root.path().join("target/debug"));
        let test = root.path().join("target/debug/deps/story-1234");
        assert_eq!(search(Some(&test), None).unwrap(), binary);
        let example = root.path().join("target/debug/examples/quickstart");
        assert_eq!(search(Some(&example), None).unwrap(), binary);
    }

    #[test]
    fn a_binary_beside_the_program_wins_over_path() {
        let root = tempfile::tempdir().unwrap();
        let beside = place_binary(&root.path().join("app"));
        let on_path = place_binary(&root.path().join("bin"));
        let path = on_path.parent().unwrap().as_os_str();
        assert_eq!(search(Some(&root.path().join("app/program")), Some(path)).unwrap(), beside);
        assert_eq!(search(None, Some(path)).unwrap(), on_path);
    }

    #[test]
    fn a_missing_binary_is_reported_with_every_place_searched() {
        let root = tempfile::tempdir().unwrap();
        let error =
            search(Some(&root.path().join("app/program")), Some(OsStr::new("/nonexistent"))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("app/agentos") && text.contains("/nonexistent/agentos"), "{text}");
    }

    #[test]
    fn a_named_binary_that_is_missing_does_not_fall_through() {
        let error = find_binary(Some(Path::new("/nonexistent/agentos"))).unwrap_err();
        let DiscoverError::NoBinary { searched } = error else { panic!("{error}") };
        assert_eq!(searched, [PathBuf::from("/nonexistent/agentos")]);
    }

    #[test]
    fn a_runtime_directory_others_can_write_to_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Rendezvous::new(Some(&open), "default").unwrap_err();
        assert!(matches!(error, DiscoverError::NotPrivate { mode: 0o777, .. }), "{error}");
    }

    #[test]
    fn a_link_is_not_taken_for_the_runtime_directory() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.path().join("link")).unwrap();
        let error = Rendezvous::new(Some(&root.path().join("link")), "default").unwrap_err();
        assert!(matches!(error, DiscoverError::NotPrivate { .. }), "{error}");
    }

    #[test]
    fn pool_names_that_could_leave_the_directory_are_refused() {
        for name in ["", "..", "a/b", "a b", ".hidden", &"x".repeat(65)] {
            assert!(matches!(Rendezvous::new(None, name), Err(DiscoverError::PoolName { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_socket_path_that_linux_cannot_hold_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(90));
        let error = Rendezvous::new(Some(&deep), "default").unwrap_err();
        assert!(matches!(error, DiscoverError::SocketPath { .. }), "{error}");
    }
}
