use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A directory as it has to be, in one that others may enter.
fn directory() -> (tempfile::TempDir, PathBuf) {
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("state");
    (above, path)
}

fn make(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
}

fn problem(path: &Path) -> String {
    inspect(path).unwrap_err().to_string()
}

async fn locked(path: &Path) -> Result<LockedStorage, StorageError> {
    lock(path.as_os_str().as_bytes()).await
}

#[test]
fn a_missing_directory_is_made_for_its_owner_alone() {
    let (_above, path) = directory();
    inspect(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let (_above, absent) = directory();
    assert!(problem(&absent.join("below")).starts_with("open parent: "));
}

#[test]
fn what_is_no_directory_of_ours_says_so() {
    let (above, path) = directory();
    make(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    assert_eq!(problem(&path), "others may enter it: its mode is 0750 and has to be 0700");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(path.join("notes"), "").unwrap();
    assert!(problem(&path).starts_with("it holds notes and no VM's files"), "{}", problem(&path));
    let (link, file) = (above.path().join("link"), above.path().join("file"));
    symlink(&path, &link).unwrap();
    fs::write(&file, "").unwrap();
    for path in [link, file] {
        assert_eq!(problem(&path), "it is no directory; a link is not followed");
    }
    assert!(fs::read_dir(&path).unwrap().all(|entry| entry.unwrap().file_name() == "notes"));
}

#[test]
fn a_mark_that_is_no_plain_file_is_not_opened() {
    let (above, path) = directory();
    make(&path);
    let other = above.path().join("other");
    fs::write(&other, "mine").unwrap();
    symlink(&other, path.join(MARK)).unwrap();
    assert_eq!(problem(&path), ".agentos-storage in it is no file of ours");
    fs::remove_file(path.join(MARK)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path.join(MARK), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .unwrap();
    assert_eq!(problem(&path), ".agentos-storage in it is no file of ours");
    fs::remove_file(path.join(MARK)).unwrap();
    fs::create_dir(path.join(MARK)).unwrap();
    assert_eq!(problem(&path), ".agentos-storage in it is no file of ours");
    assert_eq!(fs::read(&other).unwrap(), b"mine");
}

#[test]
fn a_directory_in_a_storage_is_none() {
    let (above, path) = directory();
    inspect(&path).unwrap();
    let layer = path.join("upper-root");
    make(&layer);
    let expected = format!("it lies in a VM's storage, in or above {}", path.display());
    assert_eq!(problem(&layer.join("state")), expected);
    assert_eq!(problem(&layer), expected);
    // A link leads there as well, and one of the guest's leads nowhere.
    symlink(&layer, above.path().join("link")).unwrap();
    assert!(problem(&above.path().join("link/state")).starts_with("it lies in a VM's storage"));
    symlink(above.path(), layer.join("out")).unwrap();
    assert_eq!(problem(&layer.join("out/new")), expected);
    assert!(!above.path().join("new").exists() && !layer.join("state").exists());
}

#[test]
fn a_file_system_without_attributes_is_named() {
    let problem = problem(Path::new("/proc/self/task")).to_string();
    // Whichever comes first: its mode is not ours to choose either.
    assert!(problem.contains("0555") || problem.contains("proc"), "{problem}");
    let proc = open("/proc/self/task", DIRECTORY, Mode::empty()).unwrap();
    let problem = check_file_system(&proc).unwrap_err().to_string();
    assert!(
        problem.starts_with("its file system is proc: ") || problem.starts_with("setxattr: "),
        "{problem}"
    );
}

#[tokio::test]
async fn a_locked_one_is_refused_by_name_and_free_when_its_lock_is() {
    let (_above, path) = directory();
    let first = locked(&path).await.unwrap();
    let error = lock_within(path.as_os_str().as_bytes(), Duration::ZERO).await.unwrap_err();
    assert!(matches!(error.problem, StorageProblem::InUse), "{error}");
    assert_eq!(error.to_string(), format!("storage directory {}: another VM uses it", path.display()));
    drop(first);
    locked(&path).await.unwrap();
}

#[tokio::test]
async fn whoever_comes_while_the_former_leaves_waits_for_it() {
    let (_above, path) = directory();
    let first = locked(&path).await.unwrap();
    let (second, ()) = tokio::join!(locked(&path), async {
        tokio::task::yield_now().await;
        drop(first);
    });
    second.unwrap();
}

#[tokio::test]
async fn a_boot_that_failed_in_the_storage_is_blamed_on_it() {
    let (_above, path) = directory();
    let locked = locked(&path).await.unwrap();
    let failure = |object: &Path| BootFailure {
        step: "mount overlay".to_owned(),
        object: object.as_os_str().as_bytes().to_vec().into(),
        errno: Errno::INVAL.raw_os_error(),
    };
    assert!(locked.storage.blame(&failure(Path::new("/etc"))).is_none());
    let error = locked.storage.blame(&failure(&path.join("upper-root"))).unwrap().to_string();
    assert!(error.contains("EINVAL") && error.contains("upper-root"), "{error}");
}
