//! Root file systems that a snapshotter has on a block device or in an image file: the guest mounts them itself.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::host;
use super::mount::{Mount, MountError, make_target, mount, unmount};
use super::share::ShareError;

/// File systems of such snapshotters, of which the guest's kernel has a driver: devmapper's, blockfile's, erofs'.
const FILE_SYSTEMS: [&str; 4] = ["ext4", "xfs", "btrfs", "erofs"];

/// An image of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The block device or file.
    pub path: PathBuf,
    /// Its file system.
    pub fstype: String,
    /// What the file system is mounted with.
    pub options: Vec<String>,
    /// Whether nothing may be written to it.
    pub read_only: bool,
    /// Whether it is a file: the host could mount it by a loop device alone, which it is spared.
    pub is_file: bool,
}

impl Image {
    /// What the snapshotter gave, if that is one image.
    ///
    /// # Errors
    /// [`ShareError::Source`] if the image is not there.
    pub fn of(mounts: &[Mount]) -> Result<Option<Image>, ShareError> {
        let [mount] = mounts else { return Ok(None) };
        // An erofs may have its data on other devices.
        let others = mount.options.iter().any(|option| option.starts_with("device="));
        if others || !FILE_SYSTEMS.contains(&mount.fstype.as_str()) {
            return Ok(None);
        }
        let path = PathBuf::from(&mount.source);
        let found = host::find(&path).and_then(|found| fs::metadata(host::by_descriptor(&found)));
        let kind = match found {
            Ok(found) => found.file_type(),
            Err(source) => return Err(ShareError::Source { path, source }),
        };
        if !kind.is_block_device() && !kind.is_file() {
            return Ok(None);
        }
        let read_only = mount.options.iter().any(|option| option == "ro");
        // What is about the host's loop device, and notes of a snapshotter to itself.
        let words = |option: &&String| {
            !["loop", "rw", "ro", "direct-io", "defaults"].contains(&option.as_str())
                && !option.starts_with("X-")
        };
        let options = mount.options.iter().filter(words).cloned().collect();
        let (fstype, is_file) = (mount.fstype.clone(), kind.is_file());
        let image = Image { path, fstype, options, read_only: false, is_file };
        Ok(Some(if read_only { image.lower() } else { image }))
    }

    /// The same, read-only.
    #[must_use]
    pub fn lower(mut self) -> Image {
        if !self.read_only {
            self.read_only = true;
            self.options.push("ro".to_owned());
            // A disk that cannot be written to cannot be recovered; it is as its last user has left it.
            match self.fstype.as_str() {
                "ext4" => self.options.push("noload".to_owned()),
                "xfs" => self.options.push("norecovery".to_owned()),
                _ => {}
            }
        }
        self
    }
}

/// An image where a VMM can open it, in the sandbox's directory. Dropping it takes it away from there; who has opened
/// it keeps it.
#[derive(Debug)]
pub struct Exposed {
    /// Where it is.
    pub path: PathBuf,
}

impl Exposed {
    /// Makes it appear under this path.
    ///
    /// # Errors
    /// [`MountError`]
    pub fn at(path: PathBuf, image: &Path) -> Result<Exposed, MountError> {
        make_target(false, &path)?;
        let exposed = Exposed { path };
        let source = image.to_string_lossy().into_owned();
        let bind = Mount { fstype: "bind".to_owned(), source, options: Vec::new() };
        mount(&bind, &exposed.path)?;
        Ok(exposed)
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        if unmount(&self.path).is_ok() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fstype: &str, source: &str, options: &[&str], lower: bool) -> Option<Image> {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mount = Mount { fstype: fstype.to_owned(), source: source.to_owned(), options };
        let image = Image::of(&[mount]).expect("it is there");
        if lower { image.map(Image::lower) } else { image }
    }

    #[test]
    fn an_image_is_a_file_or_a_device_with_a_known_file_system() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let path = file.path().to_str().expect("path");
        let image = of("ext4", path, &["loop", "rw", "X-containerd.x=1", "context=a"], false);
        let image = image.expect("an image");
        assert_eq!(
            (image.options, image.read_only, image.is_file),
            (vec!["context=a".to_owned()], false, true)
        );
        let image = of("xfs", path, &["nouuid", "ro"], false).expect("an image");
        assert_eq!(image.options, ["nouuid", "ro", "norecovery"]);
        assert_eq!(of("ext4", path, &[], true).expect("an image").options, ["ro", "noload"]);
        for (fstype, source) in [("overlay", path), ("ext4", "/"), ("vfat", path)] {
            assert_eq!(of(fstype, source, &[], false), None, "{fstype} {source}");
        }
        assert_eq!(Image::of(&[]).expect("nothing is there"), None);
        let options = Vec::new();
        let gone = Mount { fstype: "ext4".to_owned(), source: "/no/where".to_owned(), options };
        Image::of(&[gone]).expect_err("an image that is not there");
    }
}
