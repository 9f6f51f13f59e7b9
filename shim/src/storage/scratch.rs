//! The scratch disk of a sandbox: a sparse file on the host with a file system in it, for what a pod does not keep.
//!
//! ```text
//! <scratch_dir>/<namespace>@<id>.scratch-disk   a sandbox's, locked for as long as its shim lives
//!               <filesystem>-<version>.scratch  an empty one of the size that was asked for last, to copy from
//! ```
//! What guests may still write to their disks is promised to them: a disk that would not fit beside those is refused, so
//! that a guest's disk is full before the host's is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use rustix::fs::{FlockOperation, flock, ioctl_ficlone};
use rustix::io::Errno;
use thiserror::Error;

use crate::config::{self, AssetError, Filesystem, show};
use crate::process::output;
use crate::sparse::copy_data;

/// How the names of disks end.
const DISK: &str = "scratch-disk";

/// How the name of one ends that nobody has used.
const UNUSED: &str = "scratch";

/// A sector, the unit of `st_blocks` (stat(3type)), in bytes.
const SECTOR: u64 = 512;

/// How long a disk may take to be formatted. Others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk that cannot be made.
#[derive(Debug, Error)]
pub enum ScratchError {
    /// The directory or a file in it cannot be used.
    #[error("the scratch disk: {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not fit.
    #[error(
        "a scratch disk of {} does not fit: {} has {} free, of which {} are promised to other sandboxes; \
         choose another scratch_size or scratch_dir",
        show(*size), dir.display(), show(*free), show(*promised)
    )]
    NoSpace {
        /// Its size in bytes.
        size: u64,
        /// Where it was to be.
        dir: PathBuf,
        /// What the host has there, in bytes.
        free: u64,
        /// What others may still take of it, in bytes.
        promised: u64,
    },
    /// The program that formats it is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// It cannot be formatted.
    #[error("{} has failed: {output}", program.display())]
    Format {
        /// The program.
        program: PathBuf,
        /// What it printed.
        output: String,
    },
}

/// A sandbox's disk. Dropping it removes it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// The lock on it says that it is somebody's.
    file: File,
}

impl Scratch {
    /// Makes the disk of this name.
    ///
    /// # Errors
    /// [`ScratchError`]; there is no disk then.
    pub fn create(config: &config::Scratch, name: &str) -> Result<Scratch, ScratchError> {
        let dir = &config.dir;
        let turn = DirBuilder::new().mode(0o700).recursive(true).create(dir);
        let turn = turn.and_then(|()| File::open(dir)).and_then(|dir| {
            flock(&dir, FlockOperation::LockExclusive)?;
            Ok(dir)
        });
        let _turn = turn.map_err(failed(dir))?;
        let promised = promised(dir).map_err(failed(dir))?;
        let status = statvfs(dir).map_err(|error| failed(dir)(error.into()))?;
        let free = status.blocks_available() * status.fragment_size();
        if config.size > free.saturating_sub(promised) {
            return Err(ScratchError::NoSpace {
                size: config.size,
                dir: dir.clone(),
                free,
                promised,
            });
        }
        let path = dir.join(format!("{name}.{DISK}"));
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let disk = Scratch { file: file.map_err(failed(&path))?, path };
        flock(&disk.file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed(&disk.path)(error.into()))?;
        disk.fill(config)?;
        Ok(disk)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk for a VMM to inherit.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn fill(&self, config: &config::Scratch) -> Result<(), ScratchError> {
        let prefix = format!("{}-", config.filesystem.name());
        let unused = format!("{prefix}{}.{UNUSED}", env!("CARGO_PKG_VERSION"));
        let unused = config.dir.join(unused);
        if let Ok(source) = File::open(&unused)
            && source.metadata().is_ok_and(|metadata| metadata.len() == config.size)
        {
            return copy(&source, &self.file).map_err(failed(&self.path));
        }
        self.file.set_len(config.size).map_err(failed(&self.path))?;
        format(config.filesystem, &self.path)?;
        // The next one need not be formatted. It serves one size, and is removed by whoever has another.
        let others = fs::read_dir(&config.dir).into_iter().flatten().flatten();
        for other in others.filter(|other| {
            let name = other.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(UNUSED)
        }) {
            let _ = fs::remove_file(other.path());
        }
        // It has its name once it is whole, whatever happens to the host.
        let part = unused.with_extension(format!("part.{UNUSED}"));
        let kept = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        let whole = kept.and_then(|kept| copy(&self.file, &kept).and_then(|()| kept.sync_all()));
        if whole.and_then(|()| fs::rename(&part, &unused)).is_err() {
            let _ = fs::remove_file(&part);
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the disk of a sandbox that has ended. One that is gone is fine.
pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Removes from a directory of disks what nobody has: those of shims that are gone, and the one to copy from; and the
/// directory itself, if nothing else is in it.
///
/// # Errors
/// What the system says. A directory that is not there is fine.
pub fn clear(dir: &Path) -> io::Result<()> {
    let turn = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        turn => turn?,
    };
    flock(&turn, FlockOperation::LockExclusive)?;
    promised(dir)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == UNUSED) {
            fs::remove_file(&path)?;
        }
    }
    // Another sandbox's disk keeps it.
    let _ = fs::remove_dir(dir);
    Ok(())
}

/// How much of the host's space the guests of all disks may still take, in bytes. Disks whose shim is gone are removed:
/// nobody else would, after the host's own end.
fn promised(dir: &Path) -> io::Result<u64> {
    let mut promised = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != DISK) {
            continue;
        }
        // One that has just gone promises nothing.
        let Ok(disk) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        match flock(&disk, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => {
                remove(&path);
                continue;
            }
        }
        let metadata = disk.metadata()?;
        promised += metadata.len().saturating_sub(metadata.blocks() * SECTOR);
    }
    Ok(promised)
}

