//! What a container has on its sandbox's scratch disk: volumes that nobody keeps, directories that it was asked to have
//! there, and what it writes to its root file system.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bulkhead_protocols::{
    DISK_BY_SERIAL, PARTS_DIR, ROOTFS_DIR, SCRATCH_DIR, SCRATCH_SERIAL, agent,
};
use oci_spec::runtime::{Mount, Spec};

use crate::config::Filesystem;
use crate::storage::host::{self, HUGETLBFS, TMPFS};

/// Below a pod's directory, the kubelet's volumes of this kind live as long as the pod. A container's mount of a part
/// of a volume (`subPath`) is another mount of it on the host, in a directory of its own.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
const SUB_PATHS: &str = "volume-subpaths";

/// What of all containers of a sandbox lies on its disk.
#[derive(Debug, Clone)]
pub struct OnScratch {
    /// What the disk is formatted with.
    pub filesystem: Filesystem,
    /// Directories of each container.
    pub paths: Vec<PathBuf>,
    /// Whether it takes what they write to their root file systems.
    pub upper: bool,
}

/// What of one container lies there.
#[derive(Debug, Default, PartialEq)]
pub struct Held {
    /// The disk's own mount; none if nothing does.
    pub disk: Option<agent::Mount>,
    /// Directories to make.
    pub directories: Vec<agent::Directory>,
    /// File systems to mount for the container.
    pub mounts: Vec<agent::Mount>,
}

impl OnScratch {
    /// Whether it takes what a container writes to its root file system, which may be read-only.
    pub fn takes_upper(&self, read_only: bool) -> bool {
        self.upper && !read_only
    }

    /// Puts aside what the container writes to its root file system, which is at `rootfs` in the guest. Returns where
    /// it is then.
    pub fn upper(&self, rootfs: &str, container: &str, held: &mut Held) -> String {
        self.own(container, held);
        let (upper, work) = (own(container, "upper"), own(container, "work"));
        for path in [&upper, &work] {
            held.directories.push(directory(path.clone(), 0o755, true));
        }
        let target = format!("{ROOTFS_DIR}/{container}/merged");
        held.mounts.push(agent::Mount {
            source: "rootfs".to_owned(),
            target: target.clone(),
            fstype: "overlay".to_owned(),
            options: vec![
                format!("lowerdir={rootfs}"),
                format!("upperdir={upper}"),
                format!("workdir={work}"),
            ],
            ..Default::default()
        });
        target
    }

    /// Makes `mount` one of the guest's if it shows a volume that the pod does not keep; says whether it does.
    pub fn volume(&self, mount: &mut Mount, container: &str, held: &mut Held) -> bool {
        let Some(volume) = mount.source().as_deref().and_then(Volume::at) else { return false };
        self.disk(held);
        let mut path = PathBuf::from(SCRATCH_DIR).join("volumes").join(&volume.name);
        held.directories.push(like(&volume.host, &path));
        let mut host = volume.host;
        for part in &volume.part {
            host.push(part);
            path.push(part);
            held.directories.push(like(&host, &path));
        }
        if volume.part.iter().next().is_some() {
            path = Path::new(PARTS_DIR).join(container).join(held.directories.len().to_string());
            if let Some(last) = held.directories.last_mut() {
                last.shown_at = path.to_string_lossy().into_owned();
            }
        }
        mount.set_source(Some(path));
        true
    }

    /// Adds the directories that each container has on the disk, unless it has something there already.
    pub fn add_paths(&self, spec: &mut Spec, container: &str, held: &mut Held) {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (number, path) in self.paths.iter().enumerate() {
            if mounts.iter().any(|mount| mount.destination() == path) {
                continue;
            }
            self.own(container, held);
            let source = own(container, &number.to_string());
            held.directories.push(directory(source.clone(), 0o755, true));
            let mut mount = Mount::default();
            mount.set_destination(path.clone());
            mount.set_typ(Some("bind".to_owned()));
            mount.set_source(Some(source.into()));
            mount.set_options(Some(vec!["rbind".to_owned()]));
            // What the spec mounts below it stays to be seen.
            let below = mounts.iter().position(|mount| mount.destination().starts_with(path));
            mounts.insert(below.unwrap_or(mounts.len()), mount);
        }
        spec.set_mounts(Some(mounts));
    }

    /// The directory of what ends with the container.
    fn own(&self, container: &str, held: &mut Held) {
        self.disk(held);
        let path = format!("{SCRATCH_DIR}/containers/{container}");
        if !held.directories.iter().any(|directory| directory.path == path) {
            held.directories.push(directory(path, 0o700, true));
        }
    }

