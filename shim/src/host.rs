//! The host's files as the host sees them now. The shim's own mount namespace has what the host had mounted when the
//! shim began, and later mounts only where the host hands them on.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open as open_file, openat2};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys::in_thread;

/// The mount namespace in which containerd started the shim.
static HOST: OnceLock<OwnedFd> = OnceLock::new();

/// Takes note of the mount namespace that is about to be left. Without it this process's own is the host's.
pub fn remember() -> io::Result<()> {
    let namespace = open_file("/proc/self/ns/mnt", OFlags::CLOEXEC, Mode::empty())?;
    // A second call comes from the same namespace.
    let _ = HOST.set(namespace);
    Ok(())
}

/// What is at a path: not opened itself, but found again by its descriptor.
pub fn find(path: &Path) -> io::Result<OwnedFd> {
    within(|| open_file(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
}

/// Where the file of a descriptor is, without symbolic links.
pub fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(by_descriptor(file))
}

/// What is at a path that is canonical: no symbolic link is followed, whoever has put it there.
pub fn find_exactly(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    within(|| openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS))
}

/// A copy of the mount at a path, with those below it if it is `recursive`; it is mounted nowhere yet.
pub fn tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    within(|| open_tree(CWD, path, flags))
}

/// The name by which the file of a descriptor can be used.
pub fn by_descriptor(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Does something in the host's mount namespace, in a thread of its own, which ends there.
pub fn within<T: Send>(work: impl FnOnce() -> rustix::io::Result<T> + Send) -> io::Result<T> {
    let Some(host) = HOST.get() else {
        return Ok(work()?);
    };
    in_thread(|| {
        unshare(CloneFlags::CLONE_FS)?;
        setns(host.as_fd(), CloneFlags::CLONE_NEWNS)?;
        Ok(work()?)
    })
}
