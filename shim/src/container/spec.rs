//! From the OCI spec that containerd wrote for this host to the one that the guest carries out.
//!
//! Paths of the host become paths of the guest. What a guest cannot honour is refused with the
//! field's name: a container never runs with less than its spec says.
//! Rules: the OCI runtime specification 1.2, `config.md` and `config-linux.md`.

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_protocols::agent::CreateRequest;
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;

use super::devices;
use super::error::{DOCUMENT_LIMIT, SpecError, refused};
use super::hugepages;
use super::mounts::{Surroundings, Taken, is_kernels};
use super::namespaces::Neighbours;
use super::refuse::{self, is_bind};
use super::scratch::Held;
use super::sockets::Socket;
use crate::storage::mount;
use crate::storage::share::ContainerTree;
use crate::storage::volume::Volume;

/// The spec's name in a bundle (OCI `bundle.md`).
const CONFIG: &str = "config.json";

/// What the CRI plugin says of a container: `sandbox` or `container`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// What the CRI plugin gives a container that has no AppArmor profile of its own.
const DEFAULT_PROFILE: &str = "cri-containerd.apparmor.d";

/// The bundle's spec. One without is that of a pod which containerd drives by the sandbox API.
pub fn in_bundle(bundle: &Path) -> Result<Option<Spec>, SpecError> {
    bundle.join(CONFIG).exists().then(|| load(bundle)).transpose()
}

/// Reads the bundle's `config.json`.
pub fn load(bundle: &Path) -> Result<Spec, SpecError> {
    let path = bundle.join(CONFIG);
    let document = fs::read(&path).map_err(|error| error.to_string());
    let spec = document.and_then(|text| parse(&text).map_err(|e| format!("no OCI spec: {e}")));
    spec.map_err(|reason| SpecError::Unreadable { path, reason })
}

/// Reads a document. What is wrong with it comes with the field's name.
fn parse<T: DeserializeOwned>(document: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(document);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| error.to_string())?;
    json.end().map(|()| value).map_err(|error| error.to_string())
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

/// Rewrites `spec` for the guest, whose root file system is at `rootfs` there; makes the bind
/// mounts that it names.
pub fn for_guest(
    mut spec: Spec,
    mut rootfs: String,
    tree: &mut ContainerTree,
    surroundings: &Surroundings<'_>,
) -> Result<GuestSpec, SpecError> {
    let Surroundings { neighbours, scratch, images, devices, .. } = surroundings;
    refuse::document(&spec)?;
    let Some(process) = spec.process_mut() else {
        return Err(SpecError::Missing { field: "process" });
    };
    drop_default_profile(process);
    refuse::process(process)?;
    let (id, mut held, mut taken) = (tree.id(), Held::default(), Taken::default());
    held.mounts.extend_from_slice(images);
    if images.is_empty() {
        taken.submounts.push(rootfs.clone());
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
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        taken.take(mount, index, tree, surroundings, &mut held)?;
    }
    spec.mounts_mut().get_or_insert_default().extend_from_slice(surroundings.files);
    if let Some(scratch) = scratch {
        scratch.add_paths(&mut spec, &id, &mut held);
    }
    let Held { disk, directories, mounts: own_mounts } = held;
    let Taken { mut mounts, submounts, sockets, volumes } = taken;
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
    let resources = parse(document)
        .map_err(|error| refused("resources".to_owned(), &format!("no OCI resources: {error}")))?;
    refuse::resources(&resources, &[])
}

/// The process of an exec, for the guest.
pub fn exec_for_guest(document: Vec<u8>) -> Result<Vec<u8>, SpecError> {
    let mut process: Process = parse(&document)
        .map_err(|error| refused("process".to_owned(), &format!("no OCI process: {error}")))?;
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
    fn what_is_no_spec_is_named_with_its_place() {
        let bundle = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            fs::write(bundle.path().join(CONFIG), text).unwrap();
            load(bundle.path()).unwrap_err().to_string()
        };
        let text =
            load(r#"{"ociVersion": "1.2.0", "process": {"capabilities": {"bounding": [7]}}}"#);
        assert!(text.contains("no OCI spec: process.capabilities.bounding"), "{text}");
        let text = load(r#"{"ociVersion": "1.2.0"} x"#);
        assert!(text.contains("trailing characters"), "{text}");
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
        assert!(is_kernels(Path::new("/proc/cpuinfo")));
        assert!(!is_kernels(Path::new("/dev/../etc/passwd")));
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
        refuse("linux.resources.memory.kernel", |s| {
            s["linux"]["resources"] = serde_json::json!({"memory": {"kernel": 1}});
        });
        refuse("linux.resources.memory.checkBeforeUpdate", |s| {
            s["linux"]["resources"] = serde_json::json!({"memory": {"checkBeforeUpdate": true}});
        });
        refuse("linux.resources.cpu.realtimePeriod", |s| {
            s["linux"]["resources"] = serde_json::json!({"cpu": {"realtimePeriod": 1}});
        });
        refuse("linux.resources.blockIO.leafWeight", |s| {
            s["linux"]["resources"] = serde_json::json!({"blockIO": {"leafWeight": 10}});
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
