//! The containers of a sandbox.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_protocols::agent::{self, ProcessRef};
use oci_spec::runtime::Spec;
use slog::{info, warn};
use tokio::time::timeout;

use super::first::First;
use super::running::Running;
use super::{Pod, Sandbox, SandboxError, State, aside};
use crate::container::devices::BlockDevice;
use crate::container::spec::{self, GuestSpec};
use crate::container::{
    Container, ContainerError, Exit, KILL_GRACE, Neighbours, NewContainer, SIGKILL, Surroundings,
};
use crate::guest::GuestError;
use crate::storage::block::Root;
use crate::storage::share::ContainerTree;
use crate::sys::lock;

/// The largest number that the kernel gives to a process is below this (linux/threads.h).
const PID_MAX_LIMIT: u32 = 4 << 20;

/// How long it may take until it is known why a connection was lost.
const REASON: Duration = Duration::from_secs(5);

/// A container that is being made.
pub(super) struct Making {
    /// Whether containerd still waits for it.
    wanted: bool,
    /// How it has ended already, if it has: the guest may say so before it is in the table.
    pub(super) exit: Option<u32>,
}

/// What a container is to be made from.
struct Wanted {
    new: NewContainer,
    document: Spec,
    root: Root,
    devices: Vec<BlockDevice>,
}

impl Wanted {
    fn load(new: NewContainer) -> Result<Wanted, ContainerError> {
        let document = spec::load(&new.bundle)?;
        let root = Root::of(&spec::rootfs_mounts(&new.rootfs)).map_err(ContainerError::Rootfs)?;
        let devices = BlockDevice::all_of(&document)?;
        Ok(Wanted { new, document, root, devices })
    }

    /// What the start of its sandbox depends on.
    fn first(&self) -> First {
        First {
            root: self.root.clone(),
            read_only: spec::read_only(&self.document),
            binds: spec::binds(&self.document),
            devices: self.devices.iter().map(BlockDevice::source).collect(),
        }
    }
}

impl Sandbox {
    /// Makes a container. Returns the pid that stands for it on the host.
    pub async fn create(&self, new: NewContainer) -> Result<u32, SandboxError> {
        let id = new.id.clone();
        match lock(&self.creating).entry(id.clone()) {
            Entry::Occupied(_) => return Err(SandboxError::Exists(id)),
            Entry::Vacant(entry) => entry.insert(Making { wanted: true, exit: None }),
        };
        let created = self.make(new).await;
        let making = lock(&self.creating).remove(&id);
        if let Some(status) = making.as_ref().and_then(|making| making.exit) {
            self.tell_end(&ProcessRef { container: id.clone(), ..Default::default() }, status);
        }
        match created {
            Ok(_) if making.is_some_and(|making| !making.wanted) => {
                warn!(self.log, "was given up while it was made"; "container" => &id);
                self.delete(&id, "").await?;
                Err(SandboxError::NoContainer(id))
            }
            Ok(pid) => Ok(pid),
            Err(error) => Err(self.explained(error).await),
        }
    }

