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

/// What to do at a change. It runs in the event loop and must not block.
type Action = Box<dyn Fn() + Send + Sync>;

/// One inotify for all cgroups.
pub struct Watcher {
    inotify: AsyncFd<Descriptor>,
    actions: Mutex<HashMap<WatchDescriptor, Vec<(u64, Action)>>>,
}

/// nix's type tells its descriptor only to some.
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The changes of one file, for as long as someone waits for them.
pub struct Changes<'a> {
    watcher: &'a Watcher,
    watch: WatchDescriptor,
    token: u64,
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
        Ok(Self { inotify, actions: Mutex::new(HashMap::new()) })
    }

    /// Calls `action` at each change of a file, until the file is gone.
    ///
    /// # Errors
    /// When the file can't be watched.
    pub fn watch(&self, path: &Path, action: impl Fn() + Send + Sync + 'static) -> io::Result<()> {
        self.add(path, 0, Box::new(action)).map(drop)
    }

    /// The changes of a file from now on.
    ///
    /// # Errors
    /// When the file can't be watched.
    pub fn changes(&self, path: &Path) -> io::Result<Changes<'_>> {
        let notify = Arc::new(Notify::new());
        // The address is the token: no two waiters share it while both wait.
        let token = Arc::as_ptr(&notify) as u64;
        let waiter = Arc::clone(&notify);
        let watch = self.add(path, token, Box::new(move || waiter.notify_one()))?;
        Ok(Changes { watcher: self, watch, token, notify })
    }

    fn add(&self, path: &Path, token: u64, action: Action) -> io::Result<WatchDescriptor> {
        let watch = self.inotify.get_ref().0.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        lock(&self.actions).entry(watch).or_default().push((token, action));
        Ok(watch)
    }

    /// Hands out changes for as long as the guest lives.
    pub async fn run(self: Arc<Self>) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else {
                return;
            };
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => {
                    let mut actions = lock(&self.actions);
                    for event in events {
                        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                            actions.remove(&event.wd);
                        } else if let Some(actions) = actions.get(&event.wd) {
                            actions.iter().for_each(|(_, action)| action());
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

impl Changes<'_> {
    /// The next change; at once if there was one since the last.
    pub async fn next(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        let mut actions = lock(&self.watcher.actions);
        let Some(list) = actions.get_mut(&self.watch) else {
            return;
        };
        list.retain(|(token, _)| *token != self.token);
        if list.is_empty() {
            actions.remove(&self.watch);
            // It is gone already if the file is.
            let _ = self.watcher.inotify.get_ref().0.rm_watch(self.watch);
        }
    }
}
