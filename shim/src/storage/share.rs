//! The share: the one directory tree of a sandbox that its guest sees by virtiofs.
//!
//! ```text
//! <sandbox>/share/host/<container>/rootfs    what the shim mounts
//!                     /.binds/0, 1...        bind mounts of the specs
//! <sandbox>/share/guest                      the same tree, served by virtiofsd
//! ```
//! Both are one file system in one peer group: what is mounted below `host` appears below `guest`.
//! The top of `guest` is read-only. A guest can thus change what is inside of its containers' mounts,
//! and nothing of the tree that holds them: it plants no symlink where the shim mounts next.
//!
//! What two containers bind from the same place of the host is one mount: for the guest's kernel every mount is a file
//! system of its own, with locks and a cache of its own.
//!
//! All of it lives in the shim's own mount namespace and ends with it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bulkhead_protocols::SHARE_DIR;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use thiserror::Error;

use super::host;
use super::mount::{self, Mount, MountError, make_target, mount, mounts_below, unmount};
use crate::sys::lock;

/// The directory of bind mounts. No container's id starts so.
const BINDS: &str = ".binds";

/// The share could not be made or used.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The tree itself cannot be made.
    #[error("the sandbox's share at {path}: {source}")]
    Tree {
        /// Which part of it.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A mount in the tree failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What is to be mounted is not there.
    #[error("{path}: {source}")]
    Source {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Gives the process a mount namespace of its own: it sees what the host mounts and unmounts, and
/// the host sees nothing of what it mounts. Call it while there is one thread.
pub fn enter_mount_namespace() -> io::Result<()> {
    crate::host::remember()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    propagation("/".as_ref(), MsFlags::MS_SLAVE | MsFlags::MS_REC)
}

/// The tree of one sandbox.
#[derive(Debug)]
pub struct Share {
    host: PathBuf,
    guest: PathBuf,
    binds: Arc<Binds>,
}

/// The bind mounts of a sandbox's containers.
#[derive(Debug)]
struct Binds {
    /// The directory that holds them.
    host: PathBuf,
    known: Mutex<HashMap<Source, Weak<Bind>>>,
    count: AtomicU64,
}

/// What a bind mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    /// The mount, the device and the inode (statx(2)).
    place: (u64, u32, u32, u64),
    options: Vec<String>,
}

/// A bind mount in the tree. Dropping it takes it away.
#[derive(Debug)]
struct Bind {
    target: PathBuf,
}

impl Drop for Bind {
    fn drop(&mut self) {
        take_away(&self.target);
    }
}

impl Share {
    /// Makes the tree below `sandbox`.
    pub fn create(sandbox: &Path) -> Result<Self, ShareError> {
        let host = sandbox.join("share/host");
        let binds =
            Binds { host: host.join(BINDS), known: Mutex::default(), count: AtomicU64::new(0) };
        let share = Self { host, guest: sandbox.join("share/guest"), binds: Arc::new(binds) };
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ShareError::Tree { path, source }
        };
        fs::create_dir_all(&share.host).map_err(failed(&share.host))?;
        fs::create_dir(&share.guest).map_err(failed(&share.guest))?;
        bind(&share.host, &share.host).map_err(failed(&share.host))?;
        propagation(&share.host, MsFlags::MS_SHARED).map_err(failed(&share.host))?;
        bind(&share.host, &share.guest)
            .and_then(|()| propagation(&share.guest, MsFlags::MS_SLAVE))
            // A slave that is shared too hands on what it gets, into virtiofsd's namespace.
            .and_then(|()| propagation(&share.guest, MsFlags::MS_SHARED))
            .and_then(|()| read_only(&share.guest))
            .map_err(failed(&share.guest))?;
        fs::create_dir(&share.binds.host).map_err(failed(&share.binds.host))?;
        Ok(share)
    }

    /// What virtiofsd serves.
    pub fn served(&self) -> &Path {
        &self.guest
    }

    /// Makes a container's place in the tree. `id` is one path component.
    pub fn container(&self, id: &str) -> Result<ContainerTree, ShareError> {
        let host = self.host.join(id);
        fs::create_dir(&host).map_err(|source| ShareError::Tree { path: host.clone(), source })?;
        let binds = (self.binds.clone(), Vec::new());
        Ok(ContainerTree { host, guest: format!("{SHARE_DIR}/{id}"), rootfs: None, binds })
    }

    /// Takes every mount away. The empty directories stay, for whoever removes the sandbox's.
    pub fn release(&self) -> io::Result<()> {
        unmount(&self.guest)?;
        unmount(&self.host)
    }
}

/// Where a bind mount of the host's is.
#[derive(Debug)]
pub struct Bound {
    /// Its path in the guest.
    pub guest: String,
    /// Its path in the share, for this process.
    pub host: PathBuf,
}

impl Bound {
    /// The directories below it, in the guest, in which something else is mounted.
    pub fn submounts(&self) -> Vec<String> {
        let below = mounts_below(&self.host).into_iter();
        below.map(|path| format!("{}/{}", self.guest, path.display())).collect()
    }
}

