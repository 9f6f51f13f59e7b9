//! Volumes that the kubelet changes while they are in use, by a switch of `..data`: the guest is told of each switch.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Component, PathBuf};
use std::sync::{Arc, Mutex};

use bulkhead_protocols::agent::{self, RefreshRequest};
use bulkhead_protocols::{VOLUME_DATA, VOLUMES_DIR};
use protobuf::MessageField;
use rustix::fs::inotify::{self, ReadFlags, Reader, WatchFlags};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, open, openat2, readlinkat, statat,
};
use rustix::path::Arg;
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

/// How a directory is opened (open(2)).
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

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
        // The agent takes nothing else.
        let [Component::Normal(_)] = data.components().collect::<Vec<_>>()[..] else { return None };
        let top = open(&bound.host, DIRECTORY, Mode::empty()).ok()?;
        let (mut files, mut bytes) = (0, 0);
        measure(&below(&top, &data).ok()?, &mut files, &mut bytes).ok()?;
        (has_links_alone(&top).ok()? && files <= FILE_LIMIT && bytes <= SIZE_LIMIT).then(|| Self {
            host: bound.host.clone(),
            guest: agent::Volume {
                source: bound.guest.clone(),
                target: format!("{VOLUMES_DIR}/{container}/{number}"),
                ..Default::default()
            },
        })
    }
}

/// A directory below one that a guest may write to: no link of its leads out of it, and nothing that is mounted there is
/// entered.
fn below(directory: &OwnedFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(directory, path, DIRECTORY, Mode::empty(), within)
}

/// Whether all that is in a volume's directory leads into its content or is it, and so is in a copy of that.
fn has_links_alone(directory: &OwnedFd) -> rustix::io::Result<bool> {
    for (count, entry) in Dir::read_from(directory)?.enumerate() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name.to_bytes().starts_with(b"..") {
            continue;
        }
        // What is no link at all is an error.
        let link = readlinkat(directory, name, Vec::new())?;
        let within = link.to_bytes().strip_prefix(VOLUME_DATA.as_bytes());
        if count > FILE_LIMIT || within != Some(&[b"/", name.to_bytes()].concat()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Adds up what is in a directory, until it is too much.
fn measure(directory: &OwnedFd, files: &mut usize, bytes: &mut u64) -> rustix::io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        *files += 1;
        if FileType::from_raw_mode(found.st_mode).is_dir() {
            measure(&below(directory, name)?, files, bytes)?;
        } else {
            *bytes += found.st_size.unsigned_abs();
        }
        if *files > FILE_LIMIT || *bytes > SIZE_LIMIT {
            break;
        }
    }
    Ok(())
}

/// Watches the volumes of one sandbox. Dropping it ends that.
pub struct Volumes {
    watcher: Arc<Watcher>,
    task: JoinHandle<()>,
}

struct Watcher {
    inotify: AsyncFd<OwnedFd>,
    /// The volumes of a sandbox's containers, by the number of the watch on each.
    watched: Mutex<HashMap<i32, Vec<Volume>>>,
    guest: Guest,
    /// Held from a look at a volume until the guest has what was seen: the last one is the newest.
    turn: tokio::sync::Mutex<()>,
    log: Logger,
}

impl Volumes {
    /// Starts without any.
    pub fn start(guest: &Guest, log: &Logger) -> io::Result<Self> {
        let watcher = Arc::new(Watcher {
            inotify: watcher()?,
            watched: Mutex::default(),
            guest: guest.clone(),
            turn: tokio::sync::Mutex::default(),
            log: log.clone(),
        });
        let task = tokio::spawn(watcher.clone().follow());
        Ok(Self { watcher, task })
    }

    /// Follows a volume from now on, whose copy is made.
    pub fn add(&self, volume: &Volume) -> io::Result<()> {
        let flags = WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let (watcher, volume) = (self.watcher.clone(), volume.clone());
        {
            // One that is taken away meanwhile has the same number.
            let mut watched = lock(&watcher.watched);
            let watch = inotify::add_watch(watcher.inotify.get_ref(), &volume.host, flags)?;
            watched.entry(watch).or_default().push(volume.clone());
        }
        // It may have changed since it was copied.
        tokio::spawn(async move { watcher.refresh(&volume).await });
        Ok(())
    }

