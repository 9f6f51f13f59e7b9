//! What a test has made on the shared node, and what has to be gone after it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::node::{Node, network_namespace};
use super::{cgroup, config};
use crate::failure::Outcome;
use crate::leftovers;

/// The ids of pods and containers.
#[derive(Default)]
pub struct Ledger {
    pods: Mutex<Vec<String>>,
    containers: Mutex<Vec<String>>,
}

impl Ledger {
    /// Notes a pod.
    pub fn pod(&self, id: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// Notes a container.
    pub fn container(&self, id: &str) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// Whether the test has made nothing.
    pub fn is_empty(&self) -> bool {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Removes the pods that are still there, then requires that nothing is left of any of them.
    ///
    /// # Errors
    /// Something is left.
    pub fn close(&self, node: &Node, deadline: Duration) -> Outcome {
        let revived = node.revive();
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
            leftovers::none(id, &paths, deadline)?;
        }
        revived
    }
}

/// What the CNI library notes of a sandbox's network while it has one.
fn network_record(sandbox: &str) -> PathBuf {
    format!("/var/lib/cni/results/{}-{sandbox}-eth0", config::NETWORK).into()
}
