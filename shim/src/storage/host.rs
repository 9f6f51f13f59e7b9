//! What is mounted on the host, and of which type.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::fstatfs;
use rustix::io::Errno;

use super::mount::mounts;
pub use crate::host::{by_descriptor, find, find_exactly, path_of, tree, within};

/// `TMPFS_MAGIC` of linux/magic.h: the file system's type that fstatfs(2) tells.
pub const TMPFS: i64 = 0x0102_1994;

/// `HUGETLBFS_MAGIC` of linux/magic.h.
pub const HUGETLBFS: i64 = 0x9584_58f6;

/// `EROFS_SUPER_MAGIC_V1` of linux/magic.h; the number that a superblock starts with, too.
pub const EROFS: u32 = 0xe0f5_e1e2;

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
