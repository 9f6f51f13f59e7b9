//! Pods: what the kubelet makes of a PodSpec, changed as a test needs it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use k8s_cri::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatus,
    PodSandboxStatusRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};
use tonic::Code;

use super::client::{Reply, refused};
use super::container::ContainerPlan;
use super::node::Node;
use crate::bed::Test;
use crate::failure::{Outcome, again, holds};

/// A pod that doesn't run yet.
pub struct PodPlan<'t> {
    /// What containerd will be asked for.
    pub config: PodSandboxConfig,
    handler: String,
    node: Option<&'t Node>,
    test: &'t Test<'t>,
}

impl<'t> PodPlan<'t> {
    /// A pod with the kubelet's defaults and a name of its own; on the shared node, if on none of the
    /// test's own.
    pub fn new(test: &'t Test<'_>, name: String, node: Option<&'t Node>) -> Self {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..NamespaceOption::default()
        };
        let linux = LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        };
        let config = PodSandboxConfig {
            hostname: name.clone(),
            labels: HashMap::from([("io.kubernetes.pod.name".to_owned(), name.clone())]),
            metadata: Some(PodSandboxMetadata {
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
                name,
            }),
            linux: Some(linux),
            ..PodSandboxConfig::default()
        };
        Self { config, handler: test.bed.options.handler().to_owned(), node, test }
    }

    /// With a change to what containerd will be asked for.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// With a change to its Linux part.
    #[must_use]
    pub fn linux(self, change: impl FnOnce(&mut LinuxPodSandboxConfig)) -> Self {
        self.with(|config| change(config.linux.get_or_insert_default()))
    }

    /// With a change to its security context.
    #[must_use]
    pub fn security(self, change: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> Self {
        self.linux(|linux| change(linux.security_context.get_or_insert_default()))
    }

    /// With a change to its namespaces.
    #[must_use]
    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.security(|security| change(security.namespace_options.get_or_insert_default()))
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(|config| drop(config.annotations.insert(key.to_owned(), value.to_owned())))
    }

    /// For another runtime handler.
    #[must_use]
    pub fn handler(mut self, name: &str) -> Self {
        name.clone_into(&mut self.handler);
        self
    }

    /// Asks containerd for it.
    ///
    /// # Errors
    /// The outer one: there is no node. The inner one: containerd refuses.
    pub fn attempt(&self) -> Outcome<Reply<Pod<'t>>> {
        let node = match self.node {
            Some(node) => node,
            None => {
                let node = self.test.bed.pods()?;
                self.test.pods().begin(node);
                node
            }
        };
        let mut config = self.config.clone();
        let name = config.metadata.as_ref().map_or("", |data| &data.name).to_owned();
        if config.log_directory.is_empty() {
            let logs = node.dir().join("logs").join(name);
            fs::create_dir_all(&logs)?;
            config.log_directory = logs.to_string_lossy().into_owned();
        }
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let reply = node.client.call(async |mut cri| cri.run_pod_sandbox(request).await);
        Ok(reply.map(|answer| {
            let pod = Pod { id: answer.pod_sandbox_id, config, node, test: self.test };
            if self.node.is_none() {
                self.test.pods().pod(&pod.id);
            }
            pod
        }))
    }

    /// Runs it.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn run(&self) -> Outcome<Pod<'t>> {
        Ok(self.attempt()??)
    }

    /// Requires that containerd refuses it with one of these codes and texts.
    ///
    /// # Errors
    /// It doesn't, or in other words.
    pub fn refused(&self, codes: &[Code], texts: &[&str]) -> Outcome {
        refused(self.attempt()?, codes, texts).map(drop)
    }
}

/// A pod that was started.
pub struct Pod<'t> {
    /// Its sandbox's id.
    pub id: String,
    /// What containerd was asked for.
    pub config: PodSandboxConfig,
    /// Where it runs.
    pub node: &'t Node,
    /// The test that it is part of.
    pub test: &'t Test<'t>,
}

impl<'t> Pod<'t> {
    /// A container that doesn't exist yet.
    pub fn container(&self, name: &str) -> ContainerPlan<'_> {
        ContainerPlan::new(self, name)
    }

    /// Where the logs of its containers are.
    pub fn logs(&self) -> PathBuf {
        PathBuf::from(&self.config.log_directory)
    }

    /// Its status.
    ///
    /// # Errors
    /// containerd doesn't know it.
    pub fn status(&self) -> Reply<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer =
            self.node.client.call(async |mut cri| cri.pod_sandbox_status(request).await)?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Whether its sandbox is ready.
    ///
    /// # Errors
    /// containerd doesn't know it.
    pub fn is_ready(&self) -> Reply<bool> {
        Ok(self.status()?.state() == PodSandboxState::SandboxReady)
    }

    /// Waits until its sandbox is not ready.
    ///
    /// # Errors
    /// It still is at the deadline.
    pub fn await_not_ready(&self) -> Outcome {
        // The kubelet asks again and again too.
        again(self.test.deadline(20), || {
            holds(!self.is_ready()?, || "the pod is still ready".to_owned())
        })
    }

    /// Its address.
    ///
    /// # Errors
    /// It has none.
    pub fn address(&self) -> Outcome<String> {
        let network = self.status()?.network.unwrap_or_default();
        crate::ensure!(!network.ip.is_empty(), "the pod has no address");
        Ok(network.ip)
    }

    /// Stops it with all of its containers.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn stop(&self) -> Reply<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.client.call(async |mut cri| cri.stop_pod_sandbox(request).await).map(drop)
    }

    /// Stops and removes it.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn remove(&self) -> Reply<()> {
        self.node.remove_pod(&self.id)
    }
}
