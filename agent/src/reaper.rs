//! The one place that waits for processes: PID 1 inherits every orphan of the guest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::container::Process;
use crate::sys::lock;

/// An exit code as container engines count it: the code, or 128 + n after signal n.
pub type ExitCode = u32;

/// What is to happen when a process ends.
enum Watch {
    /// Tell whoever waits for a helper.
    Helper(oneshot::Sender<ExitCode>),
    /// Note the end of a container's process.
    Process(Arc<Process>),
}

/// Knows which processes matter. All others are reaped in silence.
#[derive(Default)]
pub struct Reaper(Mutex<HashMap<i32, Watch>>);

impl Reaper {
    /// Waits for a helper that was spawned in this very turn of the event loop: no exit is
    /// collected before the loop turns again, so none can be missed.
    pub fn watch_helper(&self, pid: u32) -> oneshot::Receiver<ExitCode> {
        let (tx, rx) = oneshot::channel();
        lock(&self.0).insert(key(pid), Watch::Helper(tx));
        rx
    }

    /// Notes the end of a container's process. It must be called while the helper that made the
    /// process still runs: until then the process is the helper's child, and can't be reaped here.
    pub fn watch_process(&self, pid: u32, process: Arc<Process>) {
        lock(&self.0).insert(key(pid), Watch::Process(process));
    }

    /// The handler of SIGCHLD; to be had before the first process is started.
    ///
    /// # Errors
    /// When the handler can't be installed.
    pub fn signals() -> std::io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Reaps for as long as the guest lives.
    pub async fn run(self: Arc<Self>, mut signals: Signal) {
        while signals.recv().await.is_some() {
            self.reap();
        }
    }

    /// Collects every process that has ended by now, in the order in which the kernel tells.
    pub fn reap(&self) {
        while let Some((pid, code)) = next_ended() {
            self.ended(pid, code);
        }
    }

    fn ended(&self, pid: i32, code: ExitCode) {
        let watch = lock(&self.0).remove(&pid);
        match watch {
            // The one who waited may have given up.
            Some(Watch::Helper(tx)) => drop(tx.send(code)),
            Some(Watch::Process(process)) => process.ended(code),
            None => {}
        }
    }
}

/// A process that has ended, if there is one. (nix's waitpid fails on real-time signals, when the
/// status is already taken from the kernel.)
fn next_ended() -> Option<(i32, ExitCode)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the status of the process.
        match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
            Ok(0) | Err(Errno::ECHILD) => return None,
            Ok(pid) => return Some((pid, exit_code(status))),
            Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("cannot collect ended processes: {error}");
                return None;
            }
        }
    }
}

/// The exit code in a wait status.
fn exit_code(status: i32) -> ExitCode {
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    code.unsigned_abs()
}

/// A process id as the kernel's interfaces hold it.
fn key(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(42 << 8), 42);
        assert_eq!(exit_code(255 << 8), 255);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(11 | 0x80), 139);
        assert_eq!(exit_code(64), 192);
    }
}
