//! From the OCI spec that containerd wrote for this host to the one that the guest carries out.
//!
//! Paths of the host become paths of the guest. What a guest cannot honour is refused with the
//! field's name: a container never runs with less than its spec says.
//! Rules: the OCI runtime specification 1.2, `config.md` and `config-linux.md`.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bulkhead_protocols::agent::{self, CreateRequest};
use oci_spec::runtime::{Mount, Process, Spec};

use super::devices;
use super::error::{DOCUMENT_LIMIT, SpecError, refused};
use super::hugepages;
use super::namespaces::Neighbours;
use super::refuse::{self, is_bind};
use super::scratch::{Held, OnScratch};
use super::shm;
use super::sockets::Socket;
use crate::storage::share::{Bound, ContainerTree};
use crate::storage::volume::Volume;
use crate::storage::{host, mount};

/// File systems that a guest makes by itself.
const GUEST_FILE_SYSTEMS: [&str; 6] = ["cgroup", "devpts", "mqueue", "proc", "sysfs", "tmpfs"];

/// The spec's name in a bundle (OCI `bundle.md`).
const CONFIG: &str = "config.json";

/// What the CRI plugin says of a container: `sandbox` or `container`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// What the CRI plugin gives a container that has no AppArmor profile of its own.
const DEFAULT_PROFILE: &str = "cri-containerd.apparmor.d";

/// Directories of the host whose content means the kernel: the guest has its own.
const KERNEL_DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The bundle's spec. One without is that of a pod which containerd drives by the sandbox API.
pub fn in_bundle(bundle: &Path) -> Result<Option<Spec>, SpecError> {
    bundle.join(CONFIG).exists().then(|| load(bundle)).transpose()
}

/// Reads the bundle's `config.json`.
pub fn load(bundle: &Path) -> Result<Spec, SpecError> {
    let path = bundle.join(CONFIG);
    Spec::load(&path).map_err(|error| {
        // The reason is in the source, the error itself names no more than the kind.
        let reason = std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), |source| format!("no OCI spec: {source}"));
        SpecError::Unreadable { path, reason }
    })
}

/// Where the spec has its root file system on the host; relative to the bundle, as the OCI bundle
/// document says.
pub fn root(spec: &Spec, bundle: &Path) -> Result<PathBuf, SpecError> {
    let root = spec.root().as_ref().ok_or(SpecError::Missing { field: "root" })?;
    Ok(bundle.join(root.path()))
}

/// Whether the container may not write to its root file system.
pub fn read_only(spec: &Spec) -> bool {
    let root = spec.root().as_ref();
    root.and_then(|root| root.readonly()).unwrap_or(false)
}

/// Whether the container sees files of the host besides its root file system.
pub fn binds(spec: &Spec) -> bool {
    let mut mounts = spec.mounts().iter().flatten();
    mounts.any(|mount| {
        is_bind(mount) && mount.source().as_deref().is_none_or(|source| !is_kernels(source))
    })
}

/// Whether the container is the one that stands for its pod: the CRI plugin says so.
pub fn is_sandbox(spec: &Spec) -> bool {
    annotation(spec, CONTAINER_TYPE) == Some("sandbox")
}

fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}

/// Requires that a pod's sandbox asks for nothing that a VM cannot be.
pub fn check_sandbox(spec: &Spec) -> Result<(), SpecError> {
    refuse::document(spec)?;
    let linux = spec.linux().as_ref().ok_or(SpecError::Missing { field: "linux" })?;
    refuse::linux(linux)?;
    linux.resources().iter().try_for_each(|resources| refuse::resources(resources, &[]))?;
    Neighbours::check_sandbox(linux)
}

/// What the guest is to make a container from.
pub struct GuestSpec {
    /// All but its stdio.
    pub request: CreateRequest,
    /// Volumes of which the guest makes copies for it.
    pub volumes: Vec<Volume>,
    /// Sockets of the host that it reaches.
    pub sockets: Vec<Socket>,
}

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

