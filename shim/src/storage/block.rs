//! Root file systems that a snapshotter has on a block device or in an image file: the guest mounts them itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::host;
use super::mount::{Mount, MountError, make_target, mount, unmount};
use super::share::ShareError;

/// File systems of such snapshotters, of which the guest's kernel has a driver: devmapper's, blockfile's, erofs'.
const FILE_SYSTEMS: [&str; 4] = ["ext4", "xfs", "btrfs", EROFS];

/// One that is never written to.
pub const EROFS: &str = "erofs";

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
    /// Whether the host mounts it if the VM has no place for it. A file it could by a loop device alone, which it is
    /// spared.
    pub by_host: bool,
}

/// What a container's root file system comes from.
#[derive(Debug, Clone, Default)]
pub enum Root {
    /// Files of the host.
    #[default]
    Files,
    /// One image.
    Image(Image),
    /// Images of layers, the topmost first, and above them a directory of the host: the guest can have its own there.
    Layers(Vec<Image>),
}

impl Root {
    /// What the snapshotter gave.
    ///
    /// # Errors
    /// [`ShareError::Source`] if an image is not there.
    pub fn of(mounts: &[Mount]) -> Result<Root, ShareError> {
        Ok(match Image::of(mounts)? {
            Some(image) => Root::Image(image),
            None => layers(mounts).map_or(Root::Files, Root::Layers),
        })
    }

    /// The images for the guest, the topmost first; none where it sees files. `lower` says that the guest has a
    /// directory of its own above them.
    #[must_use]
    pub fn images(self, lower: bool) -> Vec<Image> {
        match self {
            Root::Image(image) if lower => vec![image.lower()],
            Root::Image(image) => vec![image],
            Root::Layers(layers) if lower => layers,
            Root::Layers(_) | Root::Files => Vec::new(),
        }
    }
}

/// The images below an overlay whose lower directories are all of erofs, as containerd's snapshotter of that name has
/// the host mount them.
fn layers(mounts: &[Mount]) -> Option<Vec<Image>> {
    let [Mount { fstype, options, .. }] = mounts else { return None };
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let lower: Vec<_> = lower.filter(|_| fstype == "overlay")?.split(':').map(Path::new).collect();
    let images = host::sources_of(host::EROFS.into(), &lower)?;
    if !images.iter().all(|image| is_whole(image).unwrap_or(false)) {
        return None;
    }
    // What is in the upper directory already would be missing.
    let upper = options.iter().find_map(|option| option.strip_prefix("upperdir="));
    if upper.is_some_and(|upper| fs::read_dir(upper).map_or(true, |mut dir| dir.next().is_some())) {
        return None;
    }
    let image = |path| Image {
        path,
        fstype: EROFS.to_owned(),
        options: vec!["ro".to_owned()],
        read_only: true,
        by_host: true,
    };
    Some(images.into_iter().map(image).collect())
}

/// Whether a file system of erofs has its data on no other device: `extra_devices` of its superblock (fs/erofs/erofs_fs.h
/// of Linux), which has the magic number that is first.
fn is_whole(image: &Path) -> io::Result<bool> {
    const SUPERBLOCK: u64 = 1024;
    let mut superblock = [0; 88];
    let file = File::open(host::by_descriptor(&host::find(image)?))?;
    file.read_exact_at(&mut superblock, SUPERBLOCK)?;
    Ok(superblock[..4] == host::EROFS.to_le_bytes() && superblock[86..] == [0, 0])
}

impl Image {
    /// What the snapshotter gave, if that is one image.
    ///
    /// # Errors
    /// [`ShareError::Source`] if the image is not there.
    fn of(mounts: &[Mount]) -> Result<Option<Image>, ShareError> {
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
        let (fstype, by_host) = (mount.fstype.clone(), !kind.is_file());
        let image = Image { path, fstype, options, read_only: false, by_host };
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
            (image.options, image.read_only, image.by_host),
            (vec!["context=a".to_owned()], false, false)
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
