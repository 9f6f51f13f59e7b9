//! Processes of the host, named so that a reused id is never taken for the one that had it before.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

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
        Self::of(role, std::process::id())
    }

    /// The process that has this id now.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn of(role: &str, pid: u32) -> io::Result<ProcessId> {
        Ok(ProcessId { role: role.to_owned(), pid, start_time: start_time(pid)? })
    }

    /// Whether it is there. One that has ended and was not waited for is not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_ok_and(|(state, start)| start == self.start_time && !"ZX".contains(state))
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
    pub(crate) fn is_same(&self) -> bool {
        start_time(self.pid).is_ok_and(|now| now == self.start_time)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.role, self.pid)
    }
}

/// Opens a pidfd (pidfd_open(2)).
///
/// # Errors
/// ESRCH where there is no such process.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends SIGKILL to the process of a pidfd. A process that is gone already is no error.
///
/// # Errors
/// EPERM.
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Waits for the end of a process, at most until the deadline; a pidfd is readable then. Returns whether it came.
///
/// # Errors
/// The system's.
pub fn wait_until(handle: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Runs a program that may take this long, in a thread that may wait. What it prints is to fit into pipes.
///
/// # Errors
/// It cannot be run, or has not ended by then; it is killed in that case.
pub fn output(command: &mut Command, at_most: Duration) -> io::Result<Output> {
    let deadline = Instant::now() + at_most;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let late = match pidfd(child.id()).and_then(|handle| wait_until(&handle, deadline)) {
        Ok(true) => return child.wait_with_output(),
        Ok(false) => {
            let late = format!("it has not ended after {} s", at_most.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, late)
        }
        Err(error) => error,
    };
    let _ = child.kill();
    // One in the middle of I/O takes its time, even after SIGKILL.
    std::thread::spawn(move || child.wait());
    Err(late)
}

/// When a process started, in clock ticks since the host's boot. With its id it names a process
/// for good (proc_pid_stat(5), field 22).
///
/// # Errors
/// `NotFound` where there is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    stat(pid).map(|(_, start)| start)
}

/// The state of a process, and when it started.
fn stat(pid: u32) -> io::Result<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(&stat).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
    })
}

/// The processes that a process has started and not yet waited for, as far as the kernel tells:
/// proc_tid_children(5) is an option of its build.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn parse(stat: &str) -> Option<(char, u64)> {
    // Field 2 is the program's name in parentheses, and may hold blanks and parentheses itself.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let shell =
            |script: &str, at_most| output(Command::new("sh").args(["-c", script]), at_most);
        let said = shell("echo out; exit 3", Duration::from_secs(60)).expect("run");
        assert_eq!((said.stdout.as_slice(), said.status.code()), (&b"out\n"[..], Some(3)));
        let late = shell("exec sleep 100", Duration::from_millis(20)).expect_err("it sleeps");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_program_name_with_blanks_and_parentheses_hides_no_field() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse(stat), Some(('S', 4711)));
        assert_eq!(parse("7 (sh) S 1"), None);
        assert_eq!(parse(""), None);
        start_time(u32::MAX).expect_err("no such process");
    }

    #[test]
    fn a_process_is_alive_until_it_ends() {
        let mut child = Command::new("sleep").arg("100").spawn().expect("spawn");
        let pid = child.id();
        let process = ProcessId::of("x", pid).expect("stat");
        assert!(process.is_alive());
        let reused = ProcessId { start_time: process.start_time + 1, ..process.clone() };
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
