//! One process of a container, and the states that it passes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_protocols::agent::ProcessRef;
use nix::errno::Errno;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::helper::Helper;
use super::{Container, ground};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::oci;
use crate::reaper::ExitCode;
use crate::stdio::{Announced, Copying};
use crate::sys::lock;

/// How long the end of a container waits for its disk: less than the host waits for the end of what it has killed.
const SYNC: Duration = Duration::from_secs(10);

/// Where a process is in its life. It only goes forward.
pub enum State {
    /// An exec that is known, and nothing more.
    Prepared(Announced),
    /// A container's first process, at the point where it would execute its program.
    Created(Helper),
    /// Between the call and the program.
    Starting,
    /// The program runs.
    Running,
    /// It has ended, or could not be started at all.
    Stopped,
}

/// A process that the host asked for: a container's first one, or an exec.
pub struct Process {
    container: Arc<Container>,
    /// Empty for the first process.
    exec: String,
    events: Arc<Events>,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    pid: Option<u32>,
    copying: Copying,
    /// The end of a process that is not known to have started yet.
    early_exit: Option<ExitCode>,
}

impl Process {
    /// A process in its first state.
    pub fn new(
        container: Arc<Container>,
        exec: &str,
        events: Arc<Events>,
        state: State,
    ) -> Arc<Self> {
        Arc::new(Self {
            container,
            exec: exec.to_owned(),
            events,
            inner: Mutex::new(Inner {
                state,
                pid: None,
                copying: Copying::default(),
                early_exit: None,
            }),
        })
    }

    /// The container that the process belongs to.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// The name of the exec; empty for a container's first process.
    pub fn exec(&self) -> &str {
        &self.exec
    }

    /// Whether the process is the container's first one.
    pub fn is_first(&self) -> bool {
        self.exec.is_empty()
    }

    /// What to call the process in a message.
    pub fn name(&self) -> String {
        if self.is_first() {
            format!("container {}", self.container.id())
        } else {
            format!("exec {} of container {}", self.exec, self.container.id())
        }
    }

    /// Whether the program runs.
    pub fn is_running(&self) -> bool {
        matches!(lock(&self.inner).state, State::Running)
    }

    /// Whether the process has no program, be it not yet or no longer.
    pub fn is_idle(&self) -> bool {
        let state = &lock(&self.inner).state;
        matches!(state, State::Prepared(_) | State::Created(_) | State::Stopped)
    }

    /// The directory of an exec inside the container's bundle.
    pub fn directory(&self) -> PathBuf {
        self.container.bundle().join(oci::EXECS).join(&self.exec)
    }