    /// Forgets the volumes of a container.
    pub fn forget(&self, container: &str) {
        let own = format!("{VOLUMES_DIR}/{container}/");
        lock(&self.watcher.watched).retain(|watch, volumes| {
            volumes.retain(|volume| !volume.guest.target.starts_with(&own));
            if volumes.is_empty() {
                // It may be gone with its directory.
                let _ = inotify::remove_watch(self.watcher.inotify.get_ref(), *watch);
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

impl Watcher {
    /// Tells the guest of each switch.
    async fn follow(self: Arc<Self>) {
        loop {
            let switched = match self.inotify.readable().await {
                Ok(mut ready) => {
                    let switched = switched(self.inotify.get_ref());
                    ready.clear_ready();
                    switched
                }
                Err(error) => Err(error),
            };
            let watches = match switched {
                Ok(watches) => watches,
                Err(error) => {
                    warn!(self.log, "volumes are no longer followed: {error}");
                    return;
                }
            };
            for watch in watches {
                let volumes = lock(&self.watched).get(&watch).cloned().unwrap_or_default();
                for volume in volumes {
                    self.refresh(&volume).await;
                }
            }
        }
    }

    async fn refresh(&self, volume: &Volume) {
        let _turn = self.turn.lock().await;
        let Ok(data) = fs::read_link(volume.host.join(VOLUME_DATA)) else {
            // It is on its way out, and its container with it.
            return;
        };
        let request = RefreshRequest {
            volume: MessageField::some(volume.guest.clone()),
            data: data.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let told = self.guest.call(async |agent, context| agent.refresh(context, &request).await);
        if let Err(error) = told.await {
            let volume = volume.host.display();
            warn!(self.log, "the guest does not follow the volume {volume}: {error}");
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    /// Whether a volume with these links in it, and what `make` makes, is one to copy.
    fn is_one(links: &[(&str, &str)], make: impl FnOnce(&Path)) -> bool {
        let dir = tempfile::tempdir().expect("tempdir");
        let host = dir.path().join("volume");
        fs::create_dir_all(host.join("..1/sub")).expect("mkdir");
        fs::create_dir(dir.path().join("else")).expect("mkdir");
        fs::write(host.join("..1/sub/key"), "value").expect("write");
        for (name, to) in links {
            symlink(to, host.join(name)).expect("link");
        }
        make(&host);
        let bound = Bound { guest: "/s".to_owned(), host };
        Volume::of(&bound, "c", 0).is_some()
    }

    #[test]
    fn what_the_kubelet_writes_is_copied() {
        assert!(is_one(&[("..data", "..1"), ("sub", "..data/sub")], |_| {}));
        assert!(!is_one(&[("sub", "..1/sub")], |_| {}));
        assert!(!is_one(&[("..data", "..1"), ("sub", "../else")], |_| {}));
        // It would not be in the copy.
        assert!(!is_one(&[("..data", "..1")], |host| fs::write(host.join("x"), "").expect("write")));
    }

    #[test]
    fn what_a_guest_has_put_there_leads_nowhere() {
        for outside in ["/", ".", "..", "../else", "..1/../../else", "..1/sub"] {
            assert!(!is_one(&[("..data", outside)], |_| {}), "{outside}");
        }
        assert!(!is_one(&[("..data", "..2"), ("..2", "../else")], |_| {}));
    }

    #[test]
    fn what_is_too_large_is_not_copied() {
        let large = |host: &Path| {
            let file = fs::File::create(host.join("..1/large")).expect("create");
            file.set_len(SIZE_LIMIT).expect("truncate");
        };
        assert!(!is_one(&[("..data", "..1")], large));
        let many = |host: &Path| {
            for number in 0..=FILE_LIMIT {
                fs::write(host.join(format!("..1/sub/{number}")), "").expect("write");
            }
        };
        assert!(!is_one(&[("..data", "..1")], many));
    }
}
