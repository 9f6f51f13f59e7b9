//! One VM with all that belongs to it, and the containers in it.
//!
//! ```text
//! Starting --> Running --> Ended
//!     \------> Failed
//! ```
//! The sandbox is built as soon as the server runs; containerd's Create finds it under way or done.

mod console;
mod directory;
mod launch;
mod phases;
mod pod;
pub mod template;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bulkhead_protocols::agent::{self, event};
use bulkhead_protocols::chain;
use futures::future::join_all;
use slog::{Logger, error, info, warn};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use ttrpc::asynchronous::ClientStreamReceiver;

use crate::config::{AssetError, Config, ConfigError};
use crate::container::spec::{self, GuestSpec};
use crate::container::{
    Container, ContainerError, Exit, KILL_GRACE, LOST, Neighbours, NewContainer, SIGKILL,
};
use crate::events::Publisher;
use crate::guest::{Guest, GuestError};
use crate::network::{Forward, NetworkError};
use crate::storage::share::{ContainerTree, ShareError};
use crate::storage::virtiofsd::VirtiofsdError;
use crate::storage::volume::{Volume, Volumes};
use crate::sys::lock;
use crate::vmm::{SelectError, StartError};

pub use directory::path as directory_path;
use launch::{Origin, Parts};
use phases::Phases;
pub use pod::{Pod, PodError};

/// How long a VM whose agent hung up may take to end by itself, and to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a VMM may take to be gone after it was killed.
const VMM_END: Duration = Duration::from_secs(10);

/// The largest number that the kernel gives to a process is below this (linux/threads.h).
const PID_MAX_LIMIT: u32 = 4 << 20;

