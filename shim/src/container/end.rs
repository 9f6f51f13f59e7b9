//! How the processes of a container end: signals, the news of an end, and what is left when it is over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bulkhead_protocols::agent::SignalRequest;
use bulkhead_protocols::agent_ttrpc::AgentClient;
use futures::future::join_all;
use protobuf::MessageField;
use slog::{info, warn};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use ttrpc::Code;

use super::stdio::QUIET;
use super::{Container, ContainerError, Exit, NOT_STARTED, Process, Status};
use crate::guest::GuestError;
use crate::sys::lock;

/// The status of a process whose end nobody saw: its VM is gone. As after SIGKILL, never 0.
pub const LOST: u32 = 137;

/// The signal that no process outlives.
pub const SIGKILL: u32 = 9;

/// Signals that ask a process to end.
const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;

/// How long a process that is deleted may have output left that nobody reads.
const DRAIN: Duration = Duration::from_secs(5);

/// How long the news of a process's end waits for output that moves.
pub const SETTLE: Duration = Duration::from_secs(30);

/// How long a process may take to end after SIGKILL, under software emulation on a busy host.
pub const KILL_GRACE: Duration = Duration::from_secs(20);

/// How long the guest may take to deliver a signal, or to forget a process that is over.
const PROMPT: Duration = Duration::from_secs(10);

impl Container {
    /// Sends a signal to a process, or to all processes of the container.
    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<(), ContainerError> {
        let process = self.process(exec)?;
        if matches!(process.status(), Status::Stopped(_)) {
            // All that there were have got it, as runc has it.
            let none = all && exec.is_empty();
            return if none { Ok(()) } else { Err(ContainerError::Finished(process.name())) };
        }
        let Some(guest) = &self.guest else {
            self.end_sandbox(signal).await;
            return Ok(());
        };
        let request = SignalRequest {
            process: MessageField::some(process.key.clone()),
            signal,
            all,
            ..Default::default()
        };
        guest
            .call_within(PROMPT, async |agent, context| agent.signal(context, &request).await)
            .await?;
        Ok(())
    }

    /// Does what Kubernetes' `pause` does with a signal.
    async fn end_sandbox(&self, signal: u32) {
        match signal {
            SIGKILL => self.exited("", 128 + SIGKILL).await,
            SIGINT | SIGTERM => self.exited("", 0).await,
            _ => {}
        }
    }

    /// Forgets a process that is over, and with the first one the container. Returns how it ended.
    /// The guest is told, and has no say in it.
    pub async fn delete(&self, exec: &str) -> Result<Exit, ContainerError> {
        let process = self.process(exec)?;
        if exec.is_empty() && process.doom().await {
            // It waits in the guest for a start that will not come.
            match self.kill(exec, SIGKILL, false).await {
                Ok(())
                | Err(
                    ContainerError::Finished(_)
                    | ContainerError::Guest(GuestError::Refused { code: Code::NOT_FOUND, .. }),
                ) => {
                    let _ = timeout(KILL_GRACE, process.wait()).await;
                }
                Err(error) => warn!(self.log, "the guest does not end it: {error}"),
            }
        }
        let _turn = process.turn().await;
        if process.deleted.load(Ordering::Relaxed) {
            return Err(ContainerError::NotFound(process.name()));
        }
        let exit = match process.status() {
            Status::Stopped(exit) => exit,
            // Of an exec that never ran containerd's clients expect 0.
            Status::Created => {
                let status = if exec.is_empty() { NOT_STARTED } else { 0 };
                Exit { status, at: SystemTime::now() }
            }
            Status::Running => {
                let reason = "is running; it must be stopped before it is deleted";
                return Err(ContainerError::State { process: process.name(), reason });
            }
        };
        if let Some(streams) = process.streams() {
            streams.drain(DRAIN).await;
        }
        if let Some(guest) = &self.guest {
            let delete =
                async |agent: &AgentClient, context| agent.delete(context, &process.key).await;
            match guest.call_within(PROMPT, delete).await {
                // It is gone with its guest, or it never got as far as being known there.
                Ok(_)
                | Err(GuestError::Lost(_) | GuestError::Refused { code: Code::NOT_FOUND, .. }) => {}
                Err(error) => {
                    warn!(self.log, "the guest does not forget it: {error}"; "exec" => exec.to_owned());
                }
            }
        }
        process.set(Status::Stopped(exit));
        process.deleted.store(true, Ordering::Relaxed);
        if exec.is_empty() {
            // They ended with the container; whoever waits for them must hear of it.
            self.lose(&self.execs(|_| true)).await;
            let held = lock(&self.held).take();
            give_back(held).await;
            self.tell_deleted(exit);
        } else {
            self.forget(exec);
        }
        Ok(exit)
    }

