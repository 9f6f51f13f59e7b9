//! What the kubelet does on the host for a pod's volumes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::failure::{Context, Outcome};

/// A mount on the host, for as long as it is held.
pub struct Mounted {
    /// Where it is.
    pub path: PathBuf,
}

impl Mounted {
    /// An emptyDir in memory, with a size limit in bytes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn memory(path: PathBuf, size: u64) -> Outcome<Self> {
        fs::create_dir_all(&path)?;
        let options = format!("size={size},mode=1777");
        let (tmpfs, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(tmpfs, &path, tmpfs, flags, Some(options.as_str())).context(path.display())?;
        Ok(Self { path })
    }

    /// A file or directory in another place, as for a subPath.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bind(source: &Path, path: PathBuf) -> Outcome<Self> {
        if source.is_dir() {
            fs::create_dir_all(&path)?;
        } else {
            fs::write(&path, "")?;
        }
        let (none, flags) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC);
        mount(Some(source), &path, none, flags, none).context(path.display())?;
        Ok(Self { path })
    }

    /// A directory whose later mounts are seen where it is mounted too, as a node's file systems are.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn shared(path: PathBuf) -> Outcome<Self> {
        let mounted = Self::bind(&path.clone(), path)?;
        let (none, flags) = (None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC);
        mount(none, &mounted.path, none, flags, none).context(mounted.path.display())?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What can't be unmounted shows as a leftover.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// A configMap, secret, downwardAPI or projected volume, written as the kubelet writes it: the files are in a
/// directory of their own, to which `..data` points, and the names that the pod sees point below `..data`
/// (kubernetes, pkg/volume/util/atomic_writer.go). An update is one rename of `..data`.
pub struct AtomicVolume {
    /// The volume.
    pub dir: PathBuf,
    version: u32,
}

impl AtomicVolume {
    /// An empty one in a directory that exists.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, version: 0 }
    }

    /// Replaces all files: paths, which may lead through directories, and contents.
    ///
    /// # Errors
    /// Something can't be written.
    pub fn write(&mut self, files: &[(&str, &str)]) -> Outcome {
        self.version += 1;
        let old = fs::read_link(self.dir.join("..data")).ok();
        let name = format!("..2026_01_01_00_00_{:02}.{}", self.version, 100_000_000 + self.version);
        for (path, content) in files {
            let file = self.dir.join(&name).join(path);
            fs::create_dir_all(file.parent().unwrap_or(&self.dir))?;
            fs::write(file, content)?;
        }
        symlink(&name, self.dir.join("..data_tmp"))?;
        fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data"))?;
        let shown: BTreeSet<&str> =
            files.iter().map(|(path, _)| path.split('/').next().unwrap_or(path)).collect();
        for path in &shown {
            if self.dir.join(path).symlink_metadata().is_err() {
                symlink(Path::new("..data").join(path), self.dir.join(path))?;
            }
        }
        for entry in fs::read_dir(&self.dir)? {
            let file = entry?.file_name();
            let stale =
                file.to_str().is_some_and(|file| !file.starts_with("..") && !shown.contains(file));
            if stale {
                fs::remove_file(self.dir.join(file))?;
            }
        }
        old.map_or(Ok(()), |old| Ok(fs::remove_dir_all(self.dir.join(old))?))
    }
}
