//! What libcontainer leaves undone in a container's root file system.
//!
//! It is done by this program once more, as an OCI `createContainer` hook: inside the container's
//! namespaces, when all is mounted and the root is not entered yet. Most containers need none of it
//! and have no such hook.

use std::collections::HashSet;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Hook, HookBuilder, Hooks, Linux, Mount, Spec};
use libcontainer::rootfs::utils::{default_devices, parse_mount};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::fstat;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use serde::{Deserialize, Serialize};

use super::mounts::{clean, is_bind};
use super::program::is_null;
use super::rootfs::Rootfs;
use super::spec;
use crate::error::{Error, Result};
use crate::sys::by_descriptor;

/// The work, in the container's bundle.
const FILE: &str = "finish.json";

/// The work to do, in this order. All paths are the container's, but for the root.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    root: PathBuf,
    /// Directories of devices, which libcontainer makes writable for all.
    device_directories: Vec<PathBuf>,
    /// The working directory, which runc makes if it is missing.
    cwd: Option<PathBuf>,
    /// Bind mounts onto places of devices, where libcontainer wants to find nothing: their sources, their places, and the
    /// options of the mount. For runc a place that is taken is fine.
    binds: Vec<(PathBuf, PathBuf, u64)>,
    /// Mounts with propagation or with options of the file system as a whole, and those.
    remounts: Vec<(PathBuf, u64)>,
    /// Masked paths, of which libcontainer would mask a link and not what it leads to.
    masked: Vec<PathBuf>,
    /// Read-only paths; libcontainer would make them noexec, too.
    readonly: Vec<PathBuf>,
}

impl Finish {
    /// Takes out of the spec what is to be done here, and a hook into it if there is anything.
    ///
    /// # Errors
    /// When the work can't be written down in the bundle.
    pub fn plan(spec: &mut Spec, bundle: &Path, arguments: Vec<String>) -> Result<()> {
        let Some(finish) = Self::of(spec) else {
            return Ok(());
        };
        spec::write(&finish, &bundle.join(FILE))?;
        let hook: Hook = HookBuilder::default()
            .path("/proc/self/exe")
            .args(arguments)
            .build()
            .map_err(|error| Error::Internal(error.to_string()))?;
        let mut hooks = Hooks::default();
        hooks.set_create_container(Some(vec![hook]));
        spec.set_hooks(Some(hooks));
        Ok(())
    }

    /// The work that the spec's container needs; none for most.
    fn of(spec: &mut Spec) -> Option<Self> {
        let root = spec.root().as_ref()?.path().clone();
        let mut finish = Self { root, ..Self::default() };
        let mut linux = spec.linux().clone()?;
        let paths = linux.readonly_paths().iter().flatten();
        if paths.map(Path::new).any(|path| clean(path) == Path::new("/"))
            && let Some(root) = spec.root_mut()
        {
            // What would be mounted over it is not what the container gets as its root.
            root.set_readonly(Some(true));
        }
        finish.take_binds(spec, &linux);
        for mount in spec.mounts_mut().iter_mut().flatten() {
            finish.note_mount(mount);
        }
        // Those in a mount of its own, or without a mount in the image, may be there already, and somebody else's.
        let mounts = spec.mounts().iter().flatten().map(|mount| clean(mount.destination()));
        let (dev, others): (Vec<_>, Vec<_>) = mounts.partition(|mount| mount == Path::new("/dev"));
        let made = |above: &&Path| {
            above.starts_with("/dev")
                && *above != Path::new("/dev")
                && !dev.is_empty()
                && !others.iter().any(|mount| above.starts_with(mount))
        };
        for device in linux.devices().iter().flatten() {
            let path = clean(device.path());
            let above = path.ancestors().skip(1).filter(made);
            finish.device_directories.extend(above.map(Path::to_owned));
        }
        if let Some(paths) = linux.readonly_paths().clone() {
            // Under /proc and /sys nothing is to be executed anyway.
            let paths = paths.into_iter().filter(|path| clean(Path::new(path)) != Path::new("/"));
            let (kernel, others) = by_owner(paths);
            finish.readonly = others;
            linux.set_readonly_paths(Some(kernel));
        }
        if let Some(paths) = linux.masked_paths().clone() {
            let (kernel, others) = by_owner(paths);
            finish.masked = others;
            linux.set_masked_paths(Some(kernel));
        }
        if let Some(process) = spec.process() {
            finish.note_cwd(process.cwd(), spec.mounts().as_deref().unwrap_or_default());
        }
        spec.set_linux(Some(linux));
        let nothing = Self { root: finish.root.clone(), ..Self::default() };
        (finish != nothing).then_some(finish)
    }

