//! The daemon that serves a sandbox's share to its guest (virtiofsd 1.13 or later).

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;

use crate::config::CacheMode;
use crate::helper::{Ended, Helper, HelperCommand, SpawnError};
use crate::process::{ProcessId, children, kill, pidfd};
use crate::version::Version;

/// The process's name in records and messages.
const ROLE: &str = "virtiofsd";

/// The first version that works: it takes a bound socket, and asks for file handles by itself.
pub const OLDEST: Version = Version { major: 1, minor: 13 };

/// The kernel's own limit for a process (`fs.nr_open`), where it was not changed.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// Of all files that the host may have open, a daemon has this part at most.
const PART_OF_HOST: u64 = 4;

/// A daemon that could not be started.
#[derive(Debug, Error)]
pub enum VirtiofsdError {
    /// The program cannot be run.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Its socket cannot be made.
    #[error("the file share's socket {} cannot be made", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What a daemon serves, and how.
#[derive(Debug, Clone, Copy)]
pub struct Virtiofsd<'a> {
    /// The program.
    pub program: &'a Path,
    /// The directory that becomes the guest's share. The daemon lives in a mount namespace of its
    /// own: what is mounted below the directory later arrives there only if the directory is a
    /// shared mount (mount_namespaces(7)).
    pub dir: &'a Path,
    /// Where it listens for the VMM.
    pub socket: &'a Path,
    /// What the guest may cache.
    pub cache: CacheMode,
    /// Threads of its pool; 0 for none.
    pub threads: u32,
}

impl Virtiofsd<'_> {
    /// Starts the daemon. Its socket is bound here and inherited, so a VMM can connect to it at
    /// once: the connection waits until the daemon is up.
    ///
    /// # Errors
    /// [`VirtiofsdError`]
    pub fn start(&self) -> Result<Daemon, VirtiofsdError> {
        let listener = UnixListener::bind(self.socket)
            .map_err(|source| VirtiofsdError::Bind { path: self.socket.to_owned(), source })?;
        let mut command = HelperCommand::new(ROLE, self.program);
        let fd = command.inherit(listener).to_string();
        command.arg("--fd").arg(fd).arg("--shared-dir").arg(self.dir);
        command.args(["--cache", self.cache.as_str()]);
        command.arg("--thread-pool-size").arg(self.threads.to_string());
        // Its own PID, mount and network namespaces, and a filter on its system calls.
        command.args(["--sandbox", "namespace", "--seccomp", "kill"]);
        // Handles would save descriptors, but with the capability that they need (opening a file
        // of the host by its number) a daemon that the guest has taken over could leave the share.
        command.arg("--inode-file-handles=never");
        // Mounts below the directory keep their inode numbers apart.
        command.args(["--announce-submounts", "--xattr", "--log-level", "error"]);
        // One descriptor for each inode that the guest knows.
        if let Some(descriptors) = descriptors() {
            command.arg(format!("--rlimit-nofile={descriptors}"));
        }
        let helper = command.spawn()?;
        Ok(Daemon { helper, socket: self.socket.to_owned() })
    }
}

/// How many descriptors a daemon may have: as many as a process can, but not so many that the host runs out of them.
fn descriptors() -> Option<u64> {
    let limit = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(Path::new("/proc/sys/fs").join(name)).ok()?;
        text.trim().parse().ok()
    };
    let most = MOST_DESCRIPTORS.min(limit("nr_open")?).min(limit("file-max")? / PART_OF_HOST);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    // What containerd was given may be less.
    if hard < most && setrlimit(Resource::RLIMIT_NOFILE, soft, most).is_err() {
        return Some(hard);
    }
    Some(most)
}

/// A running daemon. Dropping it ends it.
///
/// It is two processes: the one that we start waits for the other, which serves and is the first
/// one of its own PID namespace. As such it takes no SIGTERM, so the first one's death is not its
/// own. It ends with its connection to the VMM, and before there is one, with ours.
#[derive(Debug)]
pub struct Daemon {
    helper: Helper,
    socket: PathBuf,
}

impl Daemon {
    /// Its name in records and messages.
    #[must_use]
    pub fn role(&self) -> &'static str {
        self.helper.role()
    }

    /// Its processes so far.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessId> {
        let served = self.served().into_iter().filter_map(|pid| ProcessId::of(ROLE, pid).ok());
        std::iter::once(self.helper.process().clone()).chain(served).collect()
    }

    /// Returns at its end; any number of callers may wait.
    pub async fn wait(&self) -> Ended {
        self.helper.wait().await
    }

    /// The process that serves, as long as the first one is there: its number may be another's then.
    fn served(&self) -> Vec<u32> {
        let first = self.helper.process();
        let found = children(first.pid);
        if first.is_same() { found } else { Vec::new() }
    }

    /// Ends it; one that has ended is left alone.
    pub fn kill(&self) {
        for pid in self.served() {
            // The id may be another's by now; a handle is not.
            if let Ok(handle) = pidfd(pid)
                && self.served().contains(&pid)
            {
                // EPERM alone is left, and it is root's own.
                let _ = kill(&handle);
            }
        }
        self.helper.kill();
        dismiss(&self.socket);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends a daemon that still waits for its VMM on this socket: it serves one connection and ends
/// with it. Where none waits, nothing happens.
pub fn dismiss(socket: &Path) {
    // Refused, or not there: none waits.
    let _ = UnixStream::connect(socket);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::Files;

    /// The real daemon, where it is installed and may make namespaces.
    fn daemon(dir: &Path) -> Option<Daemon> {
        let program = Files::default().virtiofsd().ok()?;
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let share = dir.join("share");
        fs::create_dir(&share).expect("mkdir");
        let socket = dir.join("fs");
        let daemon = Virtiofsd {
            program: &program,
            dir: &share,
            socket: &socket,
            cache: CacheMode::Auto,
            threads: 0,
        };
        Some(daemon.start().expect("start"))
    }

    /// Waits until the daemon has its second process.
    async fn serving(daemon: &Daemon) -> Vec<ProcessId> {
        let start = Instant::now();
        loop {
            let processes = daemon.processes();
            if processes.len() == 2 {
                return processes;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no second process");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn all_gone(processes: &[ProcessId]) {
        let start = Instant::now();
        for process in processes {
            while process.is_same() {
                assert!(start.elapsed() < Duration::from_secs(20), "{process:?} is still there");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_kill_leaves_neither_process() {
        let dir = tempfile::tempdir().expect("tempdir");
        let Some(daemon) = daemon(dir.path()) else {
            return;
        };
        let processes = serving(&daemon).await;
        daemon.kill();
        all_gone(&processes).await;
        daemon.kill();
    }

    #[tokio::test]
    async fn a_kill_at_once_leaves_none_either() {
        let dir = tempfile::tempdir().expect("tempdir");
        let Some(daemon) = daemon(dir.path()) else {
            return;
        };
        let first = daemon.processes();
        drop(daemon);
        all_gone(&first).await;
        // Whoever still waited on the socket would take this connection.
        UnixStream::connect(dir.path().join("fs")).expect_err("somebody listens");
    }

    #[tokio::test]
    async fn a_daemon_whose_shim_was_killed_is_dismissed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let Some(daemon) = daemon(dir.path()) else {
            return;
        };
        let processes = serving(&daemon).await;
        // As the kernel does it at the shim's death.
        daemon.helper.kill();
        daemon.wait().await;
        dismiss(&dir.path().join("fs"));
        all_gone(&processes).await;
    }
}
