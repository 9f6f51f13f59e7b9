//! The configuration of containerd's CRI plugin for the tests.

use std::path::Path;

use crate::image;
use crate::options::{Generation, Options};

/// The directory of the CNI configuration, below containerd's scratch directory.
pub const CNI: &str = "cni";

/// The name of the pods' network.
pub const NETWORK: &str = "bulkhead-e2e";

/// The CRI plugin's sections of containerd's configuration file.
///
/// Pods' network namespaces are mounted below containerd's state directory, and the host's AppArmor is
/// left alone: the tests use nothing that a containerd of the machine's own may use too. In a container
/// or VM, root may be unable to make a process safer from the OOM killer than containerd itself is.
pub fn containerd(options: &Options, dir: &Path) -> String {
    let (cni_conf, cni_bin) = (dir.join(CNI), options.cache.join("cni/usr/lib/cni"));
    let common = "enable_selinux = false\ndisable_apparmor = true\n\
                  restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n";
    let streaming = "stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n";
    match options.generation {
        Generation::One => {
            let cri = "plugins.'io.containerd.grpc.v1.cri'";
            format!(
                "[{cri}]\n{common}{streaming}sandbox_image = {:?}\n\
                 [{cri}.cni]\nbin_dir = {cni_bin:?}\nconf_dir = {cni_conf:?}\n\
                 [{cri}.containerd]\nsnapshotter = \"overlayfs\"\ndefault_runtime_name = \"runc\"\n{}",
                image::PAUSE,
                handlers(cri, &[RUNC, BULKHEAD])
            )
        }
        Generation::Two => {
            let cri = "plugins.'io.containerd.cri.v1.runtime'";
            let images = "plugins.'io.containerd.cri.v1.images'";
            format!(
                "[plugins.'io.containerd.grpc.v1.cri']\n{streaming}\
                 [{images}]\nsnapshotter = \"overlayfs\"\n\
                 [{images}.pinned_images]\nsandbox = {:?}\n\
                 [{cri}]\n{common}[{cri}.cni]\nbin_dirs = [{cni_bin:?}]\nconf_dir = {cni_conf:?}\n\
                 [{cri}.containerd]\ndefault_runtime_name = \"runc\"\n{}",
                image::PAUSE,
                handlers(cri, &[RUNC, BULKHEAD, BULKHEAD_SANDBOX])
            )
        }
    }
}

/// A runtime handler's name and its lines.
type Handler = (&'static str, &'static str);

const RUNC: Handler = ("runc", "runtime_type = \"io.containerd.runc.v2\"\n");
const BULKHEAD: Handler = (
    "bulkhead",
    "runtime_type = \"io.containerd.bulkhead.v2\"\npod_annotations = [\"io.bulkhead.*\"]\n\
     privileged_without_host_devices = true\n\
     privileged_without_host_devices_all_devices_allowed = true\n",
);
const BULKHEAD_SANDBOX: Handler = (
    "bulkhead-sandbox",
    "runtime_type = \"io.containerd.bulkhead.v2\"\npod_annotations = [\"io.bulkhead.*\"]\n\
     privileged_without_host_devices = true\n\
     privileged_without_host_devices_all_devices_allowed = true\nsandboxer = \"shim\"\n",
);

fn handlers(cri: &str, handlers: &[Handler]) -> String {
    let section = |(name, lines): &Handler| format!("[{cri}.containerd.runtimes.{name}]\n{lines}");
    handlers.iter().map(section).collect()
}

/// The CNI configuration: a bridge, addresses that are noted below `dir`, and ports of the node.
pub fn network(dir: &Path) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": NETWORK,
        "plugins": [{
            "type": "bridge",
            "bridge": "pods",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("addresses"),
                "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }, {
            "type": "portmap",
            "capabilities": { "portMappings": true },
        }],
    })
    .to_string()
}
