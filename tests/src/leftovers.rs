//! What a container has left on the host: processes, mounts, sockets, directories.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::failure::{Failure, Outcome};

/// One thing that should be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// A process whose command line, environment or cgroup holds the word.
    Process(i32, String),
    /// A mount point.
    Mount(String),
    /// A bound unix socket.
    Socket(String),
    /// A file or directory.
    Path(PathBuf),
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid, line) => write!(f, "process {pid}: {line}"),
            Self::Mount(point) => write!(f, "mount {point}"),
            Self::Socket(path) => write!(f, "socket {path}"),
            Self::Path(path) => write!(f, "path {}", path.display()),
        }
    }
}

/// Everything on this host that names `word`, and those of `paths` that exist.
pub fn of(word: &str, paths: &[PathBuf]) -> Vec<Trace> {
    let mut traces = processes(word);
    traces.extend(mounts(word));
    traces.extend(sockets(word));
    traces.extend(
        paths.iter().filter(|path| path.symlink_metadata().is_ok()).cloned().map(Trace::Path),
    );
    traces
}

/// Waits until nothing names `word`.
///
/// # Errors
/// Something is still there at the deadline; the text lists it.
pub fn none(word: &str, paths: &[PathBuf], deadline: Duration) -> Outcome {
    let limit = Instant::now() + deadline;
    loop {
        let traces = of(word, paths);
        if traces.is_empty() {
            return Ok(());
        }
        let Some(left) = limit.checked_duration_since(Instant::now()) else {
            let lines: Vec<String> = traces.iter().map(|trace| format!("  {trace}")).collect();
            return Err(Failure::new(format!("left on the host:\n{}", lines.join("\n"))));
        };
        match traces
            .iter()
            .find_map(|trace| if let Trace::Process(pid, _) = trace { Some(*pid) } else { None })
        {
            Some(pid) => await_end(pid, left),
            // The last process has just ended, and its parent cleans up after it.
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Waits until a process, not necessarily a child, has ended.
pub fn await_end(pid: i32, deadline: Duration) {
    let Some(pid) = Pid::from_raw(pid) else {
        return;
    };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let timeout = Timespec { tv_sec: deadline.as_secs() as i64, tv_nsec: 0 };
    // An interrupted or failed wait makes the caller look again.
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
}

/// Processes whose command line, environment or cgroup holds `word`, this one left out.
pub fn processes(word: &str) -> Vec<Trace> {
    let own = std::process::id() as i32;
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own)
        .filter_map(|pid| {
            let dir = Path::new("/proc").join(pid.to_string());
            let named =
                ["cmdline", "environ", "cgroup"].iter().any(|file| holds(&dir.join(file), word));
            // A zombie holds nothing; its parent's reaping is not ours to judge.
            (named && !is_zombie(&dir)).then(|| Trace::Process(pid, line(&dir)))
        })
        .collect()
}

fn holds(file: &Path, word: &str) -> bool {
    fs::read(file)
        .is_ok_and(|bytes| bytes.windows(word.len()).any(|window| window == word.as_bytes()))
}

fn is_zombie(dir: &Path) -> bool {
    fs::read_to_string(dir.join("stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

fn line(dir: &Path) -> String {
    let bytes = fs::read(dir.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

fn mounts(word: &str) -> Vec<Trace> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let named = table.lines().filter(|line| line.contains(word));
    named.map(|line| Trace::Mount(line.split(' ').nth(4).unwrap_or(line).to_owned())).collect()
}

fn sockets(word: &str) -> Vec<Trace> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let named = table.lines().filter(|line| line.contains(word));
    named
        .map(|line| Trace::Socket(line.split(' ').next_back().unwrap_or(line).to_owned()))
        .collect()
}

/// What a directory holds.
pub fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The names of the host's network devices.
pub fn network_devices() -> Vec<PathBuf> {
    let mut devices = entries(Path::new("/sys/class/net"));
    devices.sort();
    devices
}

/// Requires that the host has the network devices that it had.
///
/// # Errors
/// One has come or gone.
pub fn same_devices(before: &[PathBuf]) -> Outcome {
    let after = network_devices();
    crate::ensure!(before == after, "network devices before: {before:?}, after: {after:?}");
    Ok(())
}
