//! What a container stands on: directories and file systems of its own, which end with it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;

use bulkhead_protocols::DISK_BY_SERIAL;
use bulkhead_protocols::agent::{Directory, HugePages, Mount};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::syncfs;

use super::hugepages;
use crate::error::{Error, Result};
use crate::setup::mount_one;
use crate::sys::{by_descriptor, lock};

/// How many directories are on their way out, or have gone.
static GONE: AtomicU64 = AtomicU64::new(0);

/// What there is of it so far.
#[derive(Debug, Default)]
pub struct Ground(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    mounts: Vec<String>,
    directories: Vec<PathBuf>,
    disks: Vec<String>,
    huge_pages: Vec<HugePages>,
}

impl Ground {
    /// Makes the directories, and mounts the file systems.
    ///
    /// # Errors
    /// What the kernel refused; what was made until then is known to [`Ground::clear`].
    pub fn make(&self, directories: &[Directory], mounts: &[Mount]) -> Result<()> {
        let mut made = lock(&self.0);
        for directory in directories {
            let path = Path::new(&directory.path);
            if directory.own {
                made.directories.push(path.to_owned());
            }
            let failed = |error| Error::io(format_args!("cannot make {}", path.display()), error);
            let found = make(path, directory).map_err(failed)?;
            if !directory.shown_at.is_empty() {
                show(&found, Path::new(&directory.shown_at)).map_err(failed)?;
                made.mounts.push(directory.shown_at.clone());
            }
        }
        for mount in mounts {
            mount_one(mount)?;
            made.mounts.push(mount.target.clone());
            if mount.source.starts_with(DISK_BY_SERIAL) {
                made.disks.push(mount.target.clone());
            }
        }
        Ok(())
    }

    /// Sets huge pages aside.
    ///
    /// # Errors
    /// [`hugepages::reserve`]'s.
    pub fn reserve(&self, wanted: Vec<HugePages>) -> Result<()> {
        for pages in wanted {
            hugepages::reserve(&pages)?;
            lock(&self.0).huge_pages.push(pages);
        }
        Ok(())
    }

    /// Takes note of disks that the container uses by their nodes.
    pub fn add_disks(&self, nodes: Vec<String>) {
        lock(&self.0).disks.extend(nodes);
    }

    /// The disks of the host's that are mounted for the container, or that it has itself: they live on when it ends.
    pub fn disks(&self) -> Vec<String> {
        lock(&self.0).disks.clone()
    }

    /// Takes all of it away. What is in the directories may be much: it goes in a thread of its own, under other names.
    pub fn clear(&self) {
        let made = std::mem::take(&mut *lock(&self.0));
        hugepages::release(made.huge_pages);
        for target in made.mounts.iter().rev() {
            let unmounted =
                umount2(target.as_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            if let Err(error) = unmounted {
                log::warn!("cannot unmount {target}: {error}");
            }
            // It may have been a file that was shown.
            let _ = fs::remove_dir(target).or_else(|_| fs::remove_file(target));
            // The container's own directory goes with the last of them.
            let _ = Path::new(target).parent().map(fs::remove_dir);
        }
        for path in &made.directories {
            // No container's name starts with a dot.
            let number = GONE.fetch_add(1, Ordering::Relaxed);
            let gone = path.with_file_name(format!(".gone-{number}"));
            // What lay below one that has gone went with it.
            if fs::rename(path, part(&gone, 0)).is_ok() {
                let remove = move || {
                    if let Err(error) = remove_parts(&gone) {
                        log::warn!("cannot remove {}: {error}", gone.display());
                    }
                };
                if let Err(error) = Builder::new().spawn(remove) {
                    log::warn!("what is left of a container stays: {error}");
                }
            }
        }
    }
}

/// One of the directories that a tree is taken apart into.
fn part(tree: &Path, number: u64) -> PathBuf {
    let mut name = tree.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Removes a tree, of which so far only the first part is there. Each directory in it becomes another part, so that this
/// takes neither stack nor memory for what a container may have made without end.
fn remove_parts(tree: &Path) -> io::Result<()> {
    let (mut done, mut made) = (0, 1);
    while done < made {
        let directory = part(tree, done);
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::rename(entry.path(), part(tree, made))?;
                made += 1;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(&directory)?;
        done += 1;
    }
    Ok(())
}

/// Has everything that was written to a file system, or to a disk by its node, be on the disk.
pub fn sync(target: &str) {
    let synced = File::open(target).and_then(|file| {
        let is_node = file.metadata()?.file_type().is_block_device();
        if is_node { file.sync_all() } else { Ok(syncfs(file)?) }
    });
    if let Err(error) = synced {
        log::warn!("{target} is not written out: {error}");
    }
}

/// Makes a directory, unless it is there, or a file is, and opens it as a place. A link that a container has put on the way
/// is an error, whenever it comes.
fn make(path: &Path, directory: &Directory) -> io::Result<File> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if !parent.exists() {
        fs::create_dir_all(parent)?;
    }
    let above = place(AT_FDCWD, parent)?;
    match mkdirat(&above, name, Mode::S_IRWXU) {
        Ok(()) => {
            let made = place(&above, Path::new(name))?;
            let path = by_descriptor(&made);
            chown(&path, Some(directory.uid), Some(directory.gid))?;
            // Whatever the umask is.
            fs::set_permissions(&path, Permissions::from_mode(directory.mode))?;
            Ok(made)
        }
        Err(Errno::EEXIST) => place(&above, Path::new(name)),
        Err(error) => Err(error.into()),
    }
}

/// Opens what is at a path, whatever it is, without following a link.
fn place(from: impl AsFd, path: &Path) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(from, path, how) {
        Ok(place) => Ok(place.into()),
        Err(Errno::ELOOP) => Err(io::Error::other("there is a symbolic link on the way")),
        Err(error) => Err(error.into()),
    }
}

