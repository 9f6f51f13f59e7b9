//! Removal of a sandbox's directory, which holds mounts while the sandbox runs.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::RecordError;

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
    let mounts = fs::read("/proc/self/mountinfo")?;
    if let Some(below) = mount_points(&mounts).find(|point| point.starts_with(&real)) {
        let text = format!("{} is still mounted", below.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    match fs::remove_dir_all(&real) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The fifth field of each line (proc_pid_mountinfo(5)).
fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4).map(unescape))
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits after a backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if *byte == b'\\' => {
                path.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                path.push(*byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_with_blanks_in_them() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                     37 35 0:5 / /run/x/a\\040b\\134c rw - overlay overlay rw\n\n";
        let points: Vec<_> = mount_points(text).collect();
        assert_eq!(points, [Path::new("/mnt2"), Path::new("/run/x/a b\\c")]);
    }

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
