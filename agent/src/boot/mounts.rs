//! The guest's root and its kernel file systems.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::error::{Error, Result};

/// Where the root is put together before it becomes `/`.
const NEW_ROOT: &str = "/sysroot";

/// A kernel file system.
struct Entry {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

/// Each forbids what the one before it does, and more.
const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NODEV: MsFlags = NOSUID.union(MsFlags::MS_NODEV);
const SAFE: MsFlags = NODEV.union(MsFlags::MS_NOEXEC);

/// Mounted in this order; what a systemd host has, as far as containers see it.
const ENTRIES: &[Entry] = &[
    Entry { fstype: "proc", target: "/proc", flags: SAFE, data: "" },
    Entry { fstype: "sysfs", target: "/sys", flags: SAFE, data: "" },
    Entry { fstype: "devtmpfs", target: "/dev", flags: NOSUID, data: "mode=755" },
    Entry {
        fstype: "devpts",
        target: "/dev/pts",
        flags: NOSUID.union(MsFlags::MS_NOEXEC),
        data: "gid=5,mode=620,ptmxmode=666",
    },
    Entry { fstype: "tmpfs", target: "/dev/shm", flags: NODEV, data: "mode=1777" },
    Entry { fstype: "mqueue", target: "/dev/mqueue", flags: SAFE, data: "" },
    Entry { fstype: "tmpfs", target: "/run", flags: NODEV, data: "mode=755" },
    Entry { fstype: "tmpfs", target: "/tmp", flags: NODEV, data: "mode=1777" },
    Entry { fstype: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE, data: "nsdelegate" },
];

/// Puts a root of its own in the place of the initramfs, with every kernel file system mounted.
///
/// pivot_root(2), which every container needs, refuses to work while `/` is the initramfs itself;
/// a mount moved onto `/` is a root like any other.
///
/// # Errors
/// When one of the mounts fails: no container would run without it.
pub fn prepare() -> Result<()> {
    let new_root = Entry { fstype: "tmpfs", target: "", flags: MsFlags::empty(), data: "mode=755" };
    new_root.mount_under(NEW_ROOT)?;
    for entry in ENTRIES {
        entry.mount_under(NEW_ROOT)?;
    }
    chdir(NEW_ROOT)
        .and_then(|()| mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"))
        .map_err(|error| Error::io("cannot move the new root onto /", error))
}

impl Entry {
    fn mount_under(&self, root: &str) -> Result<()> {
        let path = format!("{root}{}", self.target);
        if !Path::new(&path).is_dir() {
            fs::create_dir_all(&path).map_err(|error| {
                Error::io(format_args!("cannot make the directory {path}"), error)
            })?;
        }
        let data = (!self.data.is_empty()).then_some(self.data);
        mount(Some(self.fstype), path.as_str(), Some(self.fstype), self.flags, data).map_err(
            |error| Error::io(format_args!("cannot mount {} on {path}", self.fstype), error),
        )
    }
}