/// Rewrites `spec` for the guest, whose root file system is at `rootfs` there; makes the bind
/// mounts that it names.
pub fn for_guest(
    mut spec: Spec,
    mut rootfs: String,
    tree: &mut ContainerTree,
    surroundings: &Surroundings<'_>,
) -> Result<GuestSpec, SpecError> {
    let Surroundings { bundle, neighbours, follows, scratch, images, devices, .. } = surroundings;
    refuse::document(&spec)?;
    let Some(process) = spec.process_mut() else {
        return Err(SpecError::Missing { field: "process" });
    };
    drop_default_profile(process);
    refuse::process(process)?;
    let (mut mounts, mut volumes) = (Vec::new(), Vec::new());
    let (id, mut held) = (tree.id(), Held::default());
    let mut submounts = Vec::new();
    held.mounts.extend_from_slice(images);
    if images.is_empty() {
        submounts.push(rootfs.clone());
    }
    if let Some(scratch) = scratch
        && scratch.takes_upper(read_only(&spec))
    {
        rootfs = scratch.upper(&rootfs, &id, &mut held);
    }
    match spec.root_mut() {
        Some(root) => {
            root.set_path(rootfs.into());
        }
        None => return Err(SpecError::Missing { field: "root" }),
    }
    let Some(linux) = spec.linux_mut() else {
        return Err(SpecError::Missing { field: "linux" });
    };
    refuse::linux(linux)?;
    let disks = devices.iter().map(|device| (device.major.into(), device.minor.into()));
    if let Some(resources) = linux.resources() {
        refuse::resources(resources, &disks.collect::<Vec<_>>())?;
    }
    let pid_namespace = neighbours.apply(linux)?;
    devices::leave_out_others(linux);
    let huge_pages = hugepages::promised(linux)?;
    // The guest's cgroups are the agent's to name.
    linux.set_cgroups_path(None);
    let in_pod = neighbours.network.is_some();
    let mut sockets = Vec::new();
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        refuse::mount(mount, index)?;
        // Of what cannot be found the error comes below.
        let shown = mount.source().as_ref().filter(|_| is_bind(mount));
        let shown = shown.and_then(|source| host::find(&bundle.join(source)).ok());
        if let Some(shown) = &shown
            && let Some((host, found)) = host_socket(mount, index, shown, surroundings)?
        {
            let socket = Socket::new(host, &found, &id, index);
            mount.set_source(Some(PathBuf::from(&socket.guest.path)));
            sockets.push(socket);
            continue;
        }
        if in_pod && let Some(shared) = shm::of_pod(mount) {
            mounts.push(shared);
            continue;
        }
        if let Some(scratch) = scratch
            && is_bind(mount)
            && scratch.volume(mount, &id, &mut held)
        {
            continue;
        }
        if let Some(shown) = &shown
            && let Some(shared) = hugepages::volume(mount, shown)
        {
            mounts.push(shared);
            continue;
        }
        let Some(bound) = guest_mount(mount, index, bundle, tree)? else {
            continue;
        };
        submounts.push(bound.guest.clone());
        submounts.extend(bound.submounts());
        if is_read_only(mount)
            && let Some(volume) = Volume::of(&bound, &id, index)
            && follows()
        {
            mount.set_source(Some(PathBuf::from(&volume.guest.target)));
            volumes.push(volume);
        }
    }
    spec.mounts_mut().get_or_insert_default().extend_from_slice(surroundings.files);
    if let Some(scratch) = scratch {
        scratch.add_paths(&mut spec, &id, &mut held);
    }
    let Held { disk, directories, mounts: own_mounts } = held;
    mounts.extend(disk);
    let request = CreateRequest {
        container: id,
        spec: fitting(serde_json::to_vec(&spec)?)?,
        pid_namespace: pid_namespace.into(),
        mounts,
        submounts,
        directories,
        own_mounts,
        devices: devices.to_vec(),
        huge_pages,
        sockets: sockets.iter().map(|socket| socket.guest.clone()).collect(),
        volumes: volumes.iter().map(|volume| volume.guest.clone()).collect(),
        ..Default::default()
    };
    Ok(GuestSpec { request, volumes, sockets })
}

