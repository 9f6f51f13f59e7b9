//! Small things that the standard library leaves out.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

/// Takes a lock. The agent aborts on a panic, so no lock is ever left poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path by which a call can name an open place, whatever happens to its name.
pub fn by_descriptor(place: &File) -> String {
    format!("/proc/self/fd/{}", place.as_raw_fd())
}

/// Whether a process is there and has not ended (proc_pid_stat(5)).
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name is in brackets, and may hold any.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
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
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        assert!(is_alive(std::process::id()));
        while is_alive(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }

    #[test]
    fn errors_are_described_in_the_c_librarys_words() {
        assert_eq!(describe(Errno::ENODEV), "No such device");
        assert_eq!(describe(Errno::ERANGE), "Numerical result out of range");
    }
}