    /// What a lost connection comes of, once that is known: why a VM has ended is what helps.
    async fn explained(&self, error: SandboxError) -> SandboxError {
        let (SandboxError::Guest(lost) | SandboxError::Container(ContainerError::Guest(lost))) =
            &error
        else {
            return error;
        };
        if !matches!(lost, GuestError::Lost(_) | GuestError::Stream(_)) {
            return error;
        }
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_)));
        match timeout(REASON, ended).await.ok().and_then(Result::ok).as_deref() {
            Some(State::Ended(reason)) => SandboxError::Ended { reason: reason.to_string() },
            _ => error,
        }
    }

    async fn make(&self, new: NewContainer) -> Result<u32, SandboxError> {
        let id = new.id.clone();
        check_id(&id)?;
        if self.container(&id).is_ok() {
            return Err(SandboxError::Exists(id));
        }
        self.phases.stamp("create");
        let wanted = aside(move || Wanted::load(new)).await?;
        let first = || wanted.as_ref().map_or_else(|_| First::default(), Wanted::first);
        self.first.send_if_modified(|known| known.is_none() && known.replace(first()).is_none());
        let wanted = wanted?;
        let running = self.running().await?;
        let made = if spec::is_sandbox(&wanted.document) {
            spec::check_sandbox(&wanted.document).map_err(ContainerError::Spec)?;
            let pid = self.pid_of(&id, running.parts.vm.pid());
            Ok(Container::sandbox(wanted.new, pid, self.publisher.clone(), &self.log))
        } else {
            self.make_in_guest(wanted, &running).await
        };
        if made.is_err() {
            running.unplug(&id).await;
        }
        let container = made?;
        let (pid, container) = (container.host_pid, Arc::new(container));
        self.table().insert(id, container.clone());
        let over = matches!(*self.state.borrow(), State::Ended(_));
        if over {
            // Those that were in the table by then have been told.
            container.lost().await;
        }
        self.phases.stamp("created");
        Ok(pid)
    }

    async fn make_in_guest(
        &self,
        wanted: Wanted,
        running: &Arc<Running>,
    ) -> Result<Container, SandboxError> {
        let Wanted { new, document, root, devices } = wanted;
        let scratch = running.parts.scratch.as_ref();
        let lower =
            scratch.is_some_and(|(_, scratch)| scratch.takes_upper(spec::read_only(&document)));
        let images = running.plug(&new.id, root.images(lower)).await?;
        let shown = images.is_empty() || spec::binds(&document);
        if shown && running.parts.virtiofsd.is_none() {
            return Err(SandboxError::NoShare(new.id));
        }
        let mut disks = Vec::new();
        for device in &devices {
            disks.push(running.plug_device(&new.id, device).await?);
        }
        let (sandbox, pod) = (running.clone(), self.pod().await?);
        let pids = self.pids_of_containers();
        let prepared =
            aside(move || (prepare(&sandbox, &pod, &pids, &new, document, (&images, &disks)), new));
        let (prepared, new) = prepared.await?;
        let (spec, tree) = prepared?;
        self.phases.stamp("rootfs");
        let (guest, publisher) = (running.guest.clone(), self.publisher.clone());
        let volumes = spec.volumes.clone();
        let pid = self.pid_of(&new.id, running.parts.vm.pid());
        let made = Container::create(new, spec, tree, guest, pid, publisher, &self.log).await?;
        running.follow(&volumes);
        Ok(made)
    }

    /// The number that stands for a container on the host: the VMM's for the one that the sandbox is named after.
    /// The others' are beyond those that the kernel gives (`PID_MAX_LIMIT`): each stands for one container, so that
    /// another one can ask for its PID namespace, and for no process of the host.
    fn pid_of(&self, id: &str, vmm: u32) -> u32 {
        if id == self.identity.id {
            return vmm;
        }
        PID_MAX_LIMIT + 1 + self.pids.fetch_add(1, Ordering::Relaxed)
    }

    fn pids_of_containers(&self) -> HashMap<u32, String> {
        let vmm = self.host_pid();
        let containers = self.containers();
        let others = containers.iter().filter(|container| container.host_pid != vmm);
        others.map(|container| (container.host_pid, container.id.clone())).collect()
    }

    /// Runs a container, or an exec in one.
    pub async fn start(&self, id: &str, exec: &str) -> Result<u32, SandboxError> {
        let container = self.container(id)?;
        // What was set up between Create and Start, as `ctr run --cni` does it, is there when the program starts.
        self.running().await?.settle_network().await;
        if let Err(error) = container.start(exec).await {
            if let (ContainerError::Guest(GuestError::Deadline(_)), "") = (&error, exec) {
                // It may run or not; nobody could tell, or end it, from now on. An exec ends with its container.
                warn!(self.log, "the guest does not answer: its VM is ended"; "container" => id);
                self.kill_vm();
            }
            return Err(self.explained(error.into()).await);
        }
        // The next spare may begin.
        if lock(&self.began).take().is_some() {
            self.phases.stamp("started");
            self.running().await?.parts.record_phases(&self.phases);
            info!(self.log, "cold start"; "phases" => self.phases.line());
        }
        Ok(container.host_pid)
    }

    /// Sends a signal. Where SIGKILL does not end a container, whatever the guest says, it ends
    /// the VM.
    pub async fn kill(
        self: &Arc<Self>,
        id: &str,
        exec: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), SandboxError> {
        let container = self.container(id)?;
        let for_good = signal == SIGKILL && exec.is_empty();
        if for_good {
            let (sandbox, process) = (self.clone(), container.process(exec)?);
            tokio::spawn(async move {
                // News that waits for a client to take the output is news.
                if timeout(KILL_GRACE, process.wait()).await.is_err() && process.ends_now() {
                    warn!(
                        sandbox.log,
                        "the guest does not end {}: its VM is ended",
                        process.name()
                    );
                    sandbox.kill_vm();
                }
            });
        }
        match container.kill(exec, signal, all).await {
            // It will be over soon, one way or the other.
            Err(ContainerError::Guest(GuestError::Deadline(_) | GuestError::Lost(_)))
                if for_good =>
            {
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Takes note that containerd has given up a container that is still being made: it asks once for the deletion of
    /// what it has not been told of.
    pub fn give_up(&self, id: &str) {
        if let Some(making) = lock(&self.creating).get_mut(id) {
            making.wanted = false;
        }
    }

    /// Forgets a process, and with the first one its container.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<Exit, SandboxError> {
        let exit = self.container(id)?.delete(exec).await?;
        if exec.is_empty() {
            self.table().remove(id);
            let state = self.state.borrow().clone();
            if let State::Running(running) = state {
                running.forget_volumes(id);
                running.unplug(id).await;
            }
        }
        Ok(exit)
    }
}

/// Mounts what the container needs into the share, and writes its spec for the guest. `pids` are the numbers that stand
/// for other containers on the host; the disks are those with its root file system, and its devices.
fn prepare(
    running: &Running,
    pod: &Pod,
    pids: &HashMap<u32, String>,
    new: &NewContainer,
    document: Spec,
    (images, devices): (&[agent::Mount], &[agent::Device]),
) -> Result<(GuestSpec, ContainerTree), ContainerError> {
    let mut tree = running.parts.share.container(&new.id).map_err(ContainerError::Rootfs)?;
    let root = spec::root(&document, &new.bundle)?;
    let scratch = running.parts.scratch.as_ref().map(|(_, held)| held);
    let read_only = spec::read_only(&document);
    let lower = scratch.is_some_and(|scratch| scratch.takes_upper(read_only));
    let rootfs = if images.is_empty() {
        let mounts = spec::rootfs_mounts(&new.rootfs);
        tree.rootfs(&mounts, &root, read_only, lower).map_err(ContainerError::Rootfs)?
    } else {
        // As overlayfs has its lower directories.
        images.iter().map(|image| image.target.as_str()).collect::<Vec<_>>().join(":")
    };
    let neighbours = Neighbours {
        pid: running.parts.vm.pid(),
        network: pod.network.as_deref(),
        container: &|pid| pids.get(&pid).cloned(),
    };
    let follows = || running.follows();
    let bundle = &new.bundle;
    let follows = &follows;
    let sockets = &running.parts.forward_sockets;
    let files = &pod.mounts(&document);
    let surroundings =
        Surroundings { bundle, neighbours, follows, scratch, images, devices, sockets, files };
    let spec = spec::for_guest(document, rootfs, &mut tree, &surroundings)?;
    Ok((spec, tree))
}

/// containerd's own rule for identifiers: an id becomes a directory's name on both sides.
fn check_id(id: &str) -> Result<(), SandboxError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let valid = id.chars().all(allowed) && id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if valid { Ok(()) } else { Err(SandboxError::BadId(id.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_path_component() {
        for good in ["a", "demo", "a1.b_c-d", &"x".repeat(76)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "-a", ".hidden", "a b", "ä", "a\0"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