    /// The process as the guest numbers it, once it is there.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.inner).pid
    }

    /// The process is there, with its stdio.
    pub fn attach(&self, pid: u32, copying: Copying) {
        let mut inner = lock(&self.inner);
        inner.pid = Some(pid);
        inner.copying = copying;
    }

    /// It is in another state, unless it has ended meanwhile: the first process waits at its program, or a program runs.
    pub fn enter(&self, state: State) {
        let exit = {
            let mut inner = lock(&self.inner);
            inner.state = state;
            inner.early_exit.take()
        };
        if let Some(code) = exit {
            self.ended(code);
        }
    }

    /// Takes what the start needs, once.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if the process was started already.
    pub fn begin_start(&self) -> Result<State> {
        let mut inner = lock(&self.inner);
        match std::mem::replace(&mut inner.state, State::Starting) {
            ready @ (State::Prepared(_) | State::Created(_)) => Ok(ready),
            State::Stopped => {
                inner.state = State::Stopped;
                Err(Error::FailedPrecondition(format!("{} has ended", self.name())))
            }
            other @ (State::Starting | State::Running) => {
                inner.state = other;
                Err(Error::FailedPrecondition(format!("{} was started already", self.name())))
            }
        }
    }

    /// The program could not be executed. What never ran has no exit to report.
    pub fn start_failed(&self) {
        let mut inner = lock(&self.inner);
        inner.state = State::Stopped;
        inner.copying.process_ended();
    }

    /// Called by the reaper: the process is gone.
    pub fn ended(&self, code: ExitCode) {
        {
            let mut inner = lock(&self.inner);
            match inner.state {
                State::Starting => {
                    inner.early_exit = Some(code);
                    return;
                }
                State::Stopped => return,
                State::Prepared(_) | State::Created(_) | State::Running => {}
            }
            inner.state = State::Stopped;
            inner.copying.process_ended();
        }
        self.container.report_oom(&self.events);
        if self.is_first() {
            // Without a PID namespace of its own the container's other processes live on; their
            // life ends with the first one's, as runc's shim has it.
            self.container.cgroup().kill_if_populated();
            let disks = self.container.ground.disks();
            if !disks.is_empty() {
                // Who hears of the end may take the disk away.
                let (events, name) = (Arc::clone(&self.events), self.to_wire());
                tokio::spawn(async move {
                    let synced =
                        spawn_blocking(move || disks.iter().for_each(|one| ground::sync(one)));
                    if timeout(SYNC, synced).await.is_err() {
                        log::warn!("{} ends before its disk has all of it", name.container);
                    }
                    events.exit(name, code);
                });
                return;
            }
        }
        self.events.exit(self.to_wire(), code);
    }

    /// Sends a signal to the process alone.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has ended, [`Error::FailedPrecondition`] if it is not there yet.
    pub fn signal(&self, signal: i32) -> Result<()> {
        // Nothing is collected meanwhile: the agent has one thread. What has been is known to have ended.
        let inner = lock(&self.inner);
        let pid = match (&inner.state, inner.early_exit, inner.pid) {
            (State::Stopped, ..) | (_, Some(_), _) => {
                return Err(Error::NotFound(format!("{} has ended", self.name())));
            }
            (_, None, Some(pid)) => pid,
            (_, None, None) => {
                return Err(Error::FailedPrecondition(format!(
                    "{} was not started yet",
                    self.name()
                )));
            }
        };
        match send_signal(pid, signal) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(Error::NotFound(format!("{} has ended", self.name()))),
            Err(error) => Err(Error::io(format_args!("cannot signal {}", self.name()), error)),
        }
    }

    /// Sends a signal to the process alone, or to every process of its container; 0 is none, and asks whether it is there.
    /// An exec is always alone, as with runc's shim. One that waits for its start has no handlers, and would not hear of
    /// what ends others.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such signal, and those of [`Process::signal`].
    pub fn signal_as_asked(&self, signal: u32, all: bool) -> Result<()> {
        let number = i32::try_from(signal)
            .ok()
            .filter(|number| (0..=libc::SIGRTMAX()).contains(number))
            .ok_or_else(|| Error::InvalidArgument(format!("there is no signal {signal}")))?;
        let waits = matches!(lock(&self.inner).state, State::Created(_));
        if waits && !HARMLESS.contains(&number) {
            return self.signal(libc::SIGKILL);
        }
        if !all || !self.is_first() {
            return self.signal(number);
        }
        self.container.signal_all(number)
    }

    /// Sets the size of the process's terminal.
    ///
    /// # Errors
    /// What the kernel says. Without a terminal nothing happens.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        lock(&self.inner).copying.resize(width, height)
    }

    fn to_wire(&self) -> ProcessRef {
        ProcessRef {
            container: self.container.id().to_owned(),
            exec: self.exec.clone(),
            ..Default::default()
        }
    }
}

/// What ends no process that has no handler for it (signal(7)), and no signal at all.
const HARMLESS: [i32; 9] = [
    0,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
];

/// kill(2), with the signals that nix does not know: the real-time ones.
pub fn send_signal(pid: u32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill(2) takes any two numbers, and does nothing to this process's memory.
    Errno::result(unsafe { libc::kill(pid.cast_signed(), signal) }).map(drop)
}
