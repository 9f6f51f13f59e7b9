//! Volumes that the kubelet changes while they are in use, by a switch of `..data`: the guest is told of each switch.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bulkhead_protocols::agent::{self, RefreshRequest};
use bulkhead_protocols::{VOLUME_DATA, VOLUMES_DIR};
use protobuf::MessageField;
use rustix::fs::inotify::{self, ReadFlags, Reader, WatchFlags};
use slog::{Logger, warn};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::share::Bound;
use crate::guest::Guest;
use crate::sys::{lock, watcher};

/// A volume of more than this is not copied: it takes the guest's memory. What Kubernetes puts into one object is at
/// most 1 MiB.
const SIZE_LIMIT: u64 = 8 << 20;

/// A volume of more files than this is not copied.
const FILE_LIMIT: usize = 1024;

/// A volume, and where the guest has it.
#[derive(Debug, Clone)]
pub struct Volume {
    /// In the share, for this process.
    pub host: PathBuf,
    /// In the guest: the share's directory, and the copy.
    pub guest: agent::Volume,
}

impl Volume {
    /// The volume that is bound into the share, if it is one that changes by a switch and is small enough for a copy:
    /// the `number`th of its container's.
    pub fn of(bound: &Bound, container: &str, number: usize) -> Option<Self> {
        let data = fs::read_link(bound.host.join(VOLUME_DATA)).ok()?;
        let (mut files, mut bytes) = (0, 0);
        measure(&bound.host.join(data), &mut files, &mut bytes).ok()?;
        (files <= FILE_LIMIT && bytes <= SIZE_LIMIT).then(|| Self {
            host: bound.host.clone(),
            guest: agent::Volume {
                source: bound.guest.clone(),
                target: format!("{VOLUMES_DIR}/{container}/{number}"),
                ..Default::default()
            },
        })
    }
}

/// Adds up what is in a directory, until it is too much.
fn measure(directory: &Path, files: &mut usize, bytes: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        *files += 1;
        if metadata.is_dir() {
            measure(&entry.path(), files, bytes)?;
        } else {
            *bytes += metadata.len();
        }
        if *files > FILE_LIMIT || *bytes > SIZE_LIMIT {
            break;
        }
    }
    Ok(())
}

/// The volumes of a sandbox's containers, by the number of the watch on each.
type Watched = Arc<Mutex<HashMap<i32, Vec<Volume>>>>;

/// Watches the volumes of one sandbox. Dropping it ends that.
pub struct Volumes {
    inotify: Arc<AsyncFd<OwnedFd>>,
    watched: Watched,
    guest: Guest,
    log: Logger,
    task: JoinHandle<()>,
}

impl Volumes {
    /// Starts without any.
    pub fn start(guest: &Guest, log: &Logger) -> io::Result<Self> {
        let inotify = Arc::new(watcher()?);
        let watched = Watched::default();
        let follow = follow(inotify.clone(), watched.clone(), guest.clone(), log.clone());
        let task = tokio::spawn(follow);
        Ok(Self { inotify, watched, guest: guest.clone(), log: log.clone(), task })
    }

    /// Follows a volume from now on, whose copy is made.
    pub fn add(&self, volume: &Volume) -> io::Result<()> {
        let flags = WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(self.inotify.get_ref().as_fd(), &volume.host, flags)?;
        lock(&self.watched).entry(watch).or_default().push(volume.clone());
        // It may have changed since it was copied.
        let (guest, volume, log) = (self.guest.clone(), volume.clone(), self.log.clone());
        tokio::spawn(async move { refresh(&guest, &volume, &log).await });
        Ok(())
    }

    /// Forgets the volumes of a container.
    pub fn forget(&self, container: &str) {
        let own = format!("{VOLUMES_DIR}/{container}/");
        lock(&self.watched).retain(|watch, volumes| {
            volumes.retain(|volume| !volume.guest.target.starts_with(&own));
            if volumes.is_empty() {
                // It may be gone with its directory.
                let _ = inotify::remove_watch(self.inotify.get_ref().as_fd(), *watch);
            }
            !volumes.is_empty()
        });
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Tells the guest of each switch.
async fn follow(inotify: Arc<AsyncFd<OwnedFd>>, watched: Watched, guest: Guest, log: Logger) {
    loop {
        let switched = match inotify.readable().await {
            Ok(mut ready) => {
                let switched = switched(inotify.get_ref());
                ready.clear_ready();
                switched
            }
            Err(error) => Err(error),
        };
        let watches = match switched {
            Ok(watches) => watches,
            Err(error) => {
                warn!(log, "volumes are no longer followed: {error}");
                return;
            }
        };
        for watch in watches {
            let volumes = lock(&watched).get(&watch).cloned().unwrap_or_default();
            for volume in volumes {
                refresh(&guest, &volume, &log).await;
            }
        }
    }
}

/// The watches in whose directories `..data` has been switched.
fn switched(inotify: &OwnedFd) -> io::Result<Vec<i32>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut watches = Vec::new();
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(ReadFlags::IGNORED) => {}
            Ok(event) => {
                let is_data =
                    event.file_name().is_some_and(|name| name.to_bytes() == VOLUME_DATA.as_bytes());
                if is_data && !watches.contains(&event.wd()) {
                    watches.push(event.wd());
                }
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(watches),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn refresh(guest: &Guest, volume: &Volume, log: &Logger) {
    let Ok(data) = fs::read_link(volume.host.join(VOLUME_DATA)) else {
        // It is on its way out, and its container with it.
        return;
    };
    let request = RefreshRequest {
        volume: MessageField::some(volume.guest.clone()),
        data: data.to_string_lossy().into_owned(),
        ..Default::default()
    };
    if let Err(error) =
        guest.call(async |agent, context| agent.refresh(context, &request).await).await
    {
        warn!(log, "the guest does not follow the volume {}: {error}", volume.host.display());
    }
}
