//! Removal of a sandbox's directory, which holds mounts while the sandbox runs.

use std::fs;
use std::io;
use std::path::Path;

use super::RecordError;
use crate::storage::mount::mounts;

/// Removes a sandbox's directory with what the sandbox left in it; never through a mount, so what
/// was shared with the guest stays whole. Nothing there is fine.
///
/// # Errors
/// [`RecordError::Remove`]
pub fn remove_directory(path: &Path) -> Result<(), RecordError> {
    remove(path).map_err(|source| RecordError::Remove { path: path.to_owned(), source })
}

fn remove(path: &Path) -> io::Result<()> {
    // The kernel lists mounts by their real paths.
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let table = fs::read("/proc/self/mountinfo")?;
    if let Some(below) = mounts(&table).find(|mount| mount.point.starts_with(&real)) {
        let text = format!("{} is still mounted", below.point.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    match fs::remove_dir_all(&real) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_removed_and_a_mount_is_not() {
        let dir = tempfile::tempdir().expect("tempdir").keep();
        fs::create_dir_all(dir.join("a/b")).expect("mkdir");
        std::os::unix::fs::symlink("/etc", dir.join("a/link")).expect("symlink");
        remove_directory(&dir).expect("remove");
        assert!(!dir.exists() && Path::new("/etc").exists());
        remove_directory(&dir).expect("again");
        // /proc is a mount of every machine.
        let error = remove_directory(Path::new("/proc")).expect_err("a mount");
        assert!(
            matches!(error, RecordError::Remove { source, .. } if source.to_string().contains("still mounted"))
        );
    }
}