    /// Takes note that a process has ended.
    pub async fn exited(&self, exec: &str, status: u32) {
        let Ok(process) = self.process(exec) else {
            return;
        };
        let _turn = process.turn().await;
        let exit = Exit {
            // Codes end at 255, whatever a guest says.
            status: status.min(255),
            at: SystemTime::now(),
        };
        match process.status() {
            Status::Stopped(_) => return,
            Status::Created if !exec.is_empty() => {
                // It never ran, which is nobody's news but of who waits for it.
                process.set(Status::Stopped(exit));
                return;
            }
            Status::Created | Status::Running => {}
        }
        if exec.is_empty() {
            self.execs_ended().await;
        }
        // A client may stop reading once it hears of the end: ctr does, whatever is left in the FIFO.
        if let Some(streams) = process.streams() {
            streams.settle(QUIET, SETTLE).await;
        }
        process.set(Status::Stopped(exit));
        if let (true, Some(streams)) = (exec.is_empty(), process.streams()) {
            streams.source_ended();
        }
        self.tell_exited(exec, exit);
        info!(self.log, "exited"; "exec" => exec.to_owned(), "status" => exit.status);
    }

    /// Waits for the news of its execs' ends, which containerd has before that of the first process. They end with it; what
    /// the guest does not tell of them is lost. One that is on its way waits for this end, and is not waited for.
    async fn execs_ended(&self) {
        let running = self.execs(|exec| exec.status() == Status::Running);
        let ended = join_all(running.iter().map(|exec| async {
            exec.wait().await;
            // The news is out when its turn is over.
            drop(exec.turn().await);
        }));
        if timeout(KILL_GRACE, ended).await.is_err() {
            self.lose(&running).await;
        }
    }

    /// Takes note that the VM is gone, and every process with it.
    pub async fn lost(&self) {
        self.lose(&self.execs(|_| true)).await;
        self.exited("", LOST).await;
    }

    fn execs(&self, which: impl Fn(&Process) -> bool) -> Vec<Arc<Process>> {
        lock(&self.execs).values().filter(|exec| which(exec)).cloned().collect()
    }

    /// Takes note that execs are over. All at once, since each may have to wait for its output.
    async fn lose(&self, execs: &[Arc<Process>]) {
        join_all(execs.iter().map(|exec| self.exited(&exec.key.exec, LOST))).await;
    }
}

/// Drops what a container has on the host, in a thread of its own: a file system whose last mount goes is written out.
pub(super) async fn give_back<T: Send + 'static>(held: T) {
    // Who is interrupted has given it back.
    let _ = spawn_blocking(move || drop(held)).await;
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use slog::Logger;

    use super::super::NewContainer;
    use super::super::stdio::StdioPaths;
    use super::*;
    use crate::events::Publisher;

    #[tokio::test]
    async fn of_two_deletes_one_finds_nothing() {
        let log = Logger::root(slog::Discard, slog::o!());
        let (publisher, _events) = Publisher::start("/nowhere".to_owned(), "ns".to_owned(), &log);
        let new = NewContainer {
            id: "c".to_owned(),
            bundle: PathBuf::new(),
            rootfs: Vec::new(),
            stdio: StdioPaths::default(),
        };
        let container = Container::sandbox(new, 7, publisher, &log);
        container.start("").await.expect("started");
        container.kill("", SIGKILL, false).await.expect("killed");
        let (one, other) = tokio::join!(container.delete(""), container.delete(""));
        assert_eq!(one.expect("deleted").status, 128 + SIGKILL);
        assert!(matches!(other, Err(ContainerError::NotFound(_))));
    }
}
