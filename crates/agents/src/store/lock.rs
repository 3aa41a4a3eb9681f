//! The lock of one package: whoever holds it works on the package, everybody else waits.
//!
//! The kernel takes a lock away with its holder, so that a wait usually ends with the holder's work or with its death.
//! A holder that was stopped, or whose disk hangs, does neither: a wait that sees nothing happen has an end of its own,
//! sees its caller go and says all the while what it waits for. That is why the lock is asked for again and again rather than slept on.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{InstallError, at};

/// How long an installation waits for another one that doesn't get on. Unpacking, which nobody outside sees, takes
/// seconds; an address that can't be reached is given up sooner.
pub(super) const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long the lock may be free before whoever waits notices.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What a wait for a lock knows of the installation that waits.
pub(super) struct Wait<'a> {
    pub(super) package: &'a str,
    pub(super) patience: Duration,
    pub(super) cancelled: &'a AtomicBool,
    /// Called while another installation has the lock; whether that one has got on since the last call.
    pub(super) waiting: &'a mut dyn FnMut() -> bool,
}

/// Waits for the lock of one package. It is let go with the returned file, or by the kernel with the process.
pub(super) fn take(path: &Path, wait: Wait<'_>) -> Result<File, InstallError> {
    let mut options = OpenOptions::new();
    let file =
        options.create(true).truncate(false).write(true).open(path).map_err(at("opening the lock", path))?;
    let mut got_on = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(at("locking", path)(source)),
            Err(TryLockError::WouldBlock) => {}
        }
        if wait.cancelled.load(Ordering::Relaxed) {
            return Err(InstallError::Cancelled);
        }
        if (wait.waiting)() {
            got_on = Instant::now();
        } else if got_on.elapsed() >= wait.patience {
            return Err(InstallError::Locked {
                package: wait.package.to_owned(),
                lock: path.to_owned(),
                waited: wait.patience,
            });
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(
        path: &Path,
        patience: Duration,
        cancelled: &AtomicBool,
        mut waiting: impl FnMut() -> bool,
    ) -> Result<File, InstallError> {
        take(path, Wait { package: "tool@1.0.0", patience, cancelled, waiting: &mut waiting })
    }

    #[test]
    fn a_wait_for_a_lock_ends_with_the_lock_with_patience_or_with_the_caller() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tool-1.0.0");
        let cancelled = AtomicBool::new(false);
        let mut held = Some(wait_for(&path, Duration::ZERO, &cancelled, || false).unwrap());

        let error = wait_for(&path, Duration::ZERO, &cancelled, || false).unwrap_err();
        let InstallError::Locked { package, lock, .. } = &error else { panic!("{error:?}") };
        assert_eq!((package.as_str(), lock), ("tool@1.0.0", &path));

        // Patience begins again whenever the holder gets on.
        let mut asked = 0;
        let gets_on = || {
            asked += 1;
            asked < 3
        };
        let error = wait_for(&path, Duration::ZERO, &cancelled, gets_on).unwrap_err();
        assert!(matches!(error, InstallError::Locked { .. }), "{error:?}");
        assert_eq!(asked, 3);

        // Let go while somebody waits.
        let mut asked = 0;
        let let_go = || {
            asked += 1;
            held.take();
            false
        };
        let held = wait_for(&path, PATIENCE, &cancelled, let_go).unwrap();
        assert_eq!(asked, 1);

        // The caller leaves while it waits.
        let leave = || {
            cancelled.store(true, Ordering::Relaxed);
            false
        };
        let left = wait_for(&path, PATIENCE, &cancelled, leave);
        assert!(matches!(left, Err(InstallError::Cancelled)));
        drop(held);
    }
}
