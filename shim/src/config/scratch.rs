//! The scratch disk: what the configuration says of it.

use std::path::{Component, PathBuf};

use serde::Deserialize;

/// The disk that a sandbox has for as long as it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// In bytes; 0 for none.
    pub size: u64,
    /// What it is formatted with.
    pub filesystem: Filesystem,
    /// Directories of each container that lie on it.
    pub paths: Vec<PathBuf>,
    /// Where the host keeps the disks.
    pub dir: PathBuf,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            size: 10 << 30,
            filesystem: Filesystem::Ext4,
            paths: Vec::new(),
            dir: PathBuf::from("/var/lib/bulkhead"),
        }
    }
}

/// A file system that a disk may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// The default.
    Ext4,
    /// Large files, many writers at once.
    Xfs,
    /// Snapshots of its own.
    Btrfs,
}

impl Filesystem {
    /// As mount(8) calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Filesystem::Ext4 => "ext4",
            Filesystem::Xfs => "xfs",
            Filesystem::Btrfs => "btrfs",
        }
    }

    /// The smallest disk that it can be made on, in bytes (mkfs.xfs(8), mkfs.btrfs(8)).
    #[must_use]
    pub fn least(self) -> u64 {
        match self {
            Filesystem::Ext4 => 16 << 20,
            Filesystem::Xfs => 300 << 20,
            Filesystem::Btrfs => 128 << 20,
        }
    }
}

/// Whether a container's directory can be another file system: an absolute path, not the root, that goes straight
/// there.
pub(super) fn is_directory(path: &std::path::Path) -> bool {
    let mut parts = path.components();
    let first = parts.next() == Some(Component::RootDir);
    let mut rest = parts.peekable();
    first && rest.peek().is_some() && rest.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::is_directory;

    #[test]
    fn a_directory_is_named_from_the_root() {
        assert!(is_directory(Path::new("/var/lib/docker")));
        for other in ["", "/", "var", "/a/../b", "/.."] {
            assert!(!is_directory(Path::new(other)), "{other}");
        }
    }
}