/// What can go wrong with a sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// No such sandbox.
    #[error("no such sandbox: {0}")]
    NoSandbox(String),
    /// No such container.
    #[error("no such container: {0}")]
    NoContainer(String),
    /// The id is taken.
    #[error("container {0} exists already")]
    Exists(String),
    /// The id cannot be a directory's name.
    #[error(
        "container id {0:?} is not valid: allowed are letters, digits, '.', '_' and '-', and it starts with a letter or digit"
    )]
    BadId(String),
    /// The pod's configuration cannot be honoured.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The sandbox was created already.
    #[error("sandbox {0} exists already")]
    Configured(String),
    /// Its network namespace cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Nobody has said what the sandbox is for.
    #[error("the sandbox has not been created")]
    NotCreated,
    /// A checkpoint is to be restored.
    #[error("checkpoints are not supported")]
    Checkpoint,
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An annotation asks for what is not allowed.
    #[error(transparent)]
    Annotation(ConfigError),
    /// A program or an image that is needed cannot be used.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// No VMM can run here, or not the one that is asked for.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The VMM cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The share cannot be made.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The share's daemon cannot run.
    #[error(transparent)]
    Virtiofsd(#[from] VirtiofsdError),
    /// A file of the sandbox cannot be made.
    #[error("the sandbox's directory: {path}: {source}")]
    Directory {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The agent did not dial in time.
    #[error("the guest's agent did not come within {seconds} s; the console ends with: {console}")]
    Silent {
        /// How long it had (`agent_timeout`).
        seconds: u64,
        /// The console's last lines.
        console: String,
    },
    /// The VM ended while it was started.
    #[error("the VM did not start: {reason}; the console ends with: {console}")]
    Died {
        /// How it ended.
        reason: String,
        /// The console's last lines.
        console: String,
    },
    /// The VM has ended.
    #[error("the sandbox has ended: {reason}")]
    Ended {
        /// How it ended.
        reason: String,
    },
    /// The task that carried out a call broke off.
    #[error("the call was interrupted")]
    Interrupted,
    /// The start failed, as an earlier caller was told too.
    #[error(transparent)]
    Launch(Arc<SandboxError>),
    /// A call to the agent failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A container's own error.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

#[derive(Clone)]
enum State {
    Starting,
    Running(Arc<Running>),
    Failed(Arc<SandboxError>),
    Ended(Arc<str>),
}

struct Running {
    parts: Parts,
    guest: Guest,
    _forward: Option<Forward>,
    /// Made for the first volume, since a host has few of what it takes.
    volumes: OnceLock<Option<Volumes>>,
}

/// Who a sandbox is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// containerd's namespace.
    pub namespace: String,
    /// The id of its first container.
    pub id: String,
    /// The socket on which its shim listens.
    pub socket: PathBuf,
}

/// One sandbox.
pub struct Sandbox {
    identity: Identity,
    log: Logger,
    publisher: Publisher,
    phases: Phases,
    state: watch::Sender<State>,
    /// None until the sandbox API says what it is for.
    pod: watch::Sender<Option<Arc<Pod>>>,
    host_pid: AtomicU32,
    /// How many numbers were given to containers of the pod.
    pids: AtomicU32,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    creating: AtomicUsize,
    /// Whether it stays without a container: containerd drives it by the sandbox API.
    stays: AtomicBool,
    created_at: SystemTime,
    /// Whether it was asked to end.
    stopping: AtomicBool,
    exit: watch::Sender<Option<Exit>>,
    life: Mutex<Option<JoinHandle<()>>>,
}

impl Sandbox {
    /// Starts to build a sandbox; returns at once. A configuration that cannot be used is what the
    /// callers will hear. Without a pod the guest waits for [`Sandbox::configure`].
    pub fn launch(
        identity: Identity,
        config: Result<Config, ConfigError>,
        pod: Option<Pod>,
        publisher: Publisher,
        log: &Logger,
    ) -> Arc<Self> {
        let sandbox = Arc::new(Self {
            identity,
            log: log.clone(),
            publisher,
            phases: Phases::start(),
            state: watch::Sender::new(State::Starting),
            pod: watch::Sender::new(pod.map(Arc::new)),
            host_pid: AtomicU32::new(0),
            pids: AtomicU32::new(0),
            containers: Mutex::default(),
            creating: AtomicUsize::new(0),
            stays: AtomicBool::new(false),
            created_at: SystemTime::now(),
            stopping: AtomicBool::new(false),
            exit: watch::Sender::new(None),
            life: Mutex::default(),
        });
        let life = tokio::spawn(sandbox.clone().live(config));
        *lock(&sandbox.life) = Some(life);
        sandbox
    }

    async fn live(self: Arc<Self>, config: Result<Config, ConfigError>) {
        match self.build(config).await {
            Ok((running, events)) => {
                let running = Arc::new(running);
                self.host_pid.store(running.parts.vm.pid(), Ordering::Relaxed);
                self.state.send_replace(State::Running(running.clone()));
                self.supervise(&running, events).await;
            }
            Err(error) => {
                error!(self.log, "the sandbox did not start: {}", chain(&error));
                self.end(State::Failed(Arc::new(error)));
            }
        }
    }

    async fn build(
        &self,
        config: Result<Config, ConfigError>,
    ) -> Result<(Running, ClientStreamReceiver<agent::Event>), SandboxError> {
        let pod = self.pod().await?;
        let config = config?.with(&pod.annotations).map_err(SandboxError::Annotation)?;
        let (phases, log) = (&self.phases, &self.log);
        let (parts, control) =
            launch::devices(&config, &self.identity, &pod, Origin::Any, phases, log).await?;
        let connection = launch::agent(&parts, control, &config).await?;
        self.phases.stamp("agent");
        pod.write_files(&parts.spec.dir)?;
        let guest =
            launch::guest(&parts, connection, &config, &pod, &self.phases, &self.log).await?;
        let events = guest.events().await?;
        let forward = self.forward(&pod, &guest)?;
        let volumes = OnceLock::new();
        Ok((Running { parts, guest, _forward: forward, volumes }, events))
    }

    /// Forwards ports of a pod. A host that cannot has pods all the same.
    fn forward(&self, pod: &Pod, guest: &Guest) -> Result<Option<Forward>, SandboxError> {
        let Some(namespace) = &pod.network else {
            return Ok(None);
        };
        match Forward::start(namespace, guest, &self.log) {
            Ok(forward) => Ok(Some(forward)),
            Err(error @ NetworkError::Listen(_)) => {
                warn!(self.log, "ports are not forwarded: {}", chain(&error));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Follows the volumes of a new container.
    fn follow(&self, running: &Running, new: &[Volume]) {
        for volume in new {
            if let Some(Some(volumes)) = running.volumes.get()
                && let Err(error) = volumes.add(volume)
            {
                warn!(self.log, "changes of {} will not be seen: {error}", volume.host.display());
            }
        }
    }

    /// Lives as long as the VM: hands on what happens in the guest, and notices its end.
    async fn supervise(
        self: &Arc<Self>,
        running: &Arc<Running>,
        mut events: ClientStreamReceiver<agent::Event>,
    ) {
        let parts = &running.parts;
        let over = launch::over(parts);
        tokio::pin!(over);
        let exit = loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(Some(event)) => self.dispatch(event),
                    Ok(None) | Err(_) => break self.hung_up(parts).await,
                },
                reason = &mut over => break reason,
            }
        };
        parts.vm.kill();
        if self.containers().is_empty() {
            info!(self.log, "the VM has ended: {exit}");
        } else {
            error!(self.log, "the VM has ended: {exit}"; "console" => parts.console.tail());
        }
        self.end(State::Ended(exit.into()));
        join_all(self.containers().iter().map(|container| container.lost())).await;
    }

    /// The agent is gone. It is PID 1, so the VM follows; its own reason is the better one.
    async fn hung_up(&self, parts: &Parts) -> String {
        match timeout(LAST_WORDS, launch::over(parts)).await {
            Ok(reason) => reason,
            Err(_) => "the guest's agent hung up".to_owned(),
        }
    }

    /// Hands an event to its container. Names in it are looked up, never acted on. Each is a task
    /// of its own, since it may have to wait for its process's turn.
    fn dispatch(self: &Arc<Self>, event: agent::Event) {
        match event.kind {
            Some(event::Kind::Exit(exit)) => {
                let name = exit.process.unwrap_or_default();
                if let Ok(container) = self.container(&name.container)
                    && let Ok(process) = container.process(&name.exec)
                    && process.ends_now()
                {
                    tokio::spawn(async move {
                        container.exited(&name.exec, exit.status).await;
                    });
                }
            }
            Some(event::Kind::Oom(reference)) => {
                if let Ok(container) = self.container(&reference.container) {
                    container.out_of_memory();
                }
            }
            Some(_) | None => {}
        }
    }

    /// The running sandbox, once it runs.
    async fn running(&self) -> Result<Arc<Running>, SandboxError> {
        let mut state = self.state.subscribe();
        let built = |state: &State| !matches!(state, State::Starting);
        match state.wait_for(built).await.as_deref() {
            Ok(State::Running(running)) => Ok(running.clone()),
            Ok(State::Failed(error)) => Err(SandboxError::Launch(error.clone())),
            Ok(State::Ended(reason)) => Err(SandboxError::Ended { reason: reason.to_string() }),
            Ok(State::Starting) | Err(_) => {
                Err(SandboxError::Ended { reason: "the shim ends".to_owned() })
            }
        }
    }

    /// Makes a container. Returns the pid that stands for it on the host.
    pub async fn create(&self, new: NewContainer) -> Result<u32, SandboxError> {
        self.creating.fetch_add(1, Ordering::Relaxed);
        let created = self.make(new).await;
        self.creating.fetch_sub(1, Ordering::Relaxed);
        created
    }

    async fn make(&self, new: NewContainer) -> Result<u32, SandboxError> {
        let id = new.id.clone();
        check_id(&id)?;
        if self.container(&id).is_ok() {
            return Err(SandboxError::Exists(id));
        }
        self.phases.stamp("create");
        let running = self.running().await?;
        // A thread of its own: a mount from a dead server must not stop the others' calls.
        let sandbox = running.clone();
        let pod = self.pod().await?;
        let pids = self.pids_of_containers();
        let prepared = spawn_blocking(move || (prepare(&sandbox, &pod, &pids, &new), new)).await;
        let (prepared, new) = prepared.map_err(|_| SandboxError::Interrupted)?;
        let publisher = self.publisher.clone();
        let pid = self.pid_of(&id, running.parts.vm.pid());
        let container = match prepared? {
            None => Container::sandbox(new, pid, publisher, &self.log),
            Some((spec, tree)) => {
                self.phases.stamp("rootfs");
                let guest = running.guest.clone();
                let volumes = spec.volumes.clone();
                let container =
                    Container::create(new, spec, tree, guest, pid, publisher, &self.log).await?;
                self.follow(&running, &volumes);
                container
            }
        };
        self.table().insert(id, Arc::new(container));
        self.phases.stamp("created");
        Ok(pid)
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
        if let Err(error) = container.start(exec).await {
            if let ContainerError::Guest(GuestError::Deadline(_)) = error {
                // It may run or not; nobody could tell, or end it, from now on.
                warn!(self.log, "the guest does not answer: its VM is ended"; "container" => id);
                self.kill_vm();
            }
            return Err(error.into());
        }
        if id == self.identity.id && exec.is_empty() {
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
                if timeout(KILL_GRACE, process.wait()).await.is_err() {
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

    /// Forgets a process, and with the first one its container.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<Exit, SandboxError> {
        let exit = self.container(id)?.delete(exec).await?;
        if exec.is_empty() {
            self.table().remove(id);
            if let State::Running(running) = &*self.state.borrow()
                && let Some(Some(volumes)) = running.volumes.get()
            {
                volumes.forget(id);
            }
        }
        Ok(exit)
    }

    /// How the guest sees itself.
    pub async fn diagnostics(&self) -> Result<agent::DiagnosticsResponse, SandboxError> {
        Ok(self.running().await?.guest.diagnostics().await?)
    }

    /// A container by its id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, SandboxError> {
        self.table().get(id).cloned().ok_or_else(|| SandboxError::NoContainer(id.to_owned()))
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// When it came to be.
    pub fn created_at(&self) -> SystemTime {
        self.created_at
    }

    /// Says what the sandbox is for; it then stays until it is shut down, with a container or without.
    pub fn configure(&self, pod: Pod) -> Result<(), SandboxError> {
        if self.stays.swap(true, Ordering::Relaxed) || self.pod.borrow().is_some() {
            return Err(SandboxError::Configured(self.identity.id.clone()));
        }
        self.pod.send_replace(Some(Arc::new(pod)));
        Ok(())
    }

    /// Returns the VMM's number once containers can be made.
    pub async fn ready(&self) -> Result<u32, SandboxError> {
        Ok(self.running().await?.parts.vm.pid())
    }

    /// What all containers together use.
    pub async fn stats(&self) -> Result<agent::StatsResponse, SandboxError> {
        Ok(self.running().await?.guest.stats("").await?)
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Returns once it has ended.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| *exit).unwrap_or(Exit { status: LOST, at: SystemTime::now() })
    }

    /// Its last state: only one that was asked to end has ended well.
    fn end(&self, state: State) {
        let status = if self.stopping.load(Ordering::Relaxed) { 0 } else { LOST };
        self.state.send_replace(state);
        self.exit.send_replace(Some(Exit { status, at: SystemTime::now() }));
    }

    /// What the sandbox is for, once it is known.
    async fn pod(&self) -> Result<Arc<Pod>, SandboxError> {
        let mut pod = self.pod.subscribe();
        let known = pod.wait_for(Option::is_some).await;
        known.ok().and_then(|pod| pod.clone()).ok_or(SandboxError::NotCreated)
    }

    /// Whether there is no container, none is being made, and none is to be waited for.
    pub fn is_empty(&self) -> bool {
        !self.stays.load(Ordering::Relaxed)
            && self.creating.load(Ordering::Relaxed) == 0
            && self.table().is_empty()
    }

    /// The ids of the containers.
    pub fn ids(&self) -> Vec<String> {
        self.table().keys().cloned().collect()
    }

    /// The pid that stands for the sandbox's processes on the host: the VMM's, 0 before there is one.
    pub fn host_pid(&self) -> u32 {
        self.host_pid.load(Ordering::Relaxed)
    }

    /// Ends the VM: lets the guest write down what it holds, and then gives all of it back. A start
    /// that is under way is broken off.
    pub async fn shutdown(&self) {
        let Some(life) = lock(&self.life).take() else {
            return;
        };
        self.stopping.store(true, Ordering::Relaxed);
        let state = self.state.borrow().clone();
        match state {
            State::Starting => {
                life.abort();
                let reason = "it was shut down while it started".into();
                // Whoever waits for the start is let go.
                self.end(State::Ended(reason));
            }
            State::Running(running) => {
                if let Err(error) = running.guest.shutdown().await {
                    warn!(self.log, "the guest did not say goodbye: {error}");
                }
                running.parts.vm.kill();
            }
            State::Failed(_) | State::Ended(_) => {}
        }
        if timeout(VMM_END, life).await.is_err() {
            warn!(self.log, "the VMM is still there after it was killed");
        }
    }

    fn kill_vm(&self) {
        if let State::Running(running) = &*self.state.borrow() {
            running.parts.vm.kill();
        }
    }

    fn containers(&self) -> Vec<Arc<Container>> {
        self.table().values().cloned().collect()
    }

    /// Held for a look-up, never across an await.
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Container>>> {
        lock(&self.containers)
    }
}

/// Mounts what the container needs into the share, and writes its spec for the guest; nothing for the one that stands
/// for its pod. `pids` are the numbers that stand for other containers on the host.
fn prepare(
    running: &Running,
    pod: &Pod,
    pids: &HashMap<u32, String>,
    new: &NewContainer,
) -> Result<Option<(GuestSpec, ContainerTree)>, ContainerError> {
    let mut document = spec::load(&new.bundle)?;
    if spec::is_sandbox(&document) {
        spec::check_sandbox(&document)?;
        return Ok(None);
    }
    pod.add_mounts(&running.parts.spec.dir, &mut document);
    let mut tree = running.parts.share.container(&new.id).map_err(ContainerError::Rootfs)?;
    let root = spec::root(&document, &new.bundle)?;
    let rootfs = tree
        .rootfs(&spec::rootfs_mounts(&new.rootfs), &root, spec::read_only(&document))
        .map_err(ContainerError::Rootfs)?;
    let neighbours = Neighbours {
        pid: running.parts.vm.pid(),
        network: pod.network.as_deref(),
        container: &|pid| pids.get(&pid).cloned(),
    };
    let follows = || running.volumes.get_or_init(|| volumes(running)).is_some();
    let bundle = &new.bundle;
    let spec = spec::for_guest(document, rootfs, bundle, &mut tree, &neighbours, &follows)?;
    Ok(Some((spec, tree)))
}

/// Where they cannot be followed, the guest sees volumes in the share, and their changes without inotify.
fn volumes(running: &Running) -> Option<Volumes> {
    let log = &running.parts.log;
    Volumes::start(&running.guest, log)
        .inspect_err(|error| {
            warn!(
                log,
                "volumes are not followed: {error}; fs.inotify.max_user_instances may be too low"
            );
        })
        .ok()
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
