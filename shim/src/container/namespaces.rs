//! Namespaces of the host mean nothing in a guest: those of a spec become the guest's own, those of another container
//! of the pod, or a refusal.
//!
//! The pod's IPC, UTS and network namespaces are the ones that the guest's kernel started with. A container names them
//! by the number that stands for the sandbox on the host: `/proc/<pid>/ns/ipc`.

use std::path::{Path, PathBuf};

use bulkhead_protocols::agent::ContainerRef;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};

use super::error::{SpecError, refused};

/// Kinds that a container must not have in common with the host: what a spec without them gets in Kubernetes' words.
const NEEDED: [(LinuxNamespaceType, &str, &str); 5] = [
    (LinuxNamespaceType::Mount, "mount", ""),
    (LinuxNamespaceType::Network, "network", " (hostNetwork)"),
    (LinuxNamespaceType::Pid, "pid", " (hostPID)"),
    (LinuxNamespaceType::Ipc, "ipc", " (hostIPC)"),
    (LinuxNamespaceType::Uts, "uts", ""),
];

/// Whose namespaces a container may share.
pub struct Neighbours<'a> {
    /// The number that stands for the sandbox on the host.
    pub pid: u32,
    /// The network namespace on the host that the sandbox was made for; none where it has one of its own.
    pub network: Option<&'a Path>,
    /// The container for which a number on the host stands.
    pub container: &'a dyn Fn(u32) -> Option<String>,
}

impl Neighbours<'_> {
    /// Requires that a pod's sandbox shares nothing with the host.
    pub fn check_sandbox(linux: &Linux) -> Result<(), SpecError> {
        let namespaces = linux.namespaces().as_deref().unwrap_or_default();
        refuse_user(namespaces)?;
        refuse_missing(namespaces)
    }

    /// Replaces the namespaces of a container's spec by those of the guest. Returns whose PID namespace it is to
    /// share: an empty name stands for the sandbox.
    pub fn apply(&self, linux: &mut Linux) -> Result<Option<ContainerRef>, SpecError> {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        refuse_user(&namespaces)?;
        let mut pid_namespace = None;
        for namespace in &namespaces {
            let Some(path) = namespace.path() else {
                continue;
            };
            let kind = namespace.typ();
            let owner = owner(path, kind);
            // As the document spells it.
            let spelt = serde_json::to_value(kind).unwrap_or_default();
            let field = format!("linux.namespaces[{}].path", spelt.as_str().unwrap_or_default());
            match kind {
                LinuxNamespaceType::Network if owner == Some(self.pid) => {}
                LinuxNamespaceType::Network if self.network == Some(path) => {}
                LinuxNamespaceType::Network => {
                    let reason = "it is not the sandbox's own";
                    return Err(refused(field, reason));
                }
                LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts if owner == Some(self.pid) => {}
                LinuxNamespaceType::Pid if owner == Some(self.pid) => {
                    pid_namespace = Some(ContainerRef::default());
                }
                LinuxNamespaceType::Pid if let Some(container) = owner.and_then(self.container) => {
                    pid_namespace = Some(ContainerRef { container, ..Default::default() });
                }
                _ => {
                    let reason = "a namespace of the host cannot be joined from a guest";
                    return Err(refused(field, reason));
                }
            }
        }
        refuse_missing(&namespaces)?;
        // The VM is the container's network boundary.
        namespaces.retain(|namespace| {
            namespace.typ() != LinuxNamespaceType::Network && namespace.path().is_none()
        });
        linux.set_namespaces(Some(namespaces));
        Ok(pid_namespace)
    }
}

/// The number in `/proc/<pid>/ns/<kind>`.
fn owner(path: &Path, kind: LinuxNamespaceType) -> Option<u32> {
    let name = match kind {
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::Uts => "uts",
        _ => return None,
    };
    let pid = path.strip_prefix("/proc").ok()?.components().next()?;
    let pid = pid.as_os_str().to_str()?.parse().ok()?;
    (path == PathBuf::from(format!("/proc/{pid}/ns/{name}"))).then_some(pid)
}

fn refuse_user(namespaces: &[LinuxNamespace]) -> Result<(), SpecError> {
    if namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        return Err(refused("linux.namespaces[user]", "user namespaces are not supported"));
    }
    Ok(())
}

fn refuse_missing(namespaces: &[LinuxNamespace]) -> Result<(), SpecError> {
    for (needed, name, asked) in NEEDED {
        if !namespaces.iter().any(|namespace| namespace.typ() == needed) {
            return Err(refused(
                "linux.namespaces",
                &format!(
                    "no {name} namespace, and the host's cannot be shared with a guest{asked}"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMM: u32 = 4711;
    const OTHER: u32 = 5_000_000;

    fn apply(
        namespaces: &serde_json::Value,
    ) -> Result<(Vec<LinuxNamespaceType>, Option<String>), String> {
        let mut linux: Linux =
            serde_json::from_value(serde_json::json!({ "namespaces": namespaces })).unwrap();
        let neighbours = Neighbours {
            pid: VMM,
            network: Some(Path::new("/run/netns/pod")),
            container: &|pid| (pid == OTHER).then(|| "other".to_owned()),
        };
        let shared = neighbours.apply(&mut linux).map_err(|error| error.to_string())?;
        let kept = linux.namespaces().iter().flatten().map(LinuxNamespace::typ);
        Ok((kept.collect(), shared.map(|shared| shared.container)))
    }

    fn namespaces(pid: &serde_json::Value) -> serde_json::Value {
        serde_json::json!([
            { "type": "mount" }, pid,
            { "type": "ipc", "path": format!("/proc/{VMM}/ns/ipc") },
            { "type": "uts", "path": format!("/proc/{VMM}/ns/uts") },
            { "type": "network", "path": format!("/proc/{VMM}/ns/net") },
        ])
    }

    #[test]
    fn the_pods_namespaces_are_the_guests() {
        let (kept, shared) = apply(&namespaces(&serde_json::json!({ "type": "pid" }))).unwrap();
        assert_eq!(kept, [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid]);
        assert_eq!(shared, None);
    }

    #[test]
    fn a_pid_namespace_is_the_sandboxs_or_a_containers() {
        for (pid, whose) in [(VMM, ""), (OTHER, "other")] {
            let path = serde_json::json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") });
            let (kept, shared) = apply(&namespaces(&path)).unwrap();
            assert_eq!(kept, [LinuxNamespaceType::Mount]);
            assert_eq!(shared.as_deref(), Some(whose));
        }
    }

    #[test]
    fn no_namespace_of_the_host_is_joined() {
        for path in
            ["/proc/1/ns/pid", "/proc/self/ns/pid", "/proc/4711/ns/ipc", "/proc/4711/../1/ns/pid"]
        {
            let pid = serde_json::json!({ "type": "pid", "path": path });
            let error = apply(&namespaces(&pid)).unwrap_err();
            assert!(error.starts_with("linux.namespaces[pid].path"), "{path}: {error}");
        }
        let mut network = namespaces(&serde_json::json!({ "type": "pid" }));
        network[4]["path"] = "/run/netns/other".into();
        assert!(apply(&network).unwrap_err().starts_with("linux.namespaces[network].path"));
        network[4]["path"] = "/run/netns/pod".into();
        apply(&network).unwrap();
    }

    #[test]
    fn a_namespace_of_the_host_is_refused_in_kubernetes_words() {
        let mut no_network = namespaces(&serde_json::json!({ "type": "pid" }));
        no_network.as_array_mut().unwrap().pop();
        assert!(apply(&no_network).unwrap_err().contains("(hostNetwork)"));
    }
}
