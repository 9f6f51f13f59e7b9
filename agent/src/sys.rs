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

/// The text of an error with all its causes, each said once.
///
/// Libraries differ in whether an error's own text repeats its cause; a cause whose text is already
/// there is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Layer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn errors_are_described_in_the_c_librarys_words() {
        assert_eq!(describe(Errno::ENODEV), "No such device");
        assert_eq!(describe(Errno::ERANGE), "Numerical result out of range");
    }

    #[test]
    fn a_chain_says_each_cause_once() {
        let error = Layer(
            "cannot mount /proc: no such device",
            Some(Box::new(Layer("no such device", Some(Box::new(Layer("ENODEV", None)))))),
        );
        assert_eq!(chain(&error), "cannot mount /proc: no such device: ENODEV");
    }
}
