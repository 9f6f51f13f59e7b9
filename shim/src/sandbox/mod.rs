//! One VM with all that belongs to it, and the containers in it.
//!
//! ```text
//! Starting --> Running --> Ended
//!     \------> Failed
//! ```
//! A pod's is built as soon as it is known what the pod is, and containerd's Create finds it under way or done; what
//! any other one is made of, Create says.

mod console;
mod containers;
mod directory;
mod disks;
mod error;
mod first;
mod launch;
mod life;
mod phases;
mod pod;
mod running;
pub mod size;
mod spare;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bulkhead_protocols::agent;
use slog::{Logger, warn};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::config::{Config, ConfigError};
use crate::container::{Container, Exit, LOST, SETTLE};
use crate::events::Publisher;
use crate::sys::lock;

use containers::Making;
pub use directory::path as directory_path;
pub use error::SandboxError;
use first::First;
use phases::Phases;
pub use pod::{Pod, PodError};
use running::Running;
pub use spare::Spare;

/// How long a VMM may take to be gone after it was killed.
const VMM_END: Duration = Duration::from_secs(10);

/// Does what may have to wait for the host in a thread of its own: others' calls go on.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SandboxError> {
    spawn_blocking(work).await.map_err(|_| SandboxError::Interrupted)
}

#[derive(Clone)]
enum State {
    Starting,
    Running(Arc<Running>),
    Failed(Arc<SandboxError>),
    Ended(Arc<str>),
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

/// What a sandbox comes from.
pub struct Origin {
    /// The guest that is its own, if that is as it is to be; else one boots.
    pub spare: Option<Spare>,
    /// What is closed once its first container runs.
    pub began: OwnedFd,
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
    /// What the first container sees of the host; None until it is known.
    first: watch::Sender<Option<First>>,
    host_pid: AtomicU32,
    /// How many numbers were given to containers of the pod.
    pids: AtomicU32,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Those that are being made, by their ids.
    creating: Mutex<HashMap<String, Making>>,
    /// Closed once a container runs: the host then has time for the next spare.
    began: Mutex<Option<OwnedFd>>,
    /// Whether it stays without a container: containerd drives it by the sandbox API.
    stays: AtomicBool,
    /// When it came to be.
    pub created_at: SystemTime,
    /// Whether it was asked to end.
    stopping: AtomicBool,
    exit: watch::Sender<Option<Exit>>,
    life: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Sandbox {
    /// Starts to build a sandbox; returns at once. A configuration that cannot be used is what the
    /// callers will hear. Without a pod the guest waits for [`Sandbox::configure`].
    pub fn launch(
        identity: Identity,
        config: Result<Config, ConfigError>,
        pod: Option<Pod>,
        origin: Origin,
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
            first: watch::Sender::new(None),
            host_pid: AtomicU32::new(0),
            pids: AtomicU32::new(0),
            containers: Mutex::default(),
            creating: Mutex::default(),
            began: Mutex::new(Some(origin.began)),
            stays: AtomicBool::new(false),
            created_at: SystemTime::now(),
            stopping: AtomicBool::new(false),
            exit: watch::Sender::new(None),
            life: tokio::sync::Mutex::default(),
        });
        let life = tokio::spawn(sandbox.clone().live(config, origin.spare));
        if let Ok(mut place) = sandbox.life.try_lock() {
            *place = Some(life);
        }
        sandbox
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

    /// Says what the sandbox is for; it then stays until it is shut down, with a container or without.
    pub fn configure(&self, pod: Pod) -> Result<(), SandboxError> {
        if self.pod.borrow().is_some() || self.stays.swap(true, Ordering::Relaxed) {
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

    /// What its first container sees of the host, for which containerd asks at once; nothing that is known by now of
    /// those of Kubernetes, which come later.
    fn first(&self, pod: Arc<Pod>) -> impl Future<Output = Option<First>> + use<> {
        let mut first = self.first.subscribe();
        async move {
            if pod.in_kubernetes {
                return None;
            }
            let known = first.wait_for(Option::is_some).await;
            known.ok().and_then(|known| known.clone())
        }
    }

    /// Whether there is no container, none is being made, and none is to be waited for.
    pub fn is_empty(&self) -> bool {
        !self.stays.load(Ordering::Relaxed)
            && lock(&self.creating).is_empty()
            && self.table().is_empty()
    }

    /// The ids of the containers, those that are being made too.
    pub fn ids(&self) -> Vec<String> {
        let making = lock(&self.creating).keys().cloned().collect::<Vec<_>>();
        self.table().keys().cloned().chain(making).collect()
    }

    /// The pid that stands for the sandbox's processes on the host: the VMM's, 0 before there is one.
    pub fn host_pid(&self) -> u32 {
        self.host_pid.load(Ordering::Relaxed)
    }

    /// Ends the VM: lets the guest write down what it holds, and then gives all of it back. A start
    /// that is under way is broken off.
    pub async fn shutdown(&self) {
        // Who asks again waits until it is over, too.
        let mut held = self.life.lock().await;
        let Some(life) = held.take() else { return };
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
        // Its containers' outputs are read meanwhile.
        if timeout(VMM_END + SETTLE, life).await.is_err() {
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