    fn disk(&self, held: &mut Held) {
        held.disk.get_or_insert_with(|| {
            // The disk ends with its VM: nothing has to be in an order that outlives a crash. What is freed, the host
            // has again.
            let options: &[&str] = match self.filesystem {
                // Tables of inodes that nobody uses are not written.
                Filesystem::Ext4 => &["discard", "nobarrier", "data=writeback", "noinit_itable"],
                Filesystem::Xfs => &["discard"],
                Filesystem::Btrfs => &["discard=async", "nobarrier"],
            };
            agent::Mount {
                source: format!("{DISK_BY_SERIAL}{SCRATCH_SERIAL}"),
                target: SCRATCH_DIR.to_owned(),
                fstype: self.filesystem.name().to_owned(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
                ..Default::default()
            }
        });
    }
}

fn own(container: &str, name: &str) -> String {
    format!("{SCRATCH_DIR}/containers/{container}/{name}")
}

fn directory(path: String, mode: u32, own: bool) -> agent::Directory {
    agent::Directory { path, mode, own, ..Default::default() }
}

/// A directory with the mode and the owner that one of the host has.
fn like(host: &Path, path: &Path) -> agent::Directory {
    let found = host::find(host).and_then(|found| fs::metadata(host::by_descriptor(&found)));
    let made = directory(path.to_string_lossy().into_owned(), 0o777, false);
    match found {
        Ok(found) => agent::Directory {
            mode: found.permissions().mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            ..made
        },
        Err(_) => made,
    }
}

/// An emptyDir, or a part of one.
struct Volume {
    /// Its directory on the host.
    host: PathBuf,
    name: String,
    /// The part, relative to it; empty for all of it.
    part: PathBuf,
}

impl Volume {
    /// The one that is at a path of the host, if it is on a disk there.
    fn at(source: &Path) -> Option<Volume> {
        let names: Vec<_> = source.iter().collect();
        let place = |name: &str| names.iter().position(|part| *part == OsStr::new(name));
        let (host, part) = if let Some(at) = place(EMPTY_DIR) {
            (names.get(..at + 2)?.iter().collect(), names[at + 2..].iter().collect())
        } else {
            let at = place(SUB_PATHS)?;
            let pod: PathBuf = names[..at].iter().collect();
            let host = pod.join("volumes").join(EMPTY_DIR).join(names.get(at + 1)?);
            let mounted = host::mounted_at(source)?;
            let mut parts = mounted.iter().skip_while(|part| *part != OsStr::new(EMPTY_DIR));
            parts.nth(1)?;
            (host, parts.collect())
        };
        let found = host::find(&host).ok()?;
        let kind = host::type_of(&found)?;
        // A volume that is one of these, the pod wants in memory.
        let on_disk = fs::metadata(host::by_descriptor(&found)).ok()?.is_dir()
            && kind != TMPFS
            && kind != HUGETLBFS;
        let name = host.file_name()?.to_str()?.to_owned();
        on_disk.then_some(Volume { host, name, part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> OnScratch {
        let paths = vec![PathBuf::from("/var/lib/docker")];
        OnScratch { filesystem: Filesystem::Ext4, paths, upper: true }
    }

    fn spec(mounts: serde_json::Value) -> Spec {
        let mut spec = Spec::default();
        spec.set_mounts(Some(serde_json::from_value(mounts).unwrap()));
        spec
    }

    #[test]
    fn a_volume_that_nobody_keeps_is_the_guests() {
        // What is in a tmpfs is no volume on disk, and the directory for such things may be one.
        let host = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let volume = host.path().join("volumes").join(EMPTY_DIR).join("cache");
        fs::create_dir_all(&volume).unwrap();
        fs::set_permissions(&volume, PermissionsExt::from_mode(0o2770)).unwrap();
        let mut held = Held::default();
        let mut mount = Mount::default();
        mount.set_source(Some(volume));
        assert!(scratch().volume(&mut mount, "c", &mut held));
        let target = format!("{SCRATCH_DIR}/volumes/cache");
        assert_eq!(mount.source().as_deref(), Some(Path::new(&target)));
        assert_eq!(
            (held.directories[0].path.as_str(), held.directories[0].mode),
            (&*target, 0o2770)
        );
        assert!(!held.directories[0].own && held.disk.is_some());
        mount.set_source(Some(host.path().join("volumes").join(EMPTY_DIR).join("gone")));
        assert!(!scratch().volume(&mut mount, "c", &mut held));
        mount.set_source(Some("/etc".into()));
        assert!(!scratch().volume(&mut mount, "c", &mut held));
    }

    #[test]
    fn a_directory_comes_before_what_is_mounted_below_it() {
        let mut spec = spec(serde_json::json!([
            { "destination": "/proc" }, { "destination": "/var/lib/docker/certs" },
        ]));
        let mut held = Held::default();
        scratch().add_paths(&mut spec, "c", &mut held);
        let mounts = spec.mounts().clone().unwrap();
        let order: Vec<_> =
            mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect();
        assert_eq!(order, ["/proc", "/var/lib/docker", "/var/lib/docker/certs"]);
        let made: Vec<_> =
            held.directories.iter().map(|one| (one.path.as_str(), one.own)).collect();
        let own = format!("{SCRATCH_DIR}/containers/c");
        assert_eq!(made, [(&*own, true), (&*format!("{own}/0"), true)]);
    }

    #[test]
    fn what_the_spec_mounts_there_itself_stays() {
        let mut spec = spec(serde_json::json!([{ "destination": "/var/lib/docker" }]));
        let mut held = Held::default();
        scratch().add_paths(&mut spec, "c", &mut held);
        assert_eq!(spec.mounts().as_ref().map(Vec::len), Some(1));
        assert_eq!(held, Held::default());
    }

    #[test]
    fn the_upper_directory_lies_over_the_share() {
        let mut held = Held::default();
        let rootfs = scratch().upper("/share/c/rootfs", "c", &mut held);
        assert_eq!(rootfs, format!("{ROOTFS_DIR}/c/merged"));
        assert_eq!(held.directories.len(), 3);
        assert_eq!(held.mounts[0].options[0], "lowerdir=/share/c/rootfs");
    }
}
