//! The lock of one package: whoever holds it works on the package, everybody else waits.
//!
//! The kernel takes a lock away with its holder, so that a wait usually ends with the holder's work or with its death.
//! A holder that was stopped, or whose disk hangs, does neither: a wait has an end of its own, sees its caller go and
//! says all the while what it waits for. That is why the lock is asked for again and again rather than slept on.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{InstallError, at};

/// How long an installation waits for another one. That one fetches tens of megabytes; on a line on which they take
/// longer the next attempt resumes.
pub(super) const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long the lock may be free before whoever waits notices.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What a wait for a lock knows of the installation that waits.
pub(super) struct Wait<'a> {
    pub(super) package: &'a str,
    pub(super) patience: Duration,
    pub(super) cancelled: &'a AtomicBool,
    /// Called while another installation has the lock.
    pub(super) waiting: &'a dyn Fn(),
}

/// Waits for the lock of one package. It is let go with the returned file, or by the kernel with the process.
pub(super) fn take(path: &Path, wait: &Wait<'_>) -> Result<File, InstallError> {
    let mut options = OpenOptions::new();
    let file =
        options.create(true).truncate(false).write(true).open(path).map_err(at("opening the lock", path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(at("locking", path)(source)),
            Err(TryLockError::WouldBlock) => {}
        }
        if wait.cancelled.load(Ordering::Relaxed) {
            return Err(InstallError::Cancelled);
        }
        if begun.elapsed() >= wait.patience {
            return Err(InstallError::Locked {
                package: wait.package.to_owned(),
                lock: path.to_owned(),
                waited: wait.patience,
            });
        }
        (wait.waiting)();
        std::thread::sleep(ASK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_wait_for_a_lock_ends_with_the_lock_with_patience_or_with_the_caller() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tool-1.0.0");
        let cancelled = AtomicBool::new(false);
        let nothing = || ();
        let wait =
            |patience| Wait { package: "tool@1.0.0", patience, cancelled: &cancelled, waiting: &nothing };
        let held = take(&path, &wait(Duration::ZERO)).unwrap();

        let error = take(&path, &wait(Duration::ZERO)).unwrap_err();
        let InstallError::Locked { package, lock, .. } = &error else { panic!("{error:?}") };
        assert_eq!((package.as_str(), lock), ("tool@1.0.0", &path));

        // Let go while somebody waits.
        let held = Cell::new(Some(held));
        let asked = Cell::new(0);
        let let_go = || {
            asked.set(asked.get() + 1);
            held.take();
        };
        let patient = Wait { waiting: &let_go, ..wait(PATIENCE) };
        let held = take(&path, &patient).unwrap();
        assert_eq!(asked.get(), 1);

        // The caller leaves while it waits.
        let leave = || cancelled.store(true, Ordering::Relaxed);
        let left = Wait { waiting: &leave, ..wait(PATIENCE) };
        assert!(matches!(take(&path, &left), Err(InstallError::Cancelled)));
        drop(held);
    }
}
