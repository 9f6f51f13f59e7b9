//! What the host can ask of containers: create, start, exec, delete.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bulkhead_protocols::agent::{CreateRequest, ExecRequest};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::console::Console;
use super::helper::{Helper, out_of_turn};
use super::process::State;
use super::{Container, Containers, Process, devices, id};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::oci;
use crate::oci::report::Report;
use crate::reaper::Reaper;
use crate::sandbox::{Shared, volume};
use crate::stdio::{Announced, ChildEnds};
use crate::streams::Streams;
use crate::sys;

/// All that a container's life touches in the guest.
pub struct Guest {
    /// Waits for processes.
    pub reaper: Arc<Reaper>,
    /// Tells the host.
    pub events: Arc<Events>,
    /// Carries stdio.
    pub streams: Arc<Streams>,
    /// What there is.
    pub containers: Containers,
    /// What they share.
    pub shared: Arc<Shared>,
}

impl Guest {
    /// Makes a container and stops short of running its process.
    ///
    /// # Errors
    /// What is wrong with the request or its spec; nothing is left of the container then.
    pub async fn create(&self, request: CreateRequest) -> Result<()> {
        id::check("container", &request.container)?;
        let container = Arc::new(Container::new(&request.container));
        self.containers.reserve(&container)?;
        let result = self.create_reserved(&container, request).await;
        if result.is_err() {
            // What went wrong first is what is told.
            let _ = container.cgroup().remove().await;
            let _ = self.forget(&container).await;
        }
        result
    }

    async fn create_reserved(
        &self,
        container: &Arc<Container>,
        request: CreateRequest,
    ) -> Result<()> {
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(container));
        let (mounts, directories) = (request.mounts, request.directories);
        let (own_mounts, volumes) = (request.own_mounts, request.volumes);
        let (submounts, disks) = (request.submounts, request.devices);
        let (huge_pages, spec) = (request.huge_pages, request.spec);
        let spec = aside(move || {
            shared.mount(&mounts)?;
            own.enter(&shared.submounts, submounts);
            own.ground.make(&directories, &own_mounts)?;
            volumes.iter().try_for_each(volume::copy)?;
            own.ground.reserve(huge_pages)?;
            if disks.is_empty() {
                return Ok(spec);
            }
            let (spec, nodes) = devices::renumber(&spec, &disks)?;
            own.ground.add_disks(nodes);
            Ok(spec)
        })
        .await?;
        container.sockets.listen(&request.sockets)?;
        let pid_namespace = match request.pid_namespace.as_ref() {
            Some(whose) => self.pid_namespace(&whose.container)?,
            None => String::new(),
        };
        let announced = Announced::new(&self.streams, &request.stdio)?;
        let bundle = container.bundle();
        fs::create_dir_all(&bundle).map_err(|error| Error::io("cannot make the bundle", error))?;
        write(&bundle.join(oci::SPEC), &spec)?;
        drop(spec);

