//! The programs and guest images of a sandbox: named in the configuration, or in the usual places.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::AssetError;

/// The paths that the configuration names; what is not named is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The guest's kernel.
    pub kernel: Option<PathBuf>,
    /// The guest's initramfs, which holds the agent.
    pub initramfs: Option<PathBuf>,
    /// The VMM of that name.
    pub cloud_hypervisor: Option<PathBuf>,
    /// QEMU's system emulator.
    pub qemu: Option<PathBuf>,
    /// The file-share daemon.
    pub virtiofsd: Option<PathBuf>,
    /// The vsock daemon that QEMU needs.
    pub vhost_device_vsock: Option<PathBuf>,
}

type Found = Result<PathBuf, AssetError>;

impl Files {
    /// # Errors
    /// [`AssetError`] where the file is missing or not readable; so for each of these.
    pub fn kernel(&self) -> Result<PathBuf, AssetError> {
        image("kernel", "vmlinux", &self.kernel)
    }

    /// # Errors
    /// [`AssetError`]
    pub fn initramfs(&self) -> Result<PathBuf, AssetError> {
        image("initramfs", "initramfs.cpio", &self.initramfs)
    }

    /// # Errors
    /// [`AssetError`] where the program is missing or not executable; so for each of these.
    pub fn cloud_hypervisor(&self) -> Result<PathBuf, AssetError> {
        program("cloud_hypervisor", "cloud-hypervisor", &self.cloud_hypervisor)
    }

    /// # Errors
    /// [`AssetError`]
    pub fn qemu(&self) -> Result<PathBuf, AssetError> {
        program("qemu", "qemu-system-x86_64", &self.qemu)
    }

    /// # Errors
    /// [`AssetError`]
    pub fn virtiofsd(&self) -> Result<PathBuf, AssetError> {
        program("virtiofsd", "virtiofsd", &self.virtiofsd)
    }

    /// # Errors
    /// [`AssetError`]
    pub fn vhost_device_vsock(&self) -> Result<PathBuf, AssetError> {
        program("vhost_device_vsock", "vhost-device-vsock", &self.vhost_device_vsock)
    }
}

/// The program of this name that makes a scratch disk's file system.
///
/// # Errors
/// [`AssetError`]
pub fn mkfs(name: &'static str) -> Result<PathBuf, AssetError> {
    program("scratch_filesystem", name, &None)
}

/// Where distributions put programs that are not for people to call, besides PATH.
/// `/usr/lib/qemu` may have a virtiofsd of another kind, which came with QEMU before version 8.
const EXTRA_PROGRAM_DIRS: [&str; 3] = ["/usr/local/bin", "/usr/libexec", "/usr/sbin"];

/// First `libexec/bulkhead` beside the running program's `bin`: what an installation brings where the host has none, or
/// one that is too old.
fn program_dirs() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    once_each(beside("libexec/bulkhead").into_iter().chain(dirs_of_path(&path)))
}

fn dirs_of_path(path: &OsStr) -> Vec<PathBuf> {
    // A relative directory in PATH would be looked up in a container's bundle.
    let absolute = env::split_paths(path).filter(|dir| dir.is_absolute());
    once_each(absolute.chain(EXTRA_PROGRAM_DIRS.map(PathBuf::from)))
}

/// `share/bulkhead` beside the running program's `bin`, then where installations put it.
fn image_dirs() -> Vec<PathBuf> {
    let usual = ["/usr/local/share/bulkhead", "/usr/share/bulkhead"].map(PathBuf::from);
    once_each(beside("share/bulkhead").into_iter().chain(usual))
}

fn beside(directory: &str) -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    Some(own.parent()?.parent()?.join(directory))
}

fn once_each(dirs: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in dirs {
        if !found.contains(&dir) {
            found.push(dir);
        }
    }
    found
}

fn image(key: &'static str, name: &'static str, named: &Option<PathBuf>) -> Found {
    find(key, name, named.as_deref(), &image_dirs(), readable)
}

fn program(key: &'static str, name: &'static str, named: &Option<PathBuf>) -> Found {
    find(key, name, named.as_deref(), &program_dirs(), executable)
}

fn readable(path: &Path) -> io::Result<()> {
    is_file(path)?;
    File::open(path).map(drop)
}

fn executable(path: &Path) -> io::Result<()> {
    is_file(path)?;
    Ok(access(path, AccessFlags::X_OK)?)
}

fn is_file(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

fn find(
    key: &'static str,
    name: &'static str,
    named: Option<&Path>,
    dirs: &[PathBuf],
    usable: impl Fn(&Path) -> io::Result<()>,
) -> Found {
    if let Some(path) = named {
        return match usable(path) {
            Ok(()) => Ok(path.to_owned()),
            Err(source) => Err(AssetError::Unusable { key, path: path.to_owned(), source }),
        };
    }
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path| usable(path).is_ok());
    found.ok_or_else(|| AssetError::NotFound { name, key, looked_in: dirs.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn make_executable(path: &Path) {
        fs::write(path, "").expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    #[test]
    fn the_first_usable_directory_wins() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).expect("mkdir");
        fs::create_dir(&b).expect("mkdir");
        fs::write(a.join("virtiofsd"), "not executable").expect("write");
        make_executable(&b.join("virtiofsd"));
        let found =
            find("virtiofsd", "virtiofsd", None, &[a, b.clone()], executable).expect("found");
        assert_eq!(found, b.join("virtiofsd"));
    }

    #[test]
    fn what_is_nowhere_is_named_with_its_key_and_the_places() {
        let dirs = [PathBuf::from("/nowhere/a"), PathBuf::from("/nowhere/b")];
        let error = find("kernel", "vmlinux", None, &dirs, readable).expect_err("no kernel");
        let text = error.to_string();
        assert_eq!(
            text,
            "vmlinux is not installed: not found in /nowhere/a, /nowhere/b; install it or set kernel"
        );
    }

    #[test]
    fn a_named_file_is_never_replaced_by_another() {
        let dir = tempfile::tempdir().expect("tempdir");
        make_executable(&dir.path().join("qemu"));
        let named = dir.path().join("gone");
        let dirs = [dir.path().to_owned()];
        let error = find("qemu", "qemu", Some(&named), &dirs, executable).expect_err("gone");
        assert!(error.to_string().starts_with("qemu = "), "{error}");
        assert!(error.source().is_some_and(|s| s.to_string().contains("No such file")));
        let error =
            find("qemu", "qemu", Some(dir.path()), &dirs, executable).expect_err("a directory");
        assert!(error.source().is_some_and(|s| s.to_string().contains("not a regular file")));
    }

    #[test]
    fn relative_parts_of_path_are_left_out() {
        let dirs = dirs_of_path(OsStr::new(".:/usr/bin::bin:/usr/local/bin"));
        let expected = ["/usr/bin", "/usr/local/bin", "/usr/libexec", "/usr/sbin"];
        assert_eq!(dirs, expected.map(PathBuf::from));
    }
}