    fn take_binds(&mut self, spec: &mut Spec, linux: &Linux) {
        let defaults = default_devices();
        let devices = linux.devices().iter().flatten().chain(&defaults);
        let places: HashSet<PathBuf> = devices.map(|device| clean(device.path())).collect();
        let Some(mounts) = spec.mounts_mut() else { return };
        mounts.retain(|mount| {
            let place = clean(mount.destination());
            let (true, true, Some(source)) =
                (is_bind(mount), places.contains(&place), mount.source())
            else {
                return true;
            };
            let flags = parse_mount(mount).map_or(0, |parsed| parsed.flags.bits());
            self.binds.push((source.clone(), place, flags));
            false
        });
    }

    fn note_mount(&mut self, mount: &mut Mount) {
        let mut propagation = MsFlags::empty();
        let mut whole = MsFlags::empty();
        for option in mount.options().iter().flatten() {
            match option.as_str() {
                "shared" => propagation = MsFlags::MS_SHARED,
                "rshared" => propagation = MsFlags::MS_SHARED | MsFlags::MS_REC,
                "slave" => propagation = MsFlags::MS_SLAVE,
                "rslave" => propagation = MsFlags::MS_SLAVE | MsFlags::MS_REC,
                "unbindable" => propagation = MsFlags::MS_UNBINDABLE,
                "runbindable" => propagation = MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
                "sync" if !is_bind(mount) => whole |= MsFlags::MS_SYNCHRONOUS,
                "dirsync" if !is_bind(mount) => whole |= MsFlags::MS_DIRSYNC,
                _ => {}
            }
        }
        let path = mount.destination().clone();
        // The guest's own mounts are private; so are copies of them, and slaves of them.
        if !(propagation & (MsFlags::MS_SHARED | MsFlags::MS_UNBINDABLE)).is_empty() {
            self.remounts.push((path.clone(), propagation.bits()));
        }
        if !whole.is_empty() {
            self.remounts.push((path.clone(), (whole | MsFlags::MS_REMOUNT).bits()));
        }
        // Until then places for other mounts can be made in it.
        if mount.typ().as_deref() == Some("tmpfs")
            && !is_bind(mount)
            && let Some(options) = mount.options_mut()
            && options.iter().any(|option| option == "ro")
        {
            options.retain(|option| option != "ro");
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            self.remounts.push((path, flags.bits()));
        }
    }

    /// The directory must be made if it is missing, or if it may be: below a mount, that is not to
    /// be seen yet.
    fn note_cwd(&mut self, cwd: &Path, mounts: &[Mount]) {
        let cwd = clean(cwd);
        let covered = mounts
            .iter()
            .map(|mount| clean(mount.destination()))
            .any(|mount| cwd.starts_with(&mount) && cwd != mount);
        let there = || Rootfs::open(&self.root).and_then(|root| root.directory(&cwd)).is_ok();
        let mounted = mounts.iter().any(|mount| clean(mount.destination()) == cwd);
        if covered || !(mounted || there()) {
            self.cwd = Some(cwd);
        }
    }

    fn run(&self) -> Result<()> {
        let root = Rootfs::open(&self.root)
            .map_err(|error| Error::io("cannot open the container's root", error))?;
        for path in &self.device_directories {
            let failed =
                |error| Error::io(format_args!("cannot set the mode of {}", path.display()), error);
            let directory = root.directory(path).map_err(failed)?;
            std::fs::set_permissions(by_descriptor(&directory), Permissions::from_mode(0o755))
                .map_err(failed)?;
        }
        if let Some(cwd) = &self.cwd {
            root.make_directories(cwd).map_err(|error| {
                let cwd = cwd.display();
                Error::InvalidArgument(format!("cannot make process.cwd {cwd}: {error}"))
            })?;
        }
        for (source, path, flags) in &self.binds {
            bind(&root, source, path, MsFlags::from_bits_truncate(*flags))?;
        }
        if self.remounts.iter().any(|(path, _)| clean(path) == Path::new("/dev")) {
            // A terminal's place, which libcontainer makes later. Without a /dev there is none.
            let console = root.directory(Path::new("/dev")).map(|dev| by_descriptor(&dev));
            let _ = console.map(|dev| File::create(Path::new(&dev).join("console")));
        }
        for (path, flags) in &self.remounts {
            change(&root, path, MsFlags::from_bits_truncate(*flags))?;
        }
        for path in &self.masked {
            mask(&root, path)?;
        }
        for path in &self.readonly {
            make_read_only(&root, path)?;
        }
        Ok(())
    }
}