        let process =
            Process::new(Arc::clone(container), "", Arc::clone(&self.events), State::Starting);
        let arguments = ["create", container.id(), &pid_namespace];
        let helper = limited(self.make(&process, announced, &arguments)).await?;
        process.enter(State::Created(helper));
        self.containers.add(&process)?;
        container.watch_memory(&self.events);
        Ok(())
    }

    /// The PID namespace of a container, or of the sandbox for an empty name.
    fn pid_namespace(&self, whose: &str) -> Result<String> {
        let pid = if whose.is_empty() {
            self.shared.first_process()?
        } else {
            let first = self.running(whose)?;
            first
                .pid()
                .ok_or_else(|| Error::Internal(format!("{} has no process", first.name())))?
        };
        Ok(format!("/proc/{pid}/ns/pid"))
    }

    /// Has a helper make a process, and takes it over.
    async fn make(
        &self,
        process: &Arc<Process>,
        mut announced: Announced,
        arguments: &[&str],
    ) -> Result<Helper> {
        let console = announced.terminal().then(Console::new).transpose()?;
        let (ends, mut copying) = announced.connect()?;
        let path = console.as_ref().map_or("", Console::path);
        let mut helper = Helper::spawn(&self.reaper, &[arguments, &[path]].concat(), ends)?;
        loop {
            match helper.made().await? {
                Report::Terminal { uid } => {
                    let console = console.as_ref().ok_or_else(|| {
                        Error::Internal("a terminal came that no one has asked for".to_owned())
                    })?;
                    copying.attach(&mut announced, console.master().await?, uid)?;
                    helper.release().await?;
                }
                Report::Pid(pid) => {
                    process.attach(pid, copying);
                    self.reaper.watch_process(pid, Arc::clone(process));
                    helper.release().await?;
                    return Ok(helper);
                }
                Report::Done | Report::Cause(_) | Report::Failed(_) => return Err(out_of_turn()),
            }
        }
    }

    /// Prepares another process in a running container.
    ///
    /// # Errors
    /// What is wrong with the request, or that the container does not run.
    pub fn exec(&self, request: &ExecRequest) -> Result<()> {
        let name = request.process.get_or_default();
        id::check("exec", &name.exec)?;
        let first = self.running(&name.container)?;
        let container = first.container();
        let announced = Announced::new(&self.streams, &request.stdio)?;
        let process = Process::new(
            Arc::clone(container),
            &name.exec,
            Arc::clone(&self.events),
            State::Prepared(announced),
        );
        self.containers.add(&process)?;
        let directory = process.directory();
        let written = fs::create_dir_all(&directory)
            .map_err(|error| Error::io("cannot keep the exec's spec", error))
            .and_then(|()| write(&directory.join(oci::PROCESS), &request.spec));
        if written.is_err() {
            self.containers.remove_process(&process);
        }
        written
    }

    /// Runs what was created or prepared, and returns when its program does run.
    ///
    /// # Errors
    /// Why the program can't be executed; the process has ended then.
    pub async fn start(&self, process: &Arc<Process>) -> Result<()> {
        let result = match process.begin_start()? {
            State::Prepared(announced) => self.start_exec(process, announced).await,
            State::Created(helper) => start_first(process, helper).await,
            State::Starting | State::Running | State::Stopped => return Ok(()),
        };
        match &result {
            Ok(()) => process.enter(State::Running),
            // It was gone by then, which is an end to tell like any other.
            Err(Error::FailedPrecondition(_)) if process.is_first() => {
                process.enter(State::Running);
            }
            Err(_) => process.start_failed(),
        }
        result
    }

    async fn start_exec(&self, process: &Arc<Process>, announced: Announced) -> Result<()> {
        let container = process.container();
        let _on_its_way = container.starting.read().await;
        if container.is_paused() {
            return Err(Error::FailedPrecondition(format!(
                "container {} is paused",
                container.id()
            )));
        }
        let arguments = ["exec", container.id(), process.exec()];
        let started = async { self.make(process, announced, &arguments).await?.executed().await };
        // Without its container it fails in many ways, which all come of that.
        limited(started).await.map_err(|error| self.running(container.id()).err().unwrap_or(error))
    }

    /// The first process of a container, which has to run.
    fn running(&self, id: &str) -> Result<Arc<Process>> {
        let first = self.containers.process(id, "")?;
        // One that has just ended is not collected yet.
        let ended = || first.pid().is_none_or(|pid| !sys::is_alive(pid));
        if first.is_running() && !ended() {
            return Ok(first);
        }
        let text = format!("{} does not run", first.name());
        Err(Error::FailedPrecondition(text))
    }

    /// Freezes or thaws a container.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if it does not run, or is frozen or not already.
    pub async fn set_paused(&self, id: &str, paused: bool) -> Result<()> {
        let first = self.running(id)?;
        let container = first.container();
        if container.is_paused() == paused {
            let state = if paused { "paused already" } else { "not paused" };
            return Err(Error::FailedPrecondition(format!("{} is {state}", first.name())));
        }
        container.set_paused(paused).await
    }

    /// Changes the limits of a container; `resources` is the OCI runtime specification's
    /// `linux.resources`, in JSON.
    ///
    /// # Errors
    /// What is wrong with the resources, or what the kernel says to them.
    pub async fn update(&self, container: &Container, resources: &[u8]) -> Result<()> {
        let _turn = container.updating.lock().await;
        write(&container.bundle().join(oci::RESOURCES), resources)?;
        let ends = ChildEnds::default();
        Helper::spawn(&self.reaper, &["update", container.id()], ends)?.done().await
    }

    /// Forgets a process; with the first one, the whole container.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] while it runs.
    pub async fn delete(&self, process: &Arc<Process>) -> Result<()> {
        if !process.is_idle() {
            return Err(Error::FailedPrecondition(format!("{} still runs", process.name())));
        }
        if !process.is_first() {
            self.containers.remove_process(process);
            // The directory goes with the container if it can't go now.
            let _ = fs::remove_dir_all(process.directory());
            return Ok(());
        }
        let container = process.container();
        container.cgroup().remove().await?;
        self.forget(container).await
    }

    /// Removes what a container has left. What was mounted may be written out first, which takes its time.
    async fn forget(&self, container: &Arc<Container>) -> Result<()> {
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(container));
        let removed = aside(move || {
            own.remove_files(&shared.submounts);
            forget_unused_files();
            Ok(())
        });
        let removed = removed.await;
        self.containers.remove_container(container.id());
        removed
    }
}

/// Makes a process. libcontainer only misses it where the kernel has killed it for want of memory.
async fn limited<T>(making: impl Future<Output = Result<T>>) -> Result<T> {
    let kills = || Cgroup::of_all().oom_kills();
    let before = kills();
    match making.await {
        Err(Error::Internal(_)) if kills() > before => Err(Error::FailedPrecondition(
            "no process can begin within the container's memory limit (linux.resources.memory.limit)"
                .to_owned(),
        )),
        made => made,
    }
}

/// Lets a created container's process go on to its program.
async fn start_first(process: &Process, helper: Helper) -> Result<()> {
    let socket = process.container().state().join(oci::START_SOCKET);
    // It listens for as long as it waits.
    let failed = |_| Error::FailedPrecondition(format!("{} has ended", process.name()));
    let mut socket = UnixStream::connect(socket).await.map_err(failed)?;
    // libcontainer waits for the end of what is written here, whatever it is.
    socket.write_all(b"start").await.map_err(failed)?;
    drop(socket);
    helper.executed().await
}

/// Makes the kernel forget files that no one uses any more. virtiofsd keeps a descriptor on the host
/// for each file that the guest remembers, and with that the host could not unmount the root file
/// system of a container that is gone.
fn forget_unused_files() {
    /// Dentries and inodes (2), without a line in the kernel's log (4).
    const UNUSED_FILES: &str = "6";
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", UNUSED_FILES) {
        log::warn!("cannot make the kernel forget unused files: {error}");
    }
}

/// Does what waits for the host's file server in a thread of its own: the agent has others to answer.
///
/// # Errors
/// Those of `work`.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::io("the work was interrupted", error)))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .map_err(|error| Error::io(format_args!("cannot write {}", path.display()), error))
}
