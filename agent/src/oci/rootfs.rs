//! Paths inside a container's root file system, which a container may have filled with symbolic
//! links: each is resolved as the container itself would resolve it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};

use super::mounts::clean;

/// As many links as the kernel follows (path_resolution(7)).
const LINKS: u32 = 40;

/// An open root file system.
pub struct Rootfs(File);

impl Rootfs {
    /// Opens the directory that is the container's root.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Opens a directory, as a place only.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn directory(&self, path: &Path) -> io::Result<File> {
        self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// Opens a file of any kind, as a place only.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn place(&self, path: &Path) -> io::Result<File> {
        self.resolve(path, OFlag::O_PATH)
    }

    /// Whether a path itself is a symbolic link.
    pub fn is_link(&self, path: &Path) -> bool {
        let found = self.resolve(path, OFlag::O_PATH | OFlag::O_NOFOLLOW);
        found.and_then(|found| found.metadata()).is_ok_and(|found| found.is_symlink())
    }

    /// Makes a directory and what is missing above it, for everyone to enter.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make_directories(&self, path: &Path) -> io::Result<()> {
        let mut place = self.0.try_clone()?;
        let mut done = PathBuf::from("/");
        for name in clean(path).components().skip(1) {
            done.push(name);
            match mkdirat(&place, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            place = self.directory(&done)?;
        }
        Ok(())
    }

    /// Where a path leads that is not there, or whose links lead to what is not there: there runc makes what is missing,
    /// and libcontainer does not. A loop of links leads nowhere.
    pub fn followed(&self, path: &Path) -> PathBuf {
        let names = |path: &Path| -> Vec<_> {
            path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
        };
        let (mut done, mut left, mut links) = (PathBuf::from("/"), names(path), 0..LINKS);
        while let Some(name) = left.pop() {
            let next = clean(&done.join(name));
            let link = self.resolve(&next, OFlag::O_PATH | OFlag::O_NOFOLLOW);
            match link.ok().and_then(|link| readlinkat(link, "").ok()) {
                Some(target) if links.next().is_some() => left.extend(names(Path::new(&target))),
                _ => done = next,
            }
        }
        done
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(File::from(openat2(&self.0, path, how)?))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_to_what_is_missing_lead_there() {
        let root = std::env::temp_dir().join(format!("bulkhead-links-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("var")).unwrap();
        symlink("../run/systemd/../resolve/stub", root.join("etc/resolv.conf")).unwrap();
        symlink("/run", root.join("var/run")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let rootfs = Rootfs::open(&root).unwrap();
        let followed = ["/etc/resolv.conf", "/var/run/x", "/a/b", "/../var/./run/..", "/loop/x"]
            .map(|path| rootfs.followed(Path::new(path)));
        std::fs::remove_dir_all(&root).unwrap();
        let expected = ["/run/resolve/stub", "/run/x", "/a/b", "/", "/loop/x"];
        assert_eq!(followed, expected.map(PathBuf::from));
    }

    #[test]
    fn links_stay_inside_the_root() {
        let root = std::env::temp_dir().join(format!("bulkhead-rootfs-{}", std::process::id()));
        std::fs::create_dir_all(root.join("var")).unwrap();
        symlink("/var/../../../../var", root.join("link")).unwrap();
        let rootfs = Rootfs::open(&root).unwrap();
        rootfs.make_directories(Path::new("/link/a/../b")).unwrap();
        let made = root.join("var/b").is_dir() && !root.join("var/a").exists();
        let found = rootfs.directory(Path::new("/link/b")).is_ok();
        let missing = rootfs.place(Path::new("/etc/passwd")).is_err();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(made && found && missing);
    }
}
