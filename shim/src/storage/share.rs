//! The share: the one directory tree of a sandbox that its guest sees by virtiofs.
//!
//! ```text
//! <sandbox>/share/host/<container>/rootfs    what the shim mounts
//!                                 /0, /1...  bind mounts of the spec
//! <sandbox>/share/guest                      the same tree, served by virtiofsd
//! ```
//! Both are one file system in one peer group: what is mounted below `host` appears below `guest`.
//! The top of `guest` is read-only. A guest can thus change what is inside of its containers' mounts,
//! and nothing of the tree that holds them: it plants no symlink where the shim mounts next.
//!
//! All of it lives in the shim's own mount namespace and ends with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_protocols::SHARE_DIR;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use thiserror::Error;

use super::host;
use super::mount::{self, Mount, MountError, make_target, mount, mounts_below, unmount};

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
    host::remember()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    propagation("/".as_ref(), MsFlags::MS_SLAVE | MsFlags::MS_REC)
}

/// The tree of one sandbox.
#[derive(Debug)]
pub struct Share {
    host: PathBuf,
    guest: PathBuf,
}

impl Share {
    /// Makes the tree below `sandbox`.
    pub fn create(sandbox: &Path) -> Result<Self, ShareError> {
        let share = Self { host: sandbox.join("share/host"), guest: sandbox.join("share/guest") };
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
        Ok(ContainerTree { host, guest: format!("{SHARE_DIR}/{id}"), targets: Vec::new() })
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
    targets: Vec<PathBuf>,
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
        self.targets.push(target.clone());
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
        let metadata = host::find(source)
            .and_then(|found| fs::metadata(host::by_descriptor(&found)))
            .map_err(|error| ShareError::Source { path: source.to_owned(), source: error })?;
        let name = self.targets.len().to_string();
        let target = self.host.join(&name);
        make_target(metadata.is_dir(), &target)?;
        self.targets.push(target.clone());
        let bind = Mount {
            fstype: "bind".into(),
            source: source.to_string_lossy().into_owned(),
            options: options.to_vec(),
        };
        mount(&bind, &target)?;
        Ok(Bound { guest: format!("{}/{name}", self.guest), host: target })
    }
}

#[cfg(test)]
impl ContainerTree {
    /// A tree in which nothing can be mounted.
    pub(crate) fn unmounted_for_tests() -> Self {
        Self {
            host: PathBuf::from("/nonexistent"),
            guest: SHARE_DIR.to_owned(),
            targets: Vec::new(),
        }
    }
}

impl Drop for ContainerTree {
    fn drop(&mut self) {
        for target in self.targets.drain(..).rev() {
            // Still mounted: then nothing below it may be removed, and `remove_*` would not.
            if unmount(&target).is_ok() {
                let _ = fs::remove_dir(&target).or_else(|_| fs::remove_file(&target));
            }
        }
        let _ = fs::remove_dir(&self.host);
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
