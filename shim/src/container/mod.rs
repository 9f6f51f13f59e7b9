//! A container in the guest, with its processes, as the task API sees it.

pub mod devices;
mod end;
mod error;
mod hugepages;
mod mounts;
mod namespaces;
mod notices;
mod process;
mod refuse;
pub mod scratch;
mod shm;
mod sockets;
pub mod spec;
pub mod stdio;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bulkhead_protocols::agent::{
    ContainerRef, ExecRequest, ResizeRequest, StatsResponse, UpdateRequest,
};
use bulkhead_protocols::agent_ttrpc::AgentClient;
use containerd_shim_protos::api::Mount;
use protobuf::MessageField;
use slog::{Logger, info};
use ttrpc::Code;

use crate::events::Publisher;
use crate::guest::{Guest, GuestError};
use crate::storage::share::ContainerTree;
use crate::sys::lock;

use end::give_back;
pub use end::{KILL_GRACE, LOST, SETTLE, SIGKILL};
pub use error::{ContainerError, SpecError};
pub use mounts::Surroundings;
pub use namespaces::Neighbours;
pub use process::{Exit, Process, Status};
use sockets::Forwarding;
use spec::GuestSpec;
use stdio::{Prepared, StdioPaths};

/// The status of a process that could not be started.
const NOT_STARTED: u32 = 255;

/// How long the list of processes may take: containerd asks for it while it starts.
const LIST: Duration = Duration::from_secs(2);

/// More processes than these are not listed.
const LISTED: usize = 4096;

/// The least time between two notices that a container is out of memory.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// What containerd's Create says.
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// containerd's directory for it.
    pub bundle: PathBuf,
    /// What the snapshotter gave.
    pub rootfs: Vec<Mount>,
    /// The stdio of its first process.
    pub stdio: StdioPaths,
}

/// One container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// containerd's directory for it.
    pub bundle: PathBuf,
    /// The number that stands for its processes on the host.
    pub host_pid: u32,
    /// None for the one that stands for its pod: its namespaces are the guest's own, and nothing is to be run.
    guest: Option<Guest>,
    publisher: Publisher,
    log: Logger,
    paused: AtomicBool,
    /// What it has on the host.
    held: Mutex<Option<(ContainerTree, Vec<Forwarding>)>>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    last_oom: Mutex<Option<Instant>>,
}

impl Container {
    fn new(
        new: NewContainer,
        guest: Option<Guest>,
        host_pid: u32,
        publisher: Publisher,
        log: &Logger,
    ) -> Self {
        Self {
            host_pid,
            guest,
            publisher,
            log: log.new(slog::o!("container" => new.id.clone())),
            paused: AtomicBool::new(false),
            held: Mutex::default(),
            init: Arc::new(Process::new(&new.id, "", new.stdio)),
            execs: Mutex::default(),
            last_oom: Mutex::default(),
            id: new.id,
            bundle: new.bundle,
        }
    }

    /// The container that stands for its pod: it has states and events, and nothing in the guest.
    pub fn sandbox(
        mut new: NewContainer,
        host_pid: u32,
        publisher: Publisher,
        log: &Logger,
    ) -> Self {
        let rootfs = std::mem::take(&mut new.rootfs);
        let container = Self::new(new, None, host_pid, publisher, log);
        container.tell_created(rootfs);
        container
    }

    /// Makes the container in the guest, from the spec for the guest. `host_pid` stands for its
    /// processes on the host.
    pub async fn create(
        mut new: NewContainer,
        spec: GuestSpec,
        tree: ContainerTree,
        guest: Guest,
        host_pid: u32,
        publisher: Publisher,
        log: &Logger,
    ) -> Result<Self, ContainerError> {
        let rootfs = std::mem::take(&mut new.rootfs);
        let container = Self::new(new, Some(guest.clone()), host_pid, publisher, log);
        let init = &container.init;
        let GuestSpec { mut request, sockets, .. } = spec;
        let made = async {
            let numbers = stdio::numbers(&init.stdio, &guest);
            let stdio = Prepared::open(&init.stdio, &numbers)?;
            request.stdio = MessageField::some(numbers);
            guest.call(async |agent, context| agent.create(context, &request).await).await?;
            Ok::<_, ContainerError>(connect(stdio, init, &guest).await?)
        };
        if let Err(error) = made.await {
            give_back(tree).await;
            return Err(error);
        }
        let forwarded = |socket| Forwarding::start(socket, &container.id, &guest, &container.log);
        let sockets = sockets.into_iter().map(forwarded).collect();
        *lock(&container.held) = Some((tree, sockets));
        container.tell_created(rootfs);
        Ok(container)
    }

