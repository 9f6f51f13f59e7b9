//! Small things that the standard library leaves out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

/// Takes a lock. The agent aborts on a panic, so no lock is ever left poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the C library says of an errno; nix's own words are sometimes those of another system.
pub fn describe(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_described_in_the_c_librarys_words() {
        assert_eq!(describe(Errno::ENODEV), "No such device");
        assert_eq!(describe(Errno::ERANGE), "Numerical result out of range");
    }
}
