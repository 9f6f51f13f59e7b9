//! A containerd that speaks CRI, in a network namespace of its own: what a kubelet has on its node.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_cri::v1::{
    ImageSpec, ImageStatusRequest, ListPodSandboxRequest, PodSandboxStatusRequest,
    RemovePodSandboxRequest, StatusRequest, StopPodSandboxRequest,
};
use serde_json::Value;
use tonic::{Code, Status};

use super::client::{Client, Reply};
use super::config;
use crate::command;
use crate::containerd::{Containerd, Role};
use crate::failure::{Failure, Outcome, again, both, holds};
use crate::image;
use crate::leftovers;
use crate::network::Network;
use crate::options::Options;
use crate::product;

/// The containerd namespace in which the CRI plugin works.
pub const NAMESPACE: &str = "k8s.io";

/// A containerd that speaks CRI.
pub struct Node {
    /// The containerd.
    pub containerd: Containerd,
    /// Its CRI API.
    pub client: Client,
    crashes: Mutex<Vec<String>>,
    options: Arc<Options>,
}

impl Node {
    /// Starts one with the images of this tar file.
    ///
    /// # Errors
    /// It doesn't serve, or its CRI plugin isn't ready before the deadline.
    pub fn start(options: &Arc<Options>, images: &Path) -> Outcome<Self> {
        let role = Role {
            namespace: NAMESPACE,
            network: Some(Network::new()?),
            cri: Some(config::containerd),
        };
        let containerd = product::containerd(options, role)?;
        let client = Client::new(&containerd.socket(), options.deadline(60))?;
        let node =
            Self { containerd, client, crashes: Mutex::default(), options: Arc::clone(options) };
        let cni = node.dir().join(config::CNI);
        fs::create_dir_all(&cni)?;
        fs::write(cni.join("pods.conflist"), config::network(node.dir()))?;
        node.containerd.import(images)?;
        node.ready()?;
        Ok(node)
    }

    /// Ends containerd and starts it again; pods go on meanwhile.
    ///
    /// # Errors
    /// It doesn't serve again.
    pub fn restart(&self) -> Outcome {
        self.containerd.stop()?;
        self.containerd.launch()?;
        self.ready()
    }

    /// Starts a containerd again that has crashed: one crash shall fail the tests that it meets, and no others.
    ///
    /// # Errors
    /// It doesn't serve again.
    pub fn revive(&self) -> Outcome {
        let mut crashes = self.crashes.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.containerd.has_ended() {
            return Ok(());
        }
        let log = self.containerd.log();
        let panic = log.rfind("\npanic: ").map_or("", |at| &log[at + 1..]);
        crashes.push(panic.lines().take(8).collect::<Vec<_>>().join("\n"));
        self.containerd.launch()?;
        self.ready()
    }

    /// How often containerd has crashed.
    pub fn crashes(&self) -> usize {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Requires that containerd has not crashed since it had crashed so often.
    ///
    /// # Errors
    /// It has; the text holds its last words.
    pub fn no_crash_since(&self, count: usize) -> Outcome {
        let crashes = self.crashes.lock().unwrap_or_else(PoisonError::into_inner);
        match crashes.get(count) {
            Some(words) => Err(Failure::new(format!("containerd has crashed: {words}"))),
            None => Ok(()),
        }
    }

    /// Gives the shim's configuration these lines in addition; shims that start from now on read them.
    ///
    /// # Errors
    /// It can't be written.
    pub fn configure(&self, lines: &str) -> Outcome {
        self.containerd.configure(&(product::config(&self.options, self.dir()) + lines))
    }

    /// The scratch directory.
    pub fn dir(&self) -> &Path {
        self.containerd.dir()
    }

    /// Where the CRI plugin mounts the network namespaces of pods.
    pub fn namespaces(&self) -> PathBuf {
        self.containerd.state().join("io.containerd.grpc.v1.cri/netns")
    }

    /// Stops and removes a pod with all that is in it; one that is not there is as good as removed.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn remove_pod(&self, id: &str) -> Reply<()> {
        let pod_sandbox_id = id.to_owned();
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        match self.client.call(async |mut cri| cri.stop_pod_sandbox(stop).await) {
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            stopped => stopped?,
        };
        let remove = RemovePodSandboxRequest { pod_sandbox_id };
        self.client.call(async |mut cri| cri.remove_pod_sandbox(remove).await).map(drop)
    }

    /// The ids of all pods.
    ///
    /// # Errors
    /// containerd doesn't answer.
    pub fn pod_ids(&self) -> Reply<Vec<String>> {
        let request = ListPodSandboxRequest::default();
        let answer = self.client.call(async |mut cri| cri.list_pod_sandbox(request).await)?;
        Ok(answer.items.into_iter().map(|pod| pod.id).collect())
    }

    /// Removes all pods, ends containerd, and requires that nothing is left: no process, no mount, no
    /// sandbox, no network namespace.
    ///
    /// # Errors
    /// Something is left, or containerd has crashed.
    pub fn close(&self, deadline: Duration) -> Outcome {
        self.revive()?;
        for pod in self.pod_ids()? {
            self.remove_pod(&pod)?;
        }
        self.containerd.stop()?;
        both(self.no_crash_since(0), self.nothing_left(deadline))
    }

    /// Requires that nothing is left of any pod.
    ///
    /// # Errors
    /// Something is left.
    pub fn nothing_left(&self, deadline: Duration) -> Outcome {
        let mut paths = leftovers::entries(&product::state_dir(self.dir()));
        paths.extend(leftovers::entries(&self.namespaces()));
        leftovers::none(&self.dir().to_string_lossy(), &paths, deadline)
    }

    /// What containerd says of a pod when asked to be verbose.
    ///
    /// # Errors
    /// The pod is not there, or the answer is not JSON.
    pub fn pod_info(&self, id: &str) -> Outcome<Value> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer = self.client.call(async |mut cri| cri.pod_sandbox_status(request).await)?;
        Ok(serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str))?)
    }

    /// Waits for the CRI plugin, which serves, and learns of images and networks, after containerd does.
    fn ready(&self) -> Outcome {
        again(self.options.deadline(30), || {
            let ready = self.is_ready();
            holds(matches!(ready, Ok(true)), || format!("the CRI plugin is not ready: {ready:?}"))
        })
        .map_err(|failure| {
            Failure::new(format!("{failure}\n{}", command::tail(&self.containerd.log())))
        })
    }

    fn is_ready(&self) -> Reply<bool> {
        let request = StatusRequest::default();
        let answer = self.client.call(async |mut cri| cri.status(request).await)?;
        let conditions = answer.status.map_or_else(Vec::new, |status| status.conditions);
        let images = [image::NAME, image::PAUSE, image::BARE].map(|name| self.has_image(name));
        Ok(!conditions.is_empty()
            && conditions.iter().filter(|one| one.r#type.ends_with("Ready")).all(|one| one.status)
            && images.into_iter().collect::<Result<Vec<_>, Status>>()?.iter().all(|found| *found))
    }

    fn has_image(&self, name: &str) -> Reply<bool> {
        let image = Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image, verbose: false };
        let answer = self.client.images(async |mut cri| cri.image_status(request).await)?;
        Ok(answer.image.is_some())
    }
}

/// The network namespace in the OCI spec of a sandbox container or container, as containerd's verbose
/// answer shows it.
pub fn network_namespace(info: &Value) -> Option<PathBuf> {
    let list = info.pointer("/runtimeSpec/linux/namespaces")?.as_array()?;
    let network = list.iter().find(|one| one["type"] == "network")?;
    network["path"].as_str().map(PathBuf::from)
}
