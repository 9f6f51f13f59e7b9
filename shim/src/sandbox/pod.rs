//! What a pod asks of its sandbox: from the spec of its sandbox container, or from the CRI's own configuration where
//! containerd drives it by the sandbox API.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_protocols::FILES_DIR;
use bulkhead_protocols::cri::{LinuxContainerResources, NamespaceMode, PodSandboxConfig};
use nix::unistd::gethostname;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use protobuf::Message;
use thiserror::Error;

use super::size;
use crate::container::spec::{is_sandbox, read_only};

/// Files of a pod that containerd makes for a sandbox container, and leaves to a shim with the sandbox API.
const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The type of the sandbox API's `options`.
const CONFIG_TYPE: &str = "runtime.v1.PodSandboxConfig";

/// A pod that cannot be.
#[derive(Debug, Error)]
pub enum PodError {
    /// The configuration is not the CRI's.
    #[error("the sandbox's options are of type {0:?}; known is {CONFIG_TYPE}")]
    Type(String),
    /// The configuration cannot be read.
    #[error("the pod's configuration: {0}")]
    Encoding(#[from] protobuf::Error),
    /// It wants to see the host.
    #[error("{field} of the pod: {reason}")]
    Refused {
        /// Which part of its configuration, in Kubernetes' words.
        field: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A file of its containers cannot be made.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a sandbox must know of its pod.
#[derive(Debug, Default)]
pub struct Pod {
    /// What the guest is called; as its kernel has it if empty.
    pub hostname: String,
    /// What it says of its guest.
    pub annotations: HashMap<String, String>,
    /// Whether it is one of Kubernetes', whose containers come one by one.
    pub in_kubernetes: bool,
    /// What its containers may use together, as far as that is known.
    pub resources: LinuxContainerResources,
    /// Its control group on the host, as the spec writes it; none if empty.
    pub cgroup: String,
    /// Kernel parameters of all containers.
    pub sysctls: HashMap<String, String>,
    /// The network namespace on the host whose interfaces the guest gets; none for a new one.
    pub network: Option<PathBuf>,
    /// Files that every container gets, and what is in them.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Pod {
    /// From the spec of a sandbox's first container, be it a pod's or not.
    pub fn of_spec(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let cgroup = linux.and_then(|linux| linux.cgroups_path().as_ref());
        let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let network = namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::Network);
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let host = || gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let alone = Self {
            resources: resources.map(size::allowed).unwrap_or_default(),
            network: network.and_then(|network| network.path().clone()),
            // A UTS namespace without a name of its own has the host's.
            hostname: spec.hostname().clone().unwrap_or_else(host),
            annotations: spec.annotations().clone().unwrap_or_default(),
            cgroup: cgroup.map(|path| path.display().to_string()).unwrap_or_default(),
            ..Self::default()
        };
        if !is_sandbox(spec) {
            return alone;
        }
        let sysctls = linux.and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
        let resources = size::announced(&alone.annotations);
        Self { sysctls, resources, in_kubernetes: true, ..alone }
    }

    /// From the `options` of the sandbox API: their type, and the message.
    pub fn of_config(
        id: &str,
        type_url: &str,
        options: &[u8],
        network: &Path,
    ) -> Result<Self, PodError> {
        if type_url.rsplit('/').next() != Some(CONFIG_TYPE) {
            return Err(PodError::Type(type_url.to_owned()));
        }
        let config = PodSandboxConfig::parse_from_bytes(options)?;
        let linux = config.linux.get_or_default();
        let namespaces = linux.security_context.get_or_default().namespace_options.get_or_default();
        let shares = "the host's cannot be shared with a guest";
        for (mode, field) in [
            (namespaces.network, "hostNetwork"),
            (namespaces.pid, "hostPID"),
            (namespaces.ipc, "hostIPC"),
        ] {
            if mode.enum_value() == Ok(NamespaceMode::NODE) {
                return Err(PodError::Refused { field, reason: shares });
            }
        }
        let users = namespaces.userns_options.as_ref();
        if users.is_some_and(|users| users.mode.enum_value() != Ok(NamespaceMode::NODE)) {
            let reason = "user namespaces are not supported";
            return Err(PodError::Refused { field: "hostUsers", reason });
        }
        Ok(Self {
            in_kubernetes: true,
            cgroup: cgroup_path(&linux.cgroup_parent, id),
            annotations: config.annotations.clone(),
            resources: linux.resources.clone().unwrap_or_default(),
            sysctls: linux.sysctls.clone(),
            network: Some(network.to_owned()),
            files: vec![
                (HOSTNAME, format!("{}\n", config.hostname).into_bytes()),
                (HOSTS, read(HOSTS)?),
                (RESOLV_CONF, resolv_conf(&config)?),
            ],
            hostname: config.hostname,
        })
    }

    /// The pod's files by their paths in the guest. There a container may fill them without filling the host.
    pub fn guest_files(&self) -> HashMap<String, Vec<u8>> {
        self.files.iter().map(|(name, content)| (in_guest(name), content.clone())).collect()
    }

    /// The guest's mounts of the pod's files, those of them that a spec does not have by itself; as containerd has
    /// them for its own pods.
    pub fn mounts(&self, spec: &Spec) -> Vec<Mount> {
        let access = if read_only(spec) { "ro" } else { "rw" };
        let own = spec.mounts().as_deref().unwrap_or_default();
        let missing =
            |name: &&str| !own.iter().any(|mount| mount.destination() == Path::new(*name));
        let names = self.files.iter().map(|(name, _)| *name).filter(missing);
        names.map(|name| file_mount(name, access)).collect()
    }
}

/// What containerd would write into the spec of a sandbox container.
fn cgroup_path(parent: &str, id: &str) -> String {
    if parent.is_empty() {
        return String::new();
    }
    match Path::new(parent).file_name().and_then(|name| name.to_str()) {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => Path::new(parent).join(id).display().to_string(),
    }
}

fn file_mount(name: &str, access: &str) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(PathBuf::from(name));
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(in_guest(name).into()));
    mount.set_options(Some(vec!["rbind".to_owned(), access.to_owned()]));
    mount
}