/// The mounts of one container. Dropping it takes them away.
#[derive(Debug)]
pub struct ContainerTree {
    host: PathBuf,
    guest: String,
    rootfs: Option<PathBuf>,
    /// All of the sandbox's, and its own of them.
    binds: (Arc<Binds>, Vec<Arc<Bind>>),
}

impl ContainerTree {
    /// Mounts the root file system from what the snapshotter gave, or from the spec's own `root`
    /// where it gave nothing. Returns its path in the guest.
    /// `read_only` holds for the spec's own: what a snapshotter gives says so itself, unless it is `lower`, for something
    /// else that is writable to lie on it.
    pub fn rootfs(
        &mut self,
        mounts: &[Mount],
        root: &Path,
        read_only: bool,
        lower: bool,
    ) -> Result<String, ShareError> {
        let target = self.host.join("rootfs");
        make_target(true, &target)?;
        self.rootfs = Some(target.clone());
        if mounts.is_empty() {
            let source = root.to_string_lossy().into_owned();
            let own = Mount {
                fstype: "bind".into(),
                source,
                options: vec!["rbind".into(), if read_only || lower { "ro" } else { "rw" }.into()],
            };
            mount(&own, &target)?;
        }
        for layer in mounts {
            if lower {
                mount(&mount::read_only(layer), &target)?;
            } else {
                mount(layer, &target)?;
            }
        }
        Ok(format!("{}/rootfs", self.guest))
    }

    /// The container's id.
    pub fn id(&self) -> String {
        self.host.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Bind-mounts a file or directory of the host.
    pub fn bind(&mut self, source: &Path, options: &[String]) -> Result<Bound, ShareError> {
        let (all, own) = &mut self.binds;
        let bind = all.bind(source, options)?;
        let host = bind.target.clone();
        own.push(bind);
        let name = host.file_name().unwrap_or_default().to_string_lossy();
        Ok(Bound { guest: format!("{SHARE_DIR}/{BINDS}/{name}"), host })
    }
}

impl Binds {
    /// The bind mount of a file or directory of the host with these options, which may be there already.
    fn bind(&self, source: &Path, options: &[String]) -> Result<Arc<Bind>, ShareError> {
        let failed = |error| ShareError::Source { path: source.to_owned(), source: error };
        let found = host::find(source).map_err(failed)?;
        let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let status =
            statx(&found, "", AtFlags::EMPTY_PATH, flags).map_err(|error| failed(error.into()))?;
        let place = (status.stx_mnt_id, status.stx_dev_major, status.stx_dev_minor, status.stx_ino);
        let wanted = Source { place, options: options.to_vec() };
        let find = |known: &HashMap<_, Weak<Bind>>| known.get(&wanted).and_then(Weak::upgrade);
        if let Some(bind) = find(&lock(&self.known)) {
            return Ok(bind);
        }
        let target = self.host.join(self.count.fetch_add(1, Ordering::Relaxed).to_string());
        let is_dir = FileType::from_raw_mode(status.stx_mode.into()).is_dir();
        make_target(is_dir, &target)?;
        // From here on it is taken away again.
        let bind = Arc::new(Bind { target });
        let wish = Mount {
            fstype: "bind".into(),
            source: source.to_string_lossy().into_owned(),
            options: options.to_vec(),
        };
        mount(&wish, &bind.target)?;
        let mut known = lock(&self.known);
        // Another container may have been as far.
        if let Some(bind) = find(&known) {
            return Ok(bind);
        }
        known.retain(|_, bind| bind.strong_count() > 0);
        known.insert(wanted.clone(), Arc::downgrade(&bind));
        Ok(bind)
    }
}

impl Drop for ContainerTree {
    fn drop(&mut self) {
        if let Some(target) = &self.rootfs {
            take_away(target);
        }
        let _ = fs::remove_dir(&self.host);
    }
}

/// Unmounts what is mounted somewhere, and removes its mount point.
fn take_away(target: &Path) {
    // Still mounted: then nothing below it may be removed, and `remove_*` would not.
    if unmount(target).is_ok() {
        let _ = fs::remove_dir(target).or_else(|_| fs::remove_file(target));
    }
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    nix::mount::mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn propagation(target: &Path, flags: MsFlags) -> io::Result<()> {
    nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
    Ok(())
}

fn read_only(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    propagation(target, flags)
}

#[cfg(test)]
impl ContainerTree {
    /// A tree in which nothing can be mounted.
    pub(crate) fn unmounted_for_tests() -> Self {
        let host = PathBuf::from("/nonexistent");
        let binds = Binds { host, known: Mutex::default(), count: AtomicU64::new(0) };
        Self {
            host: PathBuf::from("/nonexistent"),
            guest: SHARE_DIR.to_owned(),
            rootfs: None,
            binds: (Arc::new(binds), Vec::new()),
        }
    }
}
