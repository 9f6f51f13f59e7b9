//! The mounts of a container's spec, as the guest is to make them.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use bulkhead_protocols::agent;
use oci_spec::runtime::Mount;

use super::error::{SpecError, refused};
use super::hugepages;
use super::namespaces::Neighbours;
use super::refuse::{self, is_bind};
use super::scratch::{Held, OnScratch};
use super::shm;
use super::sockets::Socket;
use crate::storage::host;
use crate::storage::share::{Bound, ContainerTree};
use crate::storage::volume::Volume;

/// File systems that a guest makes by itself.
const GUEST_FILE_SYSTEMS: [&str; 6] = ["cgroup", "devpts", "mqueue", "proc", "sysfs", "tmpfs"];

/// Directories of the host whose content means the kernel: the guest has its own.
const KERNEL_DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What a container finds in its sandbox.
pub struct Surroundings<'a> {
    /// containerd's directory for the container.
    pub bundle: &'a Path,
    /// The other containers.
    pub neighbours: Neighbours<'a>,
    /// Whether volumes can be followed when they change.
    pub follows: &'a dyn Fn() -> bool,
    /// What lies on the scratch disk, if there is one.
    pub scratch: Option<&'a OnScratch>,
    /// The disks that have the container's root file system, if any have.
    pub images: &'a [agent::Mount],
    /// The disks that are its block devices.
    pub devices: &'a [agent::Device],
    /// Sockets of the host that it may reach.
    pub sockets: &'a [PathBuf],
    /// Mounts of files that are the guest's already.
    pub files: &'a [Mount],
}

/// What the guest needs for them, besides the spec.
#[derive(Default)]
pub(super) struct Taken {
    /// Mounts that it has, or makes, before the container's.
    pub(super) mounts: Vec<agent::Mount>,
    /// What is a mount in the share.
    pub(super) submounts: Vec<String>,
    /// Sockets of the host that it reaches.
    pub(super) sockets: Vec<Socket>,
    /// Volumes of which it has copies.
    pub(super) volumes: Vec<Volume>,
}

impl Taken {
    /// Makes `mount` one of the guest's.
    pub(super) fn take(
        &mut self,
        mount: &mut Mount,
        index: usize,
        tree: &mut ContainerTree,
        surroundings: &Surroundings<'_>,
        held: &mut Held,
    ) -> Result<(), SpecError> {
        refuse::mount(mount, index)?;
        let id = tree.id();
        // Of what cannot be found the error comes below.
        let shown = mount.source().as_ref().filter(|_| is_bind(mount));
        let shown = shown.and_then(|source| host::find(&surroundings.bundle.join(source)).ok());
        if let Some(shown) = &shown
            && let Some((host, found)) = host_socket(mount, index, shown, surroundings)?
        {
            let socket = Socket::new(host, &found, &id, index);
            mount.set_source(Some(PathBuf::from(&socket.guest.path)));
            self.sockets.push(socket);
            return Ok(());
        }
        if surroundings.neighbours.network.is_some()
            && let Some(shared) = shm::of_pod(mount)
        {
            self.mounts.push(shared);
            return Ok(());
        }
        if let Some(scratch) = surroundings.scratch
            && is_bind(mount)
            && scratch.volume(mount, &id, held)
        {
            return Ok(());
        }
        if let Some(shown) = &shown
            && let Some(shared) = hugepages::volume(mount, shown)
        {
            self.mounts.push(shared);
            return Ok(());
        }
        let Some(bound) = guest_mount(mount, index, surroundings.bundle, tree)? else {
            return Ok(());
        };
        self.submounts.push(bound.guest.clone());
        self.submounts.extend(bound.submounts());
        if is_read_only(mount)
            && let Some(volume) = Volume::of(&bound, &id, index)
            && (surroundings.follows)()
        {
            mount.set_source(Some(PathBuf::from(&volume.guest.target)));
            self.volumes.push(volume);
        }
        Ok(())
    }
}

fn is_read_only(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options.iter().any(|option| ["ro", "rro"].contains(&option.as_str()))
}

/// Makes `mount` one of the guest's. Returns where it shows something of the host, if it does.
fn guest_mount(
    mount: &mut Mount,
    index: usize,
    bundle: &Path,
    tree: &mut ContainerTree,
) -> Result<Option<Bound>, SpecError> {
    let options = mount.options().clone().unwrap_or_default();
    let fstype = mount.typ().clone().unwrap_or_default();
    if !is_bind(mount) {
        return if GUEST_FILE_SYSTEMS.contains(&fstype.as_str()) {
            Ok(None)
        } else {
            let known = GUEST_FILE_SYSTEMS.join(", ");
            Err(refused(
                format!("mounts[{index}].type"),
                &format!("{fstype:?} is not supported; known are bind, {known}"),
            ))
        };
    }
    let field = format!("mounts[{index}].source");
    let Some(source) = mount.source().clone() else {
        return Err(refused(field, "a bind mount needs one"));
    };
    // runc takes a relative source from the bundle.
    let source = bundle.join(source);
    if is_kernels(&source) {
        mount.set_source(Some(source));
        return Ok(None);
    }
    let asks = |wanted: &str| options.iter().any(|option| option == wanted);
    if asks("shared") || asks("rshared") {
        return Err(refused(
            format!("mounts[{index}].options"),
            "what a guest mounts cannot appear on the host (mountPropagation Bidirectional)",
        ));
    }
    let depth = if asks("bind") && !asks("rbind") { "bind" } else { "rbind" };
    let mut host_options = vec![depth.to_owned()];
    for option in ["ro", "rro", "private", "rprivate"] {
        if asks(option) {
            host_options.push(option.to_owned());
        }
    }
    let bound = tree.bind(&source, &host_options);
    let bound = bound.map_err(|source| SpecError::Source { field, source })?;
    mount.set_source(Some(PathBuf::from(&bound.guest)));
    Ok(Some(bound))
}

/// The socket of the host that a bind mount shows, if it is one and the container may reach it: its path without
/// symbolic links, and what it is.
fn host_socket(
    mount: &Mount,
    index: usize,
    shown: &OwnedFd,
    surroundings: &Surroundings<'_>,
) -> Result<Option<(PathBuf, fs::Metadata)>, SpecError> {
    let Some(source) = mount.source() else { return Ok(None) };
    let source = surroundings.bundle.join(source);
    let found = fs::metadata(host::by_descriptor(shown));
    let Some(found) = found.ok().filter(|found| found.file_type().is_socket()) else {
        return Ok(None);
    };
    if is_kernels(&source) {
        return Ok(None);
    }
    let field = format!("mounts[{index}].source");
    let path = host::path_of(shown).map_err(|error| refused(&field, &error.to_string()))?;
    // containerd may have followed links for Kubernetes already.
    let is_it = |named: &PathBuf| {
        let named_path = || host::path_of(&host::find(named)?);
        *named == source || named_path().is_ok_and(|named| named == path)
    };
    if !surroundings.sockets.iter().any(is_it) {
        let reason = "a socket of the host is reached from a guest only if forward_sockets, or the annotation \
                      io.bulkhead.forward_sockets, names it";
        return Err(refused(field, reason));
    }
    Ok(Some((path, found)))
}

/// Whether a bind source is one of the kernel's own files, devices first of all.
pub(super) fn is_kernels(source: &Path) -> bool {
    KERNEL_DIRECTORIES.iter().any(|directory| source.starts_with(directory))
        && !source.starts_with("/dev/shm")
        && !source.components().any(|part| part == Component::ParentDir)
}