/// Has a place be at another path, too.
fn show(found: &File, path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    if found.metadata()?.is_dir() {
        fs::create_dir(path)?;
    } else {
        File::create_new(path)?;
    }
    let source = by_descriptor(found);
    Ok(mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory(path: &Path, own: bool) -> Directory {
        let path = path.display().to_string();
        Directory { path, mode: 0o2750, own, ..Default::default() }
    }

    #[test]
    fn a_tree_of_any_depth_is_removed_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("bulkhead-parts-{}", std::process::id()));
        let gone = root.join(".gone-1");
        let first = part(&gone, 0);
        fs::create_dir_all(root.join("kept/x")).unwrap();
        fs::create_dir_all(&first).unwrap();
        symlink(root.join("kept"), first.join("link")).unwrap();
        // Deeper than a path is long.
        for level in 0..50 {
            let deep = first.join("a/".repeat(100));
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join("file"), "x").unwrap();
            let above = root.join(format!("level-{level}"));
            fs::rename(first.join("a"), &above).unwrap();
            fs::create_dir(first.join("a")).unwrap();
            fs::rename(above, first.join("a/a")).unwrap();
            if level > 0 {
                fs::rename(root.join("rest"), first.join("a/rest")).unwrap();
            }
            fs::rename(first.join("a"), root.join("rest")).unwrap();
        }
        fs::rename(root.join("rest"), first.join("rest")).unwrap();
        remove_parts(&gone).unwrap();
        let left: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
        let kept = root.join("kept/x").exists();
        fs::remove_dir_all(&root).unwrap();
        assert!(kept);
        assert_eq!(left, ["kept"]);
    }

    #[test]
    fn directories_are_made_once_and_follow_no_link() {
        let root = std::env::temp_dir().join(format!("bulkhead-ground-{}", std::process::id()));
        let (kept, own) = (root.join("volumes/a"), root.join("containers/c"));
        let ground = Ground::default();
        let wanted =
            [directory(&kept, false), directory(&own, true), directory(&own.join("0"), true)];
        // Not everybody may give a directory away, even to himself.
        let made = ground.make(&wanted, &[]);
        let mode = fs::metadata(&kept).map(|found| found.permissions().mode() & 0o7777);
        symlink("/etc", root.join("link")).unwrap();
        let linked = ground.make(&[directory(&root.join("link"), false)], &[]);
        ground.clear();
        let left = (kept.exists(), own.exists());
        // What has gone is being taken apart in a thread of its own.
        while fs::remove_dir_all(&root).is_err_and(|e| e.kind() == io::ErrorKind::DirectoryNotEmpty)
        {
        }
        if nix::unistd::Uid::effective().is_root() {
            made.unwrap();
            assert_eq!(mode.unwrap(), 0o2750);
            assert_eq!(left, (true, false));
        }
        assert!(linked.unwrap_err().to_string().contains("symbolic link"));
    }
}