/// Makes one file the copy of another: by reference where the file system can, else of what is not a hole.
fn copy(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    copy_data(from, to)
}

fn format(filesystem: Filesystem, path: &Path) -> Result<(), ScratchError> {
    let (name, arguments): (_, &[&str]) = match filesystem {
        // Builds make many small files. What is not written takes nothing on the host: no inode table, no journal.
        Filesystem::Ext4 => {
            let lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
            ("mkfs.ext4", &["-q", "-F", "-m", "0", "-i", "8192", "-E", lazy])
        }
        Filesystem::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
        Filesystem::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"]),
    };
    let program = config::mkfs(name)?;
    let mut command = Command::new(&program);
    let output = output(command.args(arguments).arg(path), PATIENCE).map_err(failed(&program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", ");
    Err(ScratchError::Format { program, output: format!("{}: {said}", output.status) })
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ScratchError + use<> {
    let path = path.to_owned();
    move |source| ScratchError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, size: u64) -> config::Scratch {
        config::Scratch { size, dir: dir.join("scratch"), ..config::Scratch::default() }
    }

    fn names(config: &config::Scratch) -> Vec<String> {
        let entries = fs::read_dir(&config.dir).expect("list").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_disk_takes_little_and_is_gone_with_its_owner() {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = config(dir.path(), 256 << 20);
        let first = Scratch::create(&config, "a.b").expect("a disk");
        let second = Scratch::create(&config, "a.c").expect("a copy");
        for disk in [&first, &second] {
            let metadata = disk.file.metadata().expect("stat");
            assert_eq!(metadata.len(), 256 << 20);
            assert!(metadata.blocks() * SECTOR < 8 << 20, "{} sectors", metadata.blocks());
            // ext4's magic number, in its superblock.
            let mut magic = [0; 2];
            std::os::unix::fs::FileExt::read_exact_at(&disk.file, &mut magic, 1080).expect("read");
            assert_eq!(magic, [0x53, 0xef]);
        }
        assert_eq!(names(&config).len(), 3);
        drop((first, second));
        assert_eq!(names(&config), [format!("ext4-{}.scratch", env!("CARGO_PKG_VERSION"))]);
    }

    #[test]
    fn what_is_promised_counts_and_what_is_orphaned_goes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let small = config(dir.path(), 64 << 20);
        let _first = Scratch::create(&small, "a.b").expect("a disk");
        let orphan = small.dir.join("a.orphan.scratch-disk");
        fs::write(&orphan, "left by a host that was switched off").expect("write");
        let huge = config::Scratch { size: 1 << 50, ..small.clone() };
        let error = Scratch::create(&huge, "a.c").expect_err("too large");
        let ScratchError::NoSpace { promised, .. } = &error else { panic!("{error}") };
        assert!((32 << 20..64 << 20).contains(promised), "{promised}");
        assert!(
            error.to_string().starts_with("a scratch disk of 1048576GiB does not fit: "),
            "{error}"
        );
        assert!(!orphan.exists());
        assert!(!names(&small).contains(&"a.c.scratch-disk".to_owned()));
    }

    #[test]
    fn what_nobody_has_is_cleared() {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = config(dir.path(), 64 << 20);
        let disk = Scratch::create(&config, "a.b").expect("a disk");
        fs::write(config.dir.join("a.orphan.scratch-disk"), "").expect("write");
        clear(&config.dir).expect("cleared");
        assert_eq!(names(&config), ["a.b.scratch-disk"]);
        drop(disk);
        clear(&config.dir).expect("cleared");
        assert!(!config.dir.exists());
        clear(&config.dir).expect("nothing to clear");
    }

    #[test]
    fn two_disks_have_two_names() {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = config(dir.path(), 64 << 20);
        let first = Scratch::create(&config, "a.b").expect("a disk");
        Scratch::create(&config, "a.b").expect_err("taken");
        assert!(first.path().exists());
    }

    #[test]
    fn what_cannot_be_formatted_leaves_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = config(dir.path(), 4096);
        let error = Scratch::create(&config, "a.b").expect_err("no disk").to_string();
        assert!(error.contains("mkfs.ext4 has failed: exit status: "), "{error}");
        assert_eq!(names(&config), [""; 0]);
    }
}
