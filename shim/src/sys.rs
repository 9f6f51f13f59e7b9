//! Small things that the standard library leaves out.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::inotify::{self, CreateFlags};
use sha2::{Digest, Sha256};
use tokio::io::unix::AsyncFd;

/// Takes a lock. A release build aborts on a panic, so no lock is ever left poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something in a thread of its own, which ends with what it has changed of itself: its namespaces, its directory.
///
/// # Errors
/// What `work` says, and the kernel's if it gives no thread.
pub fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let broken = |_| Err(io::Error::other("the thread broke off"));
    thread::scope(|scope| {
        thread::Builder::new().spawn_scoped(scope, work)?.join().unwrap_or_else(broken)
    })
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

/// An inotify instance (inotify(7)) that watches nothing yet, for the event loop that runs here.
///
/// # Errors
/// The kernel's: there may be too many.
pub fn watcher() -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // SAFETY: the descriptor is owned by what it is given to, and is the same until that is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(inotify, tokio::io::Interest::READABLE) }?)
}
