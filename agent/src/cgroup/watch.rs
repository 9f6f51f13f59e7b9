//! Files of the cgroup tree that the kernel changes by itself: it wakes who polls them (the kernel's
//! `Documentation/admin-guide/cgroup-v2.rst`, "`[un]populated notification`").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::stats::keyed;

/// More than a flat keyed file has.
const LONGEST: usize = 4096;

/// A flat keyed file, and its changes.
pub struct Watched(AsyncFd<File>);

impl Watched {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// When it is not there, or can't be watched.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the descriptor stays the same, and open, for as long as its owner lives.
        Ok(Self(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?))
    }

    /// A value of the file as it is now; none if there is no such value, or no such cgroup any more.
    pub fn value(&self, name: &str) -> Option<u64> {
        let mut text = [0; LONGEST];
        let length = self.0.get_ref().read_at(&mut text, 0).ok()?;
        keyed(std::str::from_utf8(text.get(..length)?).ok()?, name)
    }

    /// The next change since it was read.
    pub async fn changed(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            // Only when the event loop ends, and everything with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until `holds` does for a value, looking again at each change; says whether it does.
    pub async fn wait_until(
        &self,
        deadline: Duration,
        name: &str,
        holds: impl Fn(Option<u64>) -> bool,
    ) -> bool {
        let wait = async {
            while !holds(self.value(name)) {
                self.changed().await;
            }
        };
        timeout(deadline, wait).await.is_ok()
    }
}
