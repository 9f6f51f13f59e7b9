//! Notices of changes in files of the cgroup tree: the kernel modifies some of them by itself and
//! tells those who watch.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::sys::lock;

/// One inotify for all cgroups.
pub struct Watcher {
    inotify: AsyncFd<Descriptor>,
    waiting: Mutex<HashMap<WatchDescriptor, Vec<Arc<Notify>>>>,
}

/// nix's type tells its descriptor only to some.
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The changes of one file, for as long as someone waits for them.
pub struct Changes {
    watcher: Arc<Watcher>,
    watch: WatchDescriptor,
    notify: Arc<Notify>,
}

impl Watcher {
    /// A watcher of nothing yet.
    ///
    /// # Errors
    /// When the kernel has no inotify to give.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the descriptor stays the same, and open, for as long as its owner lives.
        let inotify =
            unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE)? };
        Ok(Self { inotify, waiting: Mutex::default() })
    }

    /// The changes of a file from now on.
    ///
    /// # Errors
    /// When the file can't be watched.
    pub fn changes(self: &Arc<Self>, path: &Path) -> io::Result<Changes> {
        let watch = self.inotify.get_ref().0.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        let notify = Arc::new(Notify::new());
        lock(&self.waiting).entry(watch).or_default().push(Arc::clone(&notify));
        Ok(Changes { watcher: Arc::clone(self), watch, notify })
    }

    /// Hands out changes for as long as the guest lives.
    pub async fn run(self: Arc<Self>) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else {
                return;
            };
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => {
                    let mut waiting = lock(&self.waiting);
                    for event in events {
                        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                            waiting.remove(&event.wd);
                        } else if let Some(waiting) = waiting.get(&event.wd) {
                            waiting.iter().for_each(|one| one.notify_one());
                        }
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => {
                    log::error!("cannot read the changes of cgroups: {error}");
                    return;
                }
            }
        }
    }
}

impl Changes {
    /// The next change; at once if there was one since the last.
    pub async fn next(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let mut waiting = lock(&self.watcher.waiting);
        let Some(list) = waiting.get_mut(&self.watch) else {
            return;
        };
        list.retain(|one| !Arc::ptr_eq(one, &self.notify));
        if list.is_empty() {
            waiting.remove(&self.watch);
            // It is gone already if the file is.
            let _ = self.watcher.inotify.get_ref().0.rm_watch(self.watch);
        }
    }
}
