//! The guest's root and its kernel file systems.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

/// Where the root is put together before it becomes `/`.
const NEW_ROOT: &str = "/sysroot";

/// A file system that could not be mounted, or a directory for one that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mount point is missing and can't be made.
    #[error("cannot make the directory {path}: {source}")]
    Directory {
        /// The mount point.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused a mount.
    #[error("cannot mount {fstype} on {path}: {source}")]
    Mount {
        /// The file system's type.
        fstype: &'static str,
        /// The mount point.
        path: String,
        /// Why.
        source: nix::Error,
    },
    /// The new root could not take the place of the initramfs.
    #[error("cannot move the new root onto /: {0}")]
    Root(#[source] nix::Error),
}

/// A kernel file system.
struct Entry {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Mounted in this order; what a systemd host has, as far as containers see it.
const ENTRIES: &[Entry] = &[
    Entry { fstype: "proc", target: "/proc", flags: SAFE, data: "" },
    Entry { fstype: "sysfs", target: "/sys", flags: SAFE, data: "" },
    Entry { fstype: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, data: "mode=755" },
    Entry {
        fstype: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "gid=5,mode=620,ptmxmode=666",
    },
    Entry {
        fstype: "tmpfs",
        target: "/dev/shm",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=1777",
    },
    Entry { fstype: "mqueue", target: "/dev/mqueue", flags: SAFE, data: "" },
    Entry {
        fstype: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=755",
    },
    Entry {
        fstype: "tmpfs",
        target: "/tmp",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=1777",
    },
    Entry { fstype: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE, data: "nsdelegate" },
];

/// Puts a root of its own in the place of the initramfs, with every kernel file system mounted.
///
/// pivot_root(2), which every container needs, refuses to work while `/` is the initramfs itself;
/// a mount moved onto `/` is a root like any other.
///
/// # Errors
/// When one of the mounts fails: no container would run without it.
pub fn prepare() -> Result<(), Error> {
    let new_root = Entry { fstype: "tmpfs", target: "", flags: MsFlags::empty(), data: "mode=755" };
    new_root.mount_under(NEW_ROOT)?;
    for entry in ENTRIES {
        entry.mount_under(NEW_ROOT)?;
    }
    chdir(NEW_ROOT).map_err(Error::Root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(Error::Root)?;
    chroot(".").map_err(Error::Root)?;
    chdir("/").map_err(Error::Root)
}

impl Entry {
    fn mount_under(&self, root: &str) -> Result<(), Error> {
        let path = format!("{root}{}", self.target);
        if !Path::new(&path).is_dir() {
            fs::create_dir_all(&path)
                .map_err(|source| Error::Directory { path: path.clone(), source })?;
        }
        let data = (!self.data.is_empty()).then_some(self.data);
        mount(Some(self.fstype), path.as_str(), Some(self.fstype), self.flags, data)
            .map_err(|source| Error::Mount { fstype: self.fstype, path, source })
    }
}
