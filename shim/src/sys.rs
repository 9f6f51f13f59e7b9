//! Small things that the standard library leaves out.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. A release build aborts on a panic, so no lock is ever left poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error and what caused it, each said once, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] io::Error);

    #[test]
    fn a_chain_says_each_cause_once() {
        let cause = || io::Error::other("no such device");
        let quiet = Layer("cannot mount /proc", cause());
        let loud = Layer("cannot mount /proc: no such device", cause());
        for error in [quiet, loud] {
            assert_eq!(chain(&error), "cannot mount /proc: no such device");
        }
    }
}
