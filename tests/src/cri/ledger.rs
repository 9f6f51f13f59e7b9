//! What a test has made on the shared node, and what has to be gone after it.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::node::{NAMESPACE, Node, network_namespace};
use super::{cgroup, config};
use crate::failure::Outcome;
use crate::leftovers;
use crate::product;

/// The ids of pods and containers.
#[derive(Default)]
pub struct Ledger {
    /// How often containerd had crashed when the test came.
    crashes: OnceLock<usize>,
    pods: Mutex<Vec<String>>,
    containers: Mutex<Vec<String>>,
}

impl Ledger {
    /// Notes that the test uses the node.
    pub fn begin(&self, node: &Node) {
        self.crashes.get_or_init(|| node.crashes());
    }

    /// Notes a pod.
    pub fn pod(&self, id: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// Notes a container.
    pub fn container(&self, id: &str) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// Removes the pods that are still there, then requires that nothing is left of any of them.
    ///
    /// # Errors
    /// Something is left, or containerd has crashed.
    pub fn close(&self, node: &Node, deadline: Duration) -> Outcome {
        node.revive()?;
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut namespaces: Vec<PathBuf> = Vec::new();
        for pod in pods.iter() {
            // A pod that the test has removed itself is not there any more.
            namespaces.extend(node.pod_info(pod).ok().as_ref().and_then(network_namespace));
            node.remove_pod(pod)?;
        }
        for id in pods.iter().chain(containers.iter()) {
            let mut paths = cgroup::of_container(id);
            paths.push(node.containerd.bundle(id));
            paths.append(&mut namespaces);
            paths.push(network_record(id));
            paths.push(product::disk(node.dir(), NAMESPACE, id));
            leftovers::none(id, &paths, deadline)?;
        }
        node.no_crash_since(self.crashes.get().copied().unwrap_or_default())
    }

    /// Whether the test has used the node.
    pub fn has_begun(&self) -> bool {
        self.crashes.get().is_some()
    }
}

/// What the CNI library notes of a sandbox's network while it has one.
fn network_record(sandbox: &str) -> PathBuf {
    format!("/var/lib/cni/results/{}-{sandbox}-eth0", config::NETWORK).into()
}