/// Requires that changed limits are such that the guest can have them.
pub fn check_update(document: &[u8]) -> Result<(), SpecError> {
    let resources = serde_json::from_slice(document)
        .map_err(|error| refused("resources".to_owned(), &format!("no OCI resources: {error}")))?;
    refuse::resources(&resources, &[])
}

/// The process of an exec, for the guest.
pub fn exec_for_guest(document: Vec<u8>) -> Result<Vec<u8>, SpecError> {
    let mut process: Process =
        serde_json::from_slice(&document).map_err(|error| SpecError::Refused {
            field: "process".to_owned(),
            reason: format!("no OCI process: {error}"),
        })?;
    let changed = drop_default_profile(&mut process);
    refuse::process(&process)?;
    fitting(if changed { serde_json::to_vec(&process)? } else { document })
}

fn fitting(document: Vec<u8>) -> Result<Vec<u8>, SpecError> {
    let length = document.len();
    if length <= DOCUMENT_LIMIT { Ok(document) } else { Err(SpecError::TooLong { length }) }
}

/// Takes away the AppArmor profile that containerd gives whoever asks for none: it keeps a container from its host,
/// and so does the VM. Returns whether it was there.
fn drop_default_profile(process: &mut Process) -> bool {
    let is_default = process.apparmor_profile().as_deref() == Some(DEFAULT_PROFILE);
    if is_default {
        process.set_apparmor_profile(None);
    }
    is_default
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
fn is_kernels(source: &Path) -> bool {
    KERNEL_DIRECTORIES.iter().any(|directory| source.starts_with(directory))
        && !source.starts_with("/dev/shm")
}

/// What a snapshotter gave, in this crate's words.
pub fn rootfs_mounts(mounts: &[containerd_shim_protos::api::Mount]) -> Vec<mount::Mount> {
    mounts
        .iter()
        .map(|given| mount::Mount {
            fstype: given.type_.clone(),
            source: given.source.clone(),
            options: given.options.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
        let mut document = serde_json::json!({
            "ociVersion": "1.2.0",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
            "root": { "path": "rootfs" },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": {
                "cgroupsPath": "/default/x",
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                    { "type": "mount" }, { "type": "network" },
                ],
            },
        });
        change(&mut document);
        serde_json::from_value(document).unwrap()
    }

    fn convert(spec: Spec) -> Result<serde_json::Value, SpecError> {
        let mut tree = ContainerTree::unmounted_for_tests();
        let alone = Neighbours { pid: 1, network: None, container: &|_| None };
        let bundle = Path::new("/bundle");
        let surroundings = Surroundings {
            bundle,
            neighbours: alone,
            follows: &|| false,
            scratch: None,
            images: &[],
            devices: &[],
            sockets: &[],
            files: &[],
        };
        let guest = for_guest(spec, "/guest/rootfs".into(), &mut tree, &surroundings)?;
        Ok(serde_json::from_slice(&guest.request.spec).unwrap())
    }

    #[test]
    fn host_paths_do_not_reach_the_guest() {
        let guest = convert(spec(|_| {})).unwrap();
        assert_eq!(guest["root"]["path"], "/guest/rootfs");
        assert!(guest["linux"].get("cgroupsPath").is_none());
        let kinds: Vec<_> = guest["linux"]["namespaces"].as_array().unwrap().iter().collect();
        assert!(kinds.iter().all(|namespace| namespace["type"] != "network"), "{kinds:?}");
    }

    #[test]
    fn the_default_profile_is_not_for_the_guest() {
        let guest = convert(spec(|s| s["process"]["apparmorProfile"] = DEFAULT_PROFILE.into()));
        assert!(guest.unwrap()["process"].get("apparmorProfile").is_none());
        let process = |profile: &str| {
            let process = serde_json::json!({
                "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/", "apparmorProfile": profile,
            });
            exec_for_guest(serde_json::to_vec(&process).unwrap())
        };
        let made: Process = serde_json::from_slice(&process(DEFAULT_PROFILE).unwrap()).unwrap();
        assert_eq!(made.apparmor_profile().as_deref(), None);
        process("mine").unwrap_err();
    }

    #[test]
    fn the_kernels_files_are_the_guests_own() {
        let guest = convert(spec(|spec| {
            spec["mounts"][0] = serde_json::json!({
                "destination": "/dev/kvm", "type": "bind", "source": "/dev/kvm", "options": ["bind"],
            });
        }));
        assert_eq!(guest.unwrap()["mounts"][0]["source"], "/dev/kvm");
    }

    #[test]
    fn what_a_guest_cannot_honour_is_refused_by_name() {
        let refuse = |field: &str, change: fn(&mut serde_json::Value)| {
            let error = convert(spec(change)).unwrap_err().to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        };
        refuse("process is missing", |s| drop(s["process"].take()));
        refuse("root is missing", |s| drop(s["root"].take()));
        refuse("linux is missing", |s| drop(s["linux"].take()));
        refuse("process.args", |s| {
            s["process"]["args"] = serde_json::json!([]);
        });
        refuse("process.cwd", |s| s["process"]["cwd"] = "tmp".into());
        refuse("process.apparmorProfile", |s| {
            s["process"]["apparmorProfile"] = "x".into();
        });
        refuse("process.selinuxLabel", |s| {
            s["process"]["selinuxLabel"] = "x".into();
        });
        refuse("hooks", |s| {
            s["hooks"] = serde_json::json!({"poststop": [{"path": "/bin/x"}]});
        });
        refuse("vm", |s| {
            s["vm"] = serde_json::json!({"kernel": {"path": "/k"}});
        });
        refuse("mounts[0].type", |s| s["mounts"][0]["type"] = "nfs".into());
        refuse("mounts[0].source", |s| {
            s["mounts"][0] = serde_json::json!({
                "destination": "/a", "type": "bind", "source": "/nonexistent", "options": ["rbind"],
            });
        });
        refuse("mounts[0].options", |s| {
            s["mounts"][0] = serde_json::json!({
                "destination": "/a", "type": "bind", "source": "/etc", "options": ["rbind", "rshared"],
            });
        });
        refuse("mounts[0].destination of", |s| {
            s["mounts"][0] = serde_json::json!({
                "destination": "/dev/", "type": "bind", "source": "/dev", "options": ["rbind"],
            });
        });
        refuse("mounts[0].options", |s| {
            s["mounts"][0] = serde_json::json!({
                "destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"],
            });
        });
        refuse("linux.seccomp", |s| {
            s["linux"]["seccomp"] =
                serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"});
        });
        refuse("linux.intelRdt", |s| {
            s["linux"]["intelRdt"] = serde_json::json!({});
        });
        refuse("linux.mountLabel", |s| {
            s["linux"]["mountLabel"] = "x".into();
        });
        refuse("linux.uidMappings", |s| {
            s["linux"]["uidMappings"] =
                serde_json::json!([{"hostID": 1, "containerID": 0, "size": 1}]);
        });
        refuse("linux.resources.network", |s| {
            s["linux"]["resources"] = serde_json::json!({"network": {"classID": 1}});
        });
        refuse("linux.namespaces", |s| {
            drop(s["linux"]["namespaces"].as_array_mut().unwrap().pop());
        });
        refuse("linux.namespaces[network].path", |s| {
            s["linux"]["namespaces"][4]["path"] = "/run/netns/x".into();
        });
        refuse("linux.namespaces[user]", |s| {
            s["linux"]["namespaces"][0]["type"] = "user".into();
        });
    }
}
