//! The host's files as the host sees them now. The shim's own mount namespace has what the host had mounted when the
//! sandbox began, and later mounts only where the host hands them on.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, open as open_file, openat2};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount::mounts;

/// `TMPFS_MAGIC` of linux/magic.h: the file system's type that fstatfs(2) tells.
pub const TMPFS: i64 = 0x0102_1994;

/// `HUGETLBFS_MAGIC` of linux/magic.h.
pub const HUGETLBFS: i64 = 0x9584_58f6;

/// `EROFS_SUPER_MAGIC_V1` of linux/magic.h; the number that a superblock starts with, too.
pub const EROFS: u32 = 0xe0f5_e1e2;

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

/// What is mounted right at a path: the directory in its own file system. None if nothing is.
pub fn mounted_at(path: &Path) -> Option<PathBuf> {
    mounts(&table()?).filter(|mount| mount.point == path).last().map(|mount| mount.root)
}

/// What the file systems of this type (statfs(2)) are on that are mounted right at these paths, as a whole. None unless
/// all are; where one is of another type, the host's mounts, of which there may be thousands, are not read.
pub fn sources_of(magic: i64, paths: &[&Path]) -> Option<Vec<PathBuf>> {
    let is_one = |path: &&Path| find(path).is_ok_and(|found| type_of(&found) == Some(magic));
    if !paths.iter().all(is_one) {
        return None;
    }
    let mounted: Vec<_> = mounts(&table()?).collect();
    let source = |path: &&Path| {
        let mount = mounted.iter().rfind(|mount| mount.point == *path)?;
        (mount.root == Path::new("/")).then(|| mount.source.clone())
    };
    paths.iter().map(source).collect()
}

/// The host's mounts: the table is of the namespace of the thread that reads it.
fn table() -> Option<Vec<u8>> {
    within(|| fs::read("/proc/thread-self/mountinfo").map_err(|_| Errno::IO)).ok()
}

/// The type of the file system that has the file of a descriptor (statfs(2)).
pub fn type_of(file: &OwnedFd) -> Option<i64> {
    Some(fstatfs(file).ok()?.f_type)
}

/// The name by which the file of a descriptor can be used.
pub fn by_descriptor(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Does something in the host's mount namespace, in a thread of its own, which ends there.
fn within<T: Send>(work: impl FnOnce() -> rustix::io::Result<T> + Send) -> io::Result<T> {
    let Some(host) = HOST.get() else {
        return Ok(work()?);
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(host.as_fd(), CloneFlags::CLONE_NEWNS)?;
            Ok(work()?)
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread broke off")))
    })
}
