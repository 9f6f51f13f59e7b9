//! Processes, named so that a reused id is never taken for the one that had it before.

use std::fmt;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process::{Process, pidfd, start_time, wait_until};

/// A process for good: its id and when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// What it is in the sandbox.
    pub role: String,
    /// Its process id on the host.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot.
    pub start_time: u64,
}

impl ProcessId {
    /// This very process.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn own(role: &str) -> io::Result<ProcessId> {
        let pid = std::process::id();
        Ok(ProcessId { role: role.to_owned(), pid, start_time: start_time(pid)? })
    }

    /// Whether it is there. One that has ended and was not waited for is not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.is_same() && !is_zombie(self.pid)
    }

    /// Waits for its end, at most this long. Returns whether it has ended.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> bool {
        let Ok(handle) = pidfd(self.pid) else {
            return true;
        };
        let deadline = Instant::now() + at_most;
        !self.is_same() || wait_until(&handle, deadline).unwrap_or(false)
    }

    /// Whether the process that has the id now is still this one.
    #[must_use]
    pub(super) fn is_same(&self) -> bool {
        start_time(self.pid).is_ok_and(|now| now == self.start_time)
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may hold parentheses itself (proc_pid_stat(5)).
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.role, self.pid)
    }
}

impl From<Process> for ProcessId {
    fn from(process: Process) -> Self {
        ProcessId {
            role: process.role.to_owned(),
            pid: process.pid,
            start_time: process.start_time,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ends() {
        let mut child = Command::new("sleep").arg("100").spawn().expect("spawn");
        let pid = child.id();
        let started = start_time(pid).expect("stat");
        let process = ProcessId { role: "x".to_owned(), pid, start_time: started };
        assert!(process.is_alive());
        let reused = ProcessId { start_time: started + 1, ..process.clone() };
        assert!(!reused.is_alive());
        child.kill().expect("kill");
        // Not waited for yet: a zombie as soon as the kernel has come round to it.
        while process.is_alive() {
            std::thread::yield_now();
        }
        assert!(process.is_same());
        child.wait().expect("wait");
        assert!(!process.is_same());
    }

    #[test]
    fn we_are_alive() {
        assert!(ProcessId::own("test").expect("stat").is_alive());
    }
}