/// Does the work that is written down in the bundle.
///
/// # Errors
/// What the kernel refused.
pub fn run(bundle: &Path) -> Result<()> {
    spec::read::<Finish>("what is left to do", &bundle.join(FILE))?.run()
}

/// Mounts what is at `source` on the place of a device.
fn bind(root: &Rootfs, source: &Path, path: &Path, flags: MsFlags) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        let (source, path) = (source.display(), path.display());
        Error::io(format_args!("cannot mount {source} on {path}"), error)
    };
    let place = root.place(path).map_err(|error| failed(&error))?;
    let kind = flags & (MsFlags::MS_BIND | MsFlags::MS_REC) | MsFlags::MS_BIND;
    mount(Some(source), by_descriptor(&place).as_str(), None::<&str>, kind, None::<&str>)
        .map_err(|error| failed(&error))?;
    let options = flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if options.is_empty() {
        return Ok(());
    }
    add(root, path, MsFlags::MS_BIND | options, failed)
}

/// Changes the propagation or the options of what is mounted on a path.
fn change(root: &Rootfs, path: &Path, flags: MsFlags) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::io(format_args!("cannot apply the options of the mount {}", path.display()), error)
    };
    if flags.contains(MsFlags::MS_REMOUNT) {
        return add(root, path, flags, failed);
    }
    let place = root.place(path).map_err(|error| failed(&error))?;
    remount(&place, flags).map_err(|error| failed(&error))
}

/// Gives what is mounted on top of a path options besides those that it has.
fn add(
    root: &Rootfs,
    path: &Path,
    options: MsFlags,
    failed: impl Fn(&dyn std::fmt::Display) -> Error,
) -> Result<()> {
    let place = root.place(path).map_err(|error| failed(&error))?;
    let kept = flags_of(&place).map_err(|error| failed(&error))?;
    remount(&place, MsFlags::MS_REMOUNT | options | kept).map_err(|error| failed(&error))
}

/// The place at a path, if there is anything.
fn existing(root: &Rootfs, path: &Path) -> std::io::Result<Option<File>> {
    match root.place(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        place => place.map(Some),
    }
}

/// Hides what is at a path, or where its links lead; one that isn't there may stay away.
fn mask(root: &Rootfs, path: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::io(format_args!("cannot mask {}", path.display()), error)
    };
    let Some(place) = existing(root, path).map_err(|error| failed(&error))? else {
        return Ok(());
    };
    let name = by_descriptor(&place);
    let masked = if place.metadata().map_err(|error| failed(&error))?.is_dir() {
        mount(Some("tmpfs"), name.as_str(), Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)
    } else {
        let own = root.place(Path::new("/dev/null")).ok();
        let own = own.filter(|own| fstat(own).is_ok_and(|found| is_null(&found)));
        let null = own.as_ref().map_or_else(|| "/dev/null".to_owned(), by_descriptor);
        mount(Some(null.as_str()), name.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    masked.map_err(|error| failed(&error))
}

/// Makes a path read-only with all that its mount is already; one that isn't there may stay away.
fn make_read_only(root: &Rootfs, path: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::io(format_args!("cannot make {} read-only", path.display()), error)
    };
    let Some(place) = existing(root, path).map_err(|error| failed(&error))? else {
        return Ok(());
    };
    let name = by_descriptor(&place);
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(name.as_str()), name.as_str(), None::<&str>, bind, None::<&str>)
        .map_err(|error| failed(&error))?;
    add(root, path, MsFlags::MS_BIND | MsFlags::MS_RDONLY, failed)
}

fn remount(place: &File, flags: MsFlags) -> Result<(), Errno> {
    mount(None::<&str>, by_descriptor(place).as_str(), None::<&str>, flags, None::<&str>)
}

