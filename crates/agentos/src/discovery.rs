//! Where the `agentos` binary is, and at which of the [meeting places](agentos_proto::rendezvous) a sidecar.
//!
//! The binary: the option, `AGENTOS_SIDECAR`, beside the current executable, `target/{release,debug}` of the
//! directories above it (so that programs and tests of a cargo workspace find the one just built), `PATH`. A place
//! that was named explicitly and does not hold the binary is an error: falling through would start another version.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use agentos_proto::rendezvous::{self, DirectoryError, MAX_NAME_BYTES, MAX_SOCKET_PATH_BYTES, Rendezvous};
use thiserror::Error;

const BINARY: &str = "agentos";
const BINARY_VARIABLE: &str = "AGENTOS_SIDECAR";

#[derive(Debug, Error)]
pub(crate) enum DiscoverError {
    #[error(
        "no agentos binary to start a sidecar with; searched {}",
        .searched.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoBinary { searched: Vec<PathBuf> },
    #[error(
        "not a name for a pool or sidecar: {name:?} (letters, digits, '.', '_' and '-', at most {MAX_NAME_BYTES}, not \
         beginning with '.')"
    )]
    Name { name: String },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("the socket path {} is longer than the {MAX_SOCKET_PATH_BYTES} bytes Linux allows", .path.display())]
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

/// The files of the sidecar with this name, in a directory that is made and checked.
pub(crate) fn rendezvous(runtime_dir: Option<&Path>, name: &str) -> Result<Rendezvous, DiscoverError> {
    if !rendezvous::is_name(name) {
        return Err(DiscoverError::Name { name: name.to_owned() });
    }
    let directory = runtime_dir.map_or_else(rendezvous::default_directory, Path::to_path_buf);
    // The sidecar has another working directory than its client.
    let directory = std::path::absolute(&directory).unwrap_or(directory);
    rendezvous::make_private(&directory)?;
    let files = Rendezvous::new(&directory, name);
    if files.socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(DiscoverError::SocketPath { path: files.socket });
    }
    Ok(files)
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
    fn names_and_directories_that_nobody_should_meet_at_are_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(rendezvous(Some(root.path()), "a/b"), Err(DiscoverError::Name { .. })));
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = rendezvous(Some(root.path()), "default").unwrap_err();
        assert!(matches!(error, DiscoverError::Directory(DirectoryError::NotPrivate { .. })), "{error}");
    }

    #[test]
    fn a_socket_path_that_linux_cannot_hold_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(90));
        let error = rendezvous(Some(&deep), "default").unwrap_err();
        assert!(matches!(error, DiscoverError::SocketPath { .. }), "{error}");
    }
}