    fn guest(&self) -> Result<&Guest, ContainerError> {
        self.guest.as_ref().ok_or_else(|| ContainerError::Sandbox(self.id.clone()))
    }

    /// The first process for an empty `exec`, else the exec of that id.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, ContainerError> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let execs = lock(&self.execs);
        execs.get(exec).cloned().ok_or_else(|| {
            ContainerError::NotFound(format!("exec {exec} of container {}", self.id))
        })
    }

    /// Whether it is frozen.
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Runs a prepared process.
    pub async fn start(&self, exec: &str) -> Result<(), ContainerError> {
        let process = self.process(exec)?;
        let _turn = process.turn().await;
        let state = |reason| ContainerError::State { process: process.name(), reason };
        match process.status() {
            Status::Created => {}
            Status::Running => return Err(state("is running already")),
            Status::Stopped(_) => return Err(state("has ended; it cannot be started again")),
        }
        if process.doomed.load(Ordering::Relaxed) {
            return Err(state("is being deleted"));
        }
        if !exec.is_empty() && self.init.status() != Status::Running {
            return Err(state("cannot start: its container is not running"));
        }
        let begun = tokio::select! {
            begun = self.begin(&process) => begun,
            // Whoever ends the container waits for this turn.
            _ = self.init.wait(), if !exec.is_empty() => Err(state("cannot start: its container has ended")),
        };
        if let Err(error) = begun {
            // Only what the guest has refused is known not to run. Of a first process that is over already the end is told.
            if let ContainerError::Guest(GuestError::Refused { code, .. }) = &error
                && !(exec.is_empty() && *code == Code::FAILED_PRECONDITION)
            {
                let exit = Exit { status: NOT_STARTED, at: SystemTime::now() };
                process.set(Status::Stopped(exit));
                if exec.is_empty() {
                    self.tell_exited(exec, exit);
                }
            }
            return Err(error);
        }
        process.set(Status::Running);
        self.tell_started(exec);
        info!(self.log, "started"; "exec" => exec.to_owned());
        Ok(())
    }

    /// Has the guest run it.
    async fn begin(&self, process: &Process) -> Result<(), ContainerError> {
        let Some(guest) = &self.guest else { return Ok(()) };
        if let Some(numbers) = process.announced.get() {
            // Not before: a client may close its end at once, and ctr tells of that only once the exec is there.
            let stdio = Prepared::open(&process.stdio, numbers)?;
            process.attach(stdio.connect(guest).await?);
        }
        guest.call(async |agent, context| agent.start(context, &process.key).await).await?;
        Ok(())
    }

    /// Prepares another process.
    pub async fn exec(
        &self,
        exec: &str,
        process: Vec<u8>,
        stdio: StdioPaths,
    ) -> Result<(), ContainerError> {
        let process = spec::exec_for_guest(process)?;
        let new = Arc::new(Process::new(&self.id, exec, stdio));
        let state = |reason| Err(ContainerError::State { process: new.name(), reason });
        if self.init.status() != Status::Running {
            return state("cannot be added: its container is not running");
        }
        if self.paused() {
            return state("cannot be added: its container is paused");
        }
        {
            let mut execs = lock(&self.execs);
            if execs.contains_key(exec) {
                return Err(ContainerError::Exists(new.name()));
            }
            execs.insert(exec.to_owned(), new.clone());
        }
        if let Err(error) = self.prepare_exec(&new, process).await {
            self.forget(exec);
            return Err(error);
        }
        self.tell_exec_added(exec);
        Ok(())
    }

    async fn prepare_exec(&self, new: &Process, process: Vec<u8>) -> Result<(), ContainerError> {
        let guest = self.guest()?;
        let numbers = new.announced.get_or_init(|| stdio::numbers(&new.stdio, guest)).clone();
        let request = ExecRequest {
            process: MessageField::some(new.key.clone()),
            spec: process,
            stdio: MessageField::some(numbers),
            ..Default::default()
        };
        guest.call(async |agent, context| agent.exec(context, &request).await).await?;
        Ok(())
    }

    /// Takes note that the kernel killed a process for want of memory; at most once a second.
    pub fn out_of_memory(&self) {
        let now = Instant::now();
        let mut last = lock(&self.last_oom);
        if last.is_some_and(|last| now.duration_since(last) < OOM_INTERVAL) {
            return;
        }
        *last = Some(now);
        self.tell_out_of_memory();
        info!(self.log, "out of memory");
    }

    /// Sets the size of a terminal, in characters.
    pub async fn resize(&self, exec: &str, width: u32, height: u32) -> Result<(), ContainerError> {
        let process = self.process(exec)?;
        let request = ResizeRequest {
            process: MessageField::some(process.key.clone()),
            width,
            height,
            ..Default::default()
        };
        self.guest()?.call(async |agent, context| agent.resize(context, &request).await).await?;
        Ok(())
    }

    /// Freezes it.
    pub async fn pause(&self) -> Result<(), ContainerError> {
        let container = self.reference();
        self.guest()?.call(async |agent, context| agent.pause(context, &container).await).await?;
        self.paused.store(true, Ordering::Relaxed);
        self.tell_paused();
        Ok(())
    }

    /// Thaws it.
    pub async fn resume(&self) -> Result<(), ContainerError> {
        let container = self.reference();
        self.guest()?.call(async |agent, context| agent.resume(context, &container).await).await?;
        self.paused.store(false, Ordering::Relaxed);
        self.tell_resumed();
        Ok(())
    }

    /// Its processes, as the guest numbers them, with the id of those that are execs; where the guest does not say, the one
    /// that stands for them on the host. containerd takes a container without processes for one that is lost.
    pub async fn pids(&self) -> Vec<(u32, Option<String>)> {
        let container = self.reference();
        let answer = match &self.guest {
            Some(guest) => {
                let list =
                    async |agent: &AgentClient, context| agent.pids(context, &container).await;
                guest.call_within(LIST, list).await.ok()
            }
            None => None,
        };
        match answer {
            Some(mut answer) if !answer.pids.is_empty() => {
                answer.pids.truncate(LISTED);
                let execs = lock(&self.execs);
                let exec = |pid| answer.execs.get(pid).filter(|exec| execs.contains_key(*exec));
                answer.pids.iter().map(|pid| (*pid, exec(pid).cloned())).collect()
            }
            _ => vec![(self.host_pid, None)],
        }
    }

    /// What it uses.
    pub async fn stats(&self) -> Result<StatsResponse, ContainerError> {
        match &self.guest {
            Some(guest) => Ok(guest.stats(&self.id).await?),
            None => Ok(StatsResponse::default()),
        }
    }

    /// Changes its limits; `resources` is an OCI `linux.resources` object.
    pub async fn update(&self, resources: Vec<u8>) -> Result<(), ContainerError> {
        if matches!(self.init.status(), Status::Stopped(_)) {
            return Err(ContainerError::Finished(self.init.name()));
        }
        spec::check_update(&resources)?;
        let request = UpdateRequest { container: self.id.clone(), resources, ..Default::default() };
        self.guest()?.call(async |agent, context| agent.update(context, &request).await).await?;
        Ok(())
    }

    fn reference(&self) -> ContainerRef {
        ContainerRef { container: self.id.clone(), ..Default::default() }
    }

    fn forget(&self, exec: &str) {
        lock(&self.execs).remove(exec);
    }
}

/// Joins the stdio of a process that the guest has made. Where that fails, the guest forgets it again.
async fn connect(stdio: Prepared, process: &Process, guest: &Guest) -> Result<(), GuestError> {
    let connected = stdio.connect(guest).await.map(|s| process.attach(s));
    if connected.is_err() {
        let _ = guest.call(async |agent, context| agent.delete(context, &process.key).await).await;
    }
    connected
}
