//! Mounts as containerd and OCI write them: a type, a source, and options in `mount(8)`'s words.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};
use thiserror::Error;

use super::host;
use crate::sys::in_thread;

/// Longest option text that the kernel takes: a page, with its end.
const DATA_LIMIT: usize = 4095;

/// A mount to make on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// File system type; `bind` for a bind mount.
    pub fstype: String,
    /// Device, directory or file.
    pub source: String,
    /// `ro`, `nosuid`, `lowerdir=...`, one each.
    pub options: Vec<String>,
}

/// A mount that could not be made or taken away.
#[derive(Debug, Error)]
pub enum MountError {
    /// An option asks for what a mount on the host must not do here.
    #[error("mount of {fstype} {source_path:?}: option {option:?} is not supported")]
    Option {
        /// The mount's type.
        fstype: String,
        /// The mount's source.
        source_path: String,
        /// The option.
        option: String,
    },
    /// The options do not fit in a page, even relative to their common directory.
    #[error(
        "mount of {fstype} on {target}: options of {length} bytes, the kernel takes {DATA_LIMIT}"
    )]
    TooLong {
        /// The mount's type.
        fstype: String,
        /// Where it was to be.
        target: PathBuf,
        /// How long they are.
        length: usize,
    },
    /// The kernel refused.
    #[error("mount of {fstype} {source_path:?} on {target}: {source}")]
    Mount {
        /// The mount's type.
        fstype: String,
        /// The mount's source.
        source_path: String,
        /// Where it was to be.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The mount point, or the directories above it, could not be made.
    #[error("mount point {target}: {source}")]
    Target {
        /// The mount point.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The same, read-only. An overlay loses its upper directory: what is in it is one of the lower ones.
pub fn read_only(mount: &Mount) -> Mount {
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let options = mount.options.iter().filter_map(|option| match (option.split_once('='), upper) {
        (Some(("lowerdir", lower)), Some(upper)) => Some(format!("lowerdir={upper}:{lower}")),
        (Some(("upperdir" | "workdir" | "index", _)), _) => None,
        _ => (option != "rw").then(|| option.clone()),
    });
    let options = options.chain(["ro".to_owned()]).collect();
    Mount { options, ..mount.clone() }
}

/// Mounts `mount` on `target`, which exists.
pub fn mount(mount: &Mount, target: &Path) -> Result<(), MountError> {
    let parsed = parse(mount)?;
    let failed = |source: io::Error| MountError::Mount {
        fstype: mount.fstype.clone(),
        source_path: mount.source.clone(),
        target: target.to_owned(),
        source,
    };
    if parsed.flags.contains(MsFlags::MS_BIND) {
        return bind(&mount.source, &parsed, target).map_err(failed);
    }
    let (base, data) = shorten(&parsed.data, mount, target)?;
    let call = || {
        nix::mount::mount(
            Some(mount.source.as_str()),
            target,
            Some(mount.fstype.as_str()),
            parsed.flags,
            Some(data.as_str()),
        )
        .map_err(io::Error::from)
    };
    let Some(base) = base else { return call().map_err(failed) };
    // The working directory of the process stays as it is.
    let from_base = || {
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(&base)?;
        call()
    };
    in_thread(from_base).map_err(failed)
}

/// A bind mount that has all its attributes before anybody sees it.
fn bind(source: &str, parsed: &Parsed, target: &Path) -> io::Result<()> {
    let tree = host::tree(Path::new(source), parsed.flags.contains(MsFlags::MS_REC))?;
    // What the host mounts there later comes in or stays out; nothing goes the other way.
    let propagation = if parsed.private { libc::MS_PRIVATE } else { libc::MS_SLAVE };
    set_attributes(&tree, libc::AT_RECURSIVE, 0, 0, propagation)?;
    if parsed.read_only_below {
        set_attributes(&tree, libc::AT_RECURSIVE, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
    }
    let mut set = 0;
    for (flag, attribute) in [
        (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
        (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (MsFlags::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
    ] {
        if parsed.flags.contains(flag) {
            set |= attribute;
        }
    }
    let times = libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_STRICTATIME;
    // One of these replaces another, and the kernel wants to be told so.
    let clear = if set & times == 0 { 0 } else { libc::MOUNT_ATTR__ATIME };
    if set != 0 {
        set_attributes(&tree, 0, set, clear, 0)?;
    }
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// mount_setattr(2) on a tree that is mounted nowhere yet.
fn set_attributes(
    tree: &OwnedFd,
    flags: libc::c_int,
    set: u64,
    clear: u64,
    propagation: libc::c_ulong,
) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    // SAFETY: the path is empty and ends in a NUL, and the attributes have the size that is given; both live until
    // the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes every mount on `target` away, at once for new users and as soon as they are done for
/// those that still hold files there. Nothing mounted there is fine.
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where something is mounted below a directory, relative to it. None if that cannot be told.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    // The kernel lists mounts by their real paths, and a spare's directory has two names.
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut below: Vec<PathBuf> = mounts(&table)
        .filter_map(|mount| Some(mount.point.strip_prefix(&directory).ok()?.to_owned()))
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    below.sort();
    below.dedup();
    below
}

/// What is mounted somewhere.
pub struct Mounted {
    /// Which directory of its file system it shows.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// What the file system is on.
    pub source: PathBuf,
}

/// The mounts of a table as /proc/self/mountinfo (proc(5)).
pub fn mounts(table: &[u8]) -> impl Iterator<Item = Mounted> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let mut next = || fields.next().map(unescape);
        let (root, point) = (next()?, next()?);
        // Optional fields end with a hyphen; after it is the type.
        while next()? != Path::new("-") {}
        let source = fields.nth(1).map(unescape)?;
        Some(Mounted { root, point, source })
    })
}

/// A path of /proc/self/mountinfo, where a blank, say, is written \040 (proc(5)).
fn unescape(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

/// Makes what a bind mount of `source` needs as its mount point: a directory for a directory, an
/// empty file for anything else.
pub fn make_target(source_is_dir: bool, target: &Path) -> Result<(), MountError> {
    let made = if source_is_dir {
        fs::create_dir(target)
    } else {
        fs::OpenOptions::new().write(true).create_new(true).open(target).map(drop)
    };
    made.map_err(|source| MountError::Target { target: target.to_owned(), source })
}

struct Parsed {
    flags: MsFlags,
    /// The OCI option `rro`: what is mounted below is read-only too.
    read_only_below: bool,
    /// What the host mounts below the source later is not seen.
    private: bool,
    data: Vec<String>,
}

fn parse(mount: &Mount) -> Result<Parsed, MountError> {
    let mut flags = MsFlags::empty();
    let mut read_only_below = false;
    let mut private = false;
    let mut data = Vec::new();
    if mount.fstype == "bind" {
        flags |= MsFlags::MS_BIND;
    }
    for option in &mount.options {
        match option.as_str() {
            "defaults" | "rw" | "" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rro" => read_only_below = true,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "suid" => flags -= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "dev" => flags -= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "exec" => flags -= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "private" | "rprivate" => private = true,
            // The host's mounts come in anyway, and what happens inside the container is the guest's business.
            "slave" | "rslave" | "shared" | "rshared" | "unbindable" | "runbindable" => {}
            "remount" | "loop" => {
                return Err(MountError::Option {
                    fstype: mount.fstype.clone(),
                    source_path: mount.source.clone(),
                    option: option.clone(),
                });
            }
            // Notes of a snapshotter to itself, as in fstab(5).
            note if note.starts_with("X-") || note.starts_with("x-") => {}
            _ => data.push(option.clone()),
        }
    }
    Ok(Parsed { flags, read_only_below, private, data })
}

/// Overlay options name a directory for each layer, and many layers exceed a page. Named relative
/// to the directory that they share, they fit. Returns that directory, if it is needed.
fn shorten(
    data: &[String],
    mount: &Mount,
    target: &Path,
) -> Result<(Option<PathBuf>, String), MountError> {
    let whole = data.join(",");
    if whole.len() <= DATA_LIMIT {
        return Ok((None, whole));
    }
    let too_long = |length| MountError::TooLong {
        fstype: mount.fstype.clone(),
        target: target.to_owned(),
        length,
    };
    let Some(base) = common_directory(data) else {
        return Err(too_long(whole.len()));
    };
    let prefix = format!("{}/", base.display());
    let short = data
        .iter()
        .map(|option| match option.split_once('=') {
            Some(("lowerdir", value)) => {
                let paths: Vec<_> =
                    value.split(':').map(|p| p.strip_prefix(&prefix).unwrap_or(p)).collect();
                format!("lowerdir={}", paths.join(":"))
            }
            Some((key @ ("upperdir" | "workdir"), value)) => {
                format!("{key}={}", value.strip_prefix(&prefix).unwrap_or(value))
            }
            _ => option.clone(),
        })
        .collect::<Vec<_>>()
        .join(",");
    if short.len() > DATA_LIMIT {
        return Err(too_long(short.len()));
    }
    Ok((Some(base), short))
}

fn common_directory(data: &[String]) -> Option<PathBuf> {
    let lower = data.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let mut paths = lower.split(':').map(Path::new);
    let mut base = paths.next()?.parent()?.to_owned();
    for path in paths {
        while !path.starts_with(&base) {
            base = base.parent()?.to_owned();
        }
    }
    (base.is_absolute() && base.as_os_str() != OsStr::new("/")).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_a_lower_layer_loses_what_it_could_be_written_with() {
        let of = |fstype: &str, options: &[&str]| {
            let options = options.iter().map(|one| (*one).to_owned()).collect();
            let mount = Mount { fstype: fstype.to_owned(), source: "x".to_owned(), options };
            read_only(&mount).options
        };
        let overlay = ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"];
        assert_eq!(of("overlay", &overlay), ["lowerdir=/u:/a:/b", "ro"]);
        assert_eq!(of("overlay", &["lowerdir=/a:/b"]), ["lowerdir=/a:/b", "ro"]);
        assert_eq!(of("bind", &["rw", "rbind"]), ["rbind", "ro"]);
    }

    fn overlay(layers: usize) -> Mount {
        let dir = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let lower: Vec<_> = (0..layers).map(|layer| format!("{dir}/{layer}/fs")).collect();
        Mount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                "index=off".into(),
                format!("workdir={dir}/900/work"),
                format!("upperdir={dir}/900/fs"),
                format!("lowerdir={}", lower.join(":")),
            ],
        }
    }

    #[test]
    fn options_become_flags_and_data() {
        let parsed = parse(&Mount {
            fstype: "bind".into(),
            source: "/a".into(),
            options: ["rbind", "ro", "nosuid", "x-note=1", "rprivate", "size=1"]
                .map(Into::into)
                .into(),
        })
        .unwrap();
        let expected = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        assert_eq!(parsed.flags, expected);
        assert_eq!(parsed.data, ["size=1"]);
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let mount = Mount { options: vec!["loop".into()], ..overlay(1) };
        assert!(parse(&mount).err().unwrap().to_string().contains("\"loop\""));
    }

    #[test]
    fn a_mount_points_name_is_read_back() {
        for (text, path) in [
            ("/plain", "/plain"),
            ("/a\\040b\\134c", "/a b\\c"),
            ("/\\", "/\\"),
            ("/\\99", "/\\99"),
        ] {
            assert_eq!(unescape(text.as_bytes()), Path::new(path));
        }
        assert!(mounts_below(Path::new("/nonexistent")).is_empty());
        assert!(mounts_below(Path::new("/")).contains(&PathBuf::from("proc")));
    }

    #[test]
    fn few_layers_keep_their_full_paths() {
        let mount = overlay(3);
        let (base, data) = shorten(&mount.options, &mount, Path::new("/t")).unwrap();
        assert_eq!(base, None);
        assert_eq!(data, mount.options.join(","));
    }

    #[test]
    fn a_hundred_layers_fit_in_a_page() {
        let mount = overlay(127);
        let (base, data) = shorten(&mount.options, &mount, Path::new("/t")).unwrap();
        assert!(base.unwrap().ends_with("snapshots"));
        assert!(data.len() <= DATA_LIMIT);
        assert!(data.contains("lowerdir=0/fs:1/fs:") && data.contains("upperdir=900/fs"), "{data}");
    }

    #[test]
    fn too_many_layers_are_an_error() {
        let mount = overlay(2000);
        let error = shorten(&mount.options, &mount, Path::new("/t")).unwrap_err();
        assert!(matches!(error, MountError::TooLong { .. }));
    }
}
