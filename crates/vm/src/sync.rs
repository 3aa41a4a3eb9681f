//! Locks of this crate: held for moments, never over an await point.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever happened to the former holder: every structure behind a lock in this crate is whole between any
/// two of its operations, and the panic itself has ended the VM it belongs to.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
