//! Small things that the standard library leaves out.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

/// Takes a lock. A release build aborts on a panic, so no lock is ever left poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name of fixed length for ids of any length: unix socket paths end at 107 bytes.
pub fn short_name(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.join("/"));
    digest[..16].iter().fold(String::new(), |mut name, byte| {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}
