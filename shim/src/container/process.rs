//! One process of a container, the first one or an exec, and its states.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bulkhead_protocols::agent::{self, ProcessRef};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::timeout;

use super::stdio::{StdioPaths, Streams};

/// Longer than a guest that is well takes to start a process.
const START: Duration = Duration::from_secs(2);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + n after signal n.
    pub status: u32,
    /// When the host heard of it.
    pub at: SystemTime,
}

/// Where a process is in its life. It only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Prepared, not running.
    Created,
    /// Running.
    Running,
    /// Over.
    Stopped(Exit),
}

/// A process that the agent knows too.
pub struct Process {
    /// Its name in both worlds; a container's first process has an empty exec.
    pub key: ProcessRef,
    /// What containerd named as its stdio.
    pub stdio: StdioPaths,
    /// What the agent knows of its stdio before that is joined.
    pub announced: OnceLock<agent::Stdio>,
    streams: OnceLock<Streams>,
    stdin_closed: AtomicBool,
    status: watch::Sender<Status>,
    turn: Mutex<()>,
    ending: AtomicBool,
    /// Whether it is never to start.
    pub doomed: AtomicBool,
    /// Whether it was deleted, which happens once.
    pub deleted: AtomicBool,
}

impl Process {
    /// A process in the state `Created`.
    pub fn new(container: &str, exec: &str, stdio: StdioPaths) -> Self {
        Self {
            key: ProcessRef {
                container: container.to_owned(),
                exec: exec.to_owned(),
                ..Default::default()
            },
            stdio,
            announced: OnceLock::new(),
            streams: OnceLock::new(),
            stdin_closed: AtomicBool::new(false),
            status: watch::Sender::new(Status::Created),
            turn: Mutex::new(()),
            ending: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
        }
    }

    /// How messages call it.
    pub fn name(&self) -> String {
        if self.key.exec.is_empty() {
            format!("container {}", self.key.container)
        } else {
            format!("exec {} of container {}", self.key.exec, self.key.container)
        }
    }

    /// Where it is now.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Moves it; `Stopped` is final.
    pub fn set(&self, status: Status) {
        self.status.send_if_modified(|current| {
            let moves = !matches!(current, Status::Stopped(_)) && *current != status;
            if moves {
                *current = status;
            }
            moves
        });
    }

    /// Whether this is the first word of its end. A guest may say it as often as it likes.
    pub fn ends_now(&self) -> bool {
        !self.ending.swap(true, Ordering::Relaxed)
    }

    /// Has it never start, unless it has; says which. A start that is under way comes first, if it takes no longer than
    /// one does.
    pub async fn doom(&self) -> bool {
        let _turn = timeout(START, self.turn()).await;
        let waits = self.status() == Status::Created;
        self.doomed.fetch_or(waits, Ordering::Relaxed);
        waits
    }

    /// Returns once it is over.
    pub async fn wait(&self) -> Exit {
        let mut status = self.status.subscribe();
        let over = |status: &Status| matches!(status, Status::Stopped(_));
        match status.wait_for(over).await.as_deref() {
            Ok(Status::Stopped(exit)) => *exit,
            // The sender is in `self`, so this is never reached while someone waits.
            _ => Exit { status: super::LOST, at: SystemTime::now() },
        }
    }

    /// Start, delete and the news of its end happen one after another: an event that containerd
    /// gets never overtakes an earlier one.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Attaches the copies of its stdio; once.
    pub fn attach(&self, streams: Streams) {
        // A second call would drop the new streams, which ends them.
        let _ = self.streams.set(streams);
        if self.stdin_closed.load(Ordering::SeqCst) {
            self.close_stdin();
        }
    }

    /// Ends its stdin once the clients that have it open have ended theirs; a client may be so quick that it is not even
    /// joined yet.
    pub fn close_stdin(&self) {
        self.stdin_closed.store(true, Ordering::SeqCst);
        if let Some(streams) = self.streams() {
            streams.close_stdin();
        }
    }

    /// The copies of its stdio, if any run.
    pub fn streams(&self) -> Option<&Streams> {
        self.streams.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_counts_and_everyone_hears_of_it() {
        let process = std::sync::Arc::new(Process::new("c", "", StdioPaths::default()));
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let process = process.clone();
                tokio::spawn(async move { process.wait().await.status })
            })
            .collect();
        tokio::task::yield_now().await;
        process.set(Status::Running);
        process.set(Status::Stopped(Exit { status: 3, at: SystemTime::now() }));
        process.set(Status::Stopped(Exit { status: 137, at: SystemTime::now() }));
        process.set(Status::Running);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), 3);
        }
        assert!(matches!(process.status(), Status::Stopped(Exit { status: 3, .. })));
    }
}
