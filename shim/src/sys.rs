//! Small things that the standard library leaves out.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. A release build aborts on a panic, so no lock is ever left poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