/// The options that the mount around a place has, to be kept when it is mounted again. In statvfs(3) they have the bits
/// that they have in mount(2), but for one.
fn flags_of(place: &File) -> Result<MsFlags, Errno> {
    let same = FsFlags::ST_RDONLY | FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC;
    let same = same | FsFlags::ST_NOATIME | FsFlags::ST_NODIRATIME;
    let flags = fstatvfs(place)?.flags();
    let mut kept = MsFlags::from_bits_truncate((flags & same).bits());
    kept.set(MsFlags::MS_RELATIME, flags.contains(FsFlags::ST_RELATIME));
    Ok(kept)
}

/// Paths in file systems that show the kernel, and others.
fn by_owner(paths: impl IntoIterator<Item = String>) -> (Vec<String>, Vec<PathBuf>) {
    let (kernel, others): (Vec<_>, Vec<_>) =
        paths.into_iter().partition(|path| is_kernels(&clean(Path::new(path))));
    (kernel, others.into_iter().map(PathBuf::from).collect())
}

/// Whether a path is in a file system that shows the kernel.
fn is_kernels(path: &Path) -> bool {
    path.starts_with("/proc") || path.starts_with("/sys")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(json: &str) -> Option<Finish> {
        let mut spec: Spec = serde_json::from_str(json).unwrap();
        Finish::of(&mut spec)
    }

    #[test]
    fn an_ordinary_container_needs_nothing() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"/"},
            "process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/usr"},
            "mounts":[{"destination":"/proc","type":"proc"},{"destination":"/dev","type":"tmpfs"},
                {"destination":"/data","source":"/x","options":["rbind","ro","rprivate"]}],
            "linux":{"readonlyPaths":["/proc/sys","/sys/firmware"]}}"#;
        assert_eq!(finish(json), None);
    }

    #[test]
    fn what_libcontainer_leaves_undone_is_found() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"/"},
            "process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/data/new"},
            "mounts":[{"destination":"/dev","type":"tmpfs","options":["ro"]},
                {"destination":"/data","source":"/x","options":["rbind","rshared"]},
                {"destination":"/s","type":"tmpfs","options":["sync"]}],
            "linux":{"readonlyPaths":["/proc/sys","/bin"],
                "devices":[{"path":"/dev/net/tun","type":"c","major":10,"minor":200}]}}"#;
        let finish = finish(json).unwrap();
        assert_eq!(finish.cwd.as_deref(), Some(Path::new("/data/new")));
        assert_eq!(finish.readonly, [PathBuf::from("/bin")]);
        assert_eq!(finish.device_directories, [PathBuf::from("/dev/net")]);
        let flags: Vec<_> = finish.remounts.iter().map(|(_, flags)| *flags).collect();
        assert_eq!(
            flags,
            [
                (MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).bits(),
                (MsFlags::MS_SHARED | MsFlags::MS_REC).bits(),
                (MsFlags::MS_SYNCHRONOUS | MsFlags::MS_REMOUNT).bits()
            ]
        );
    }

    #[test]
    fn a_read_only_path_may_be_the_root() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"/"},
            "linux":{"readonlyPaths":["/usr/..","/sys"]}}"#;
        let mut spec: Spec = serde_json::from_str(json).unwrap();
        assert_eq!(Finish::of(&mut spec), None);
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    }

    #[test]
    fn directories_that_are_not_made_for_a_device_are_left_alone() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"/"},
            "mounts":[{"destination":"/dev","type":"tmpfs"},{"destination":"/dev/data","source":"/x","type":"bind"}],
            "linux":{"devices":[{"path":"/dev/data/deep/null","type":"c","major":1,"minor":3}]}}"#;
        assert_eq!(finish(json), None);
    }

    #[test]
    fn what_is_mounted_on_a_device_waits_for_the_device() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"/"},
            "mounts":[{"destination":"/dev/random","source":"/dev/urandom","options":["rbind","ro"]}],"linux":{}}"#;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY;
        let bind = ("/dev/urandom".into(), "/dev/random".into(), flags.bits());
        assert_eq!(finish(json).unwrap().binds, [bind]);
    }

    #[test]
    fn a_missing_working_directory_is_to_be_made() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"/"},"linux":{},
            "process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/no/such/directory"}}"#;
        assert_eq!(finish(json).unwrap().cwd.as_deref(), Some(Path::new("/no/such/directory")));
    }
}