fn in_guest(name: &str) -> String {
    format!("{FILES_DIR}{name}")
}

/// In the words of resolv.conf(5); the host's own where the pod says nothing.
fn resolv_conf(config: &PodSandboxConfig) -> Result<Vec<u8>, PodError> {
    let Some(dns) = config.dns_config.as_ref() else {
        return read(RESOLV_CONF);
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    text.extend(dns.servers.iter().map(|server| format!("nameserver {server}\n")));
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Ok(text.into_bytes())
}

/// A file of the host's that is the pod's, too; a host without it has pods without.
fn read(name: &str) -> Result<Vec<u8>, PodError> {
    match fs::read(name) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PodError::File { path: name.into(), source })
        }
        text => Ok(text.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_protocols::cri::{
        DNSConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption,
    };
    use protobuf::MessageField;

    use oci_spec::runtime::Root;

    use super::*;

    fn config(network: NamespaceMode) -> Vec<u8> {
        let options = NamespaceOption { network: network.into(), ..Default::default() };
        let context = LinuxSandboxSecurityContext {
            namespace_options: MessageField::some(options),
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            security_context: MessageField::some(context),
            sysctls: HashMap::from([("kernel.shm_rmid_forced".to_owned(), "1".to_owned())]),
            ..Default::default()
        };
        let dns = DNSConfig {
            servers: vec!["10.0.0.10".to_owned()],
            searches: vec!["a.local".to_owned(), "local".to_owned()],
            options: vec!["ndots:5".to_owned()],
            ..Default::default()
        };
        let config = PodSandboxConfig {
            hostname: "web-0".to_owned(),
            dns_config: MessageField::some(dns),
            linux: MessageField::some(linux),
            ..Default::default()
        };
        config.write_to_bytes().unwrap()
    }

    #[test]
    fn a_configuration_becomes_files_and_parameters() {
        let bytes = config(NamespaceMode::POD);
        let pod = Pod::of_config("s", CONFIG_TYPE, &bytes, Path::new("/run/netns/x")).unwrap();
        assert_eq!(pod.hostname, "web-0");
        assert_eq!(pod.sysctls["kernel.shm_rmid_forced"], "1");
        let resolv = pod.files.iter().find(|(name, _)| *name == RESOLV_CONF).unwrap();
        assert_eq!(resolv.1, b"search a.local local\nnameserver 10.0.0.10\noptions ndots:5\n");

        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![file_mount(HOSTS, "rw")]));
        for read_only in [false, true] {
            let mut root = Root::default();
            root.set_readonly(Some(read_only));
            spec.set_root(Some(root));
            let mounts = pod.mounts(&spec);
            assert_eq!(mounts.len(), 2, "the kubelet's own stays");
            let access = if read_only { "ro" } else { "rw" };
            assert_eq!(mounts, [file_mount(HOSTNAME, access), file_mount(RESOLV_CONF, access)]);
            let files = pod.guest_files();
            assert!(
                mounts
                    .iter()
                    .all(|m| files.contains_key(m.source().as_ref().unwrap().to_str().unwrap()))
            );
        }
    }

    #[test]
    fn a_pods_cgroup_is_where_containerd_would_have_it() {
        for (parent, path) in [
            ("", ""),
            ("/kubepods/pod1", "/kubepods/pod1/s"),
            ("/a.slice/a-b.slice", "a-b.slice:cri-containerd:s"),
        ] {
            assert_eq!(cgroup_path(parent, "s"), path);
        }
    }

    #[test]
    fn what_is_the_hosts_is_refused() {
        let bytes = config(NamespaceMode::NODE);
        let error = Pod::of_config("s", CONFIG_TYPE, &bytes, Path::new("")).unwrap_err();
        assert!(error.to_string().starts_with("hostNetwork of the pod: "), "{error}");
        let error = Pod::of_config("s", "a.b.C", &bytes, Path::new("")).unwrap_err();
        assert!(error.to_string().contains("a.b.C"), "{error}");
    }
}
