//! Containers' cgroups (v2).
//!
//! The files and their meaning: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

mod stats;
mod watch;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

pub use self::watch::Watched;
use crate::error::{Error, Result};

/// Where the tree is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The branch of all containers, relative to the root.
pub const CONTAINERS: &str = "containers";

/// The file of a cgroup's state.
const EVENTS: &str = "cgroup.events";

/// Its value that says whether there are processes.
const POPULATED: &str = "populated";

/// The file of what its memory limit has led to.
const MEMORY_EVENTS: &str = "memory.events";

/// The value of it that counts the processes that were killed.
pub const OOM_KILLS: &str = "oom_kill";

/// How long the kernel may take to freeze or to empty a cgroup. A process in the middle of a system
/// call that can't be interrupted (a lost file system) can delay both.
const DEADLINE: Duration = Duration::from_secs(10);

/// The cgroup of a container, whether it is there or not.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup of the container `id`.
    pub fn of_container(id: &str) -> Self {
        Self(Path::new(ROOT).join(CONTAINERS).join(id))
    }

    /// The branch of all containers.
    pub fn of_all() -> Self {
        Self(Path::new(ROOT).join(CONTAINERS))
    }

    /// The file that changes when the kernel kills for want of memory.
    ///
    /// # Errors
    /// What keeps it from being watched.
    pub fn memory_events(&self) -> io::Result<Watched> {
        Watched::open(&self.0.join(MEMORY_EVENTS))
    }

    /// How many of its processes the kernel has killed for want of memory; none if it can't be
    /// told.
    pub fn oom_kills(&self) -> Option<u64> {
        self.number(MEMORY_EVENTS, OOM_KILLS)
    }

    /// Every process in it and below it.
    ///
    /// # Errors
    /// [`Error::Internal`] if the tree can't be read.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for directory in self.tree()? {
            let path = directory.join("cgroup.procs");
            match fs::read_to_string(&path) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // Removed since, or a threaded cgroup, whose processes its parent lists.
                Err(error) if gone(&error) || is(&error, Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(failed(&path, &error)),
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process in it and below it, new ones included.
    ///
    /// # Errors
    /// [`Error::Internal`] if the kernel refuses.
    pub fn kill(&self) -> Result<()> {
        let path = self.0.join("cgroup.kill");
        match fs::write(&path, "1") {
            Err(error) if !gone(&error) => Err(failed(&path, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Kills what is left, if anything is.
    pub fn kill_if_populated(&self) {
        if self.is_populated()
            && let Err(error) = self.kill()
        {
            log::warn!("{error}");
        }
    }

    /// Freezes or thaws everything in it, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::Internal`] if the kernel refuses, or takes too long.
    pub async fn freeze(&self, freeze: bool) -> Result<()> {
        let value = u64::from(freeze);
        let path = self.0.join("cgroup.freeze");
        let events = self.events()?;
        fs::write(&path, value.to_string()).map_err(|error| failed(&path, &error))?;
        if events.wait_until(DEADLINE, "frozen", |now| now == Some(value)).await {
            return Ok(());
        }
        // Half frozen is worse than not at all.
        let _ = fs::write(&path, "0");
        Err(Error::Internal("the container's processes can't be stopped in time".to_owned()))
    }

    /// Removes it with all below it, killing what is still there.
    ///
    /// # Errors
    /// [`Error::Internal`] if a process won't die, or the kernel refuses.
    pub async fn remove(&self) -> Result<()> {
        if !self.0.is_dir() {
            return Ok(());
        }
        if self.is_populated() {
            self.kill()?;
            self.emptied(DEADLINE).await?;
        }
        for directory in self.tree()?.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if !gone(&error) => return Err(failed(directory, &error)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Waits until no process is left in it.
    ///
    /// # Errors
    /// [`Error::Internal`] if one is left after `deadline`.
    pub async fn emptied(&self, deadline: Duration) -> Result<()> {
        if self.events()?.wait_until(deadline, POPULATED, |now| now != Some(1)).await {
            return Ok(());
        }
        Err(Error::Internal(format!("processes in {} won't end", self.0.display())))
    }

    fn is_populated(&self) -> bool {
        self.number(EVENTS, POPULATED) == Some(1)
    }

    /// Its state, as it changes.
    fn events(&self) -> Result<Watched> {
        let path = self.0.join(EVENTS);
        Watched::open(&path).map_err(|error| failed(&path, &error))
    }

    /// A value of a flat keyed file of its own.
    fn number(&self, file: &str, name: &str) -> Option<u64> {
        stats::keyed(&fs::read_to_string(self.0.join(file)).ok()?, name)
    }

    /// The directory of the cgroup and of all below it, parents first.
    fn tree(&self) -> Result<Vec<PathBuf>> {
        let mut tree = vec![self.0.clone()];
        let mut next = 0;
        while let Some(directory) = tree.get(next).cloned() {
            next += 1;
            match fs::read_dir(&directory) {
                Ok(entries) => tree.extend(
                    entries
                        .flatten()
                        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                        .map(|entry| entry.path()),
                ),
                Err(error) if gone(&error) => {}
                Err(error) => return Err(failed(&directory, &error)),
            }
        }
        Ok(tree)
    }
}

/// Whether a file, or the cgroup around it, is not there any more.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || is(error, Errno::ENODEV)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::io(path.display(), error)
}
