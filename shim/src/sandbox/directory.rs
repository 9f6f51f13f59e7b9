//! The directory of a sandbox, below the configured state directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::sys::short_name;

/// Where the sandbox of this id keeps its sockets, its record and its share. Short whatever the id
/// is: a unix socket's path ends at 107 bytes.
pub fn path(state_dir: &Path, namespace: &str, id: &str) -> PathBuf {
    state_dir.join(short_name(&[namespace, id]))
}

/// Makes it, for root's eyes only.
pub fn create(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    DirBuilder::new().mode(0o700).create(path)
}
