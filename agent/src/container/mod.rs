//! Containers and their processes, as the host sees them.

mod console;
mod devices;
mod explain;
mod ground;
mod helper;
mod hugepages;
mod id;
mod lifecycle;
mod process;
mod sockets;
mod table;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_protocols::{SOCKETS_DIR, VOLUMES_DIR};
use nix::errno::Errno;
use tokio::sync::RwLock;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::ground::Ground;
pub use self::lifecycle::{Guest, aside};
pub use self::process::Process;
use self::sockets::Sockets;
pub use self::table::Containers;
use crate::cgroup::{Cgroup, OOM_KILLS};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::sandbox::Submounts;
use crate::sys::lock;

/// Where a container's bundle is: its spec, and what belongs to it in the agent.
pub const BUNDLES: &str = "/run/bulkhead/containers";

/// Where libcontainer keeps its state, a directory for each container.
pub const STATES: &str = "/run/bulkhead/oci";

/// How long a pause waits for execs that are on their way.
const STARTING: Duration = Duration::from_secs(10);

/// One container.
pub struct Container {
    id: String,
    cgroup: Cgroup,
    ground: Ground,
    /// The host's sockets that it reaches.
    pub sockets: Sockets,
    /// What the host has mounted for it in the share.
    submounts: Mutex<Vec<String>>,
    /// How many of its processes the OOM killer has ended, as far as the host was told.
    oom_kills: AtomicU64,
    /// What tells the host of them.
    watching: Mutex<Option<AbortHandle>>,
    paused: AtomicBool,
    /// Held by execs that are on their way: one that is frozen half-way would never arrive.
    starting: RwLock<()>,
    /// Held by an update: each has its limits in the same file.
    updating: tokio::sync::Mutex<()>,
}

impl Container {
    fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            cgroup: Cgroup::of_container(id),
            ground: Ground::default(),
            sockets: Sockets::default(),
            submounts: Mutex::default(),
            oom_kills: AtomicU64::new(0),
            watching: Mutex::default(),
            paused: AtomicBool::new(false),
            starting: RwLock::new(()),
            updating: tokio::sync::Mutex::new(()),
        }
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Enters what the host has mounted for it.
    fn enter(&self, submounts: &Submounts, own: Vec<String>) {
        submounts.enter(&own);
        *lock(&self.submounts) = own;
    }

    /// The container's cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The directory of the container's bundle.
    fn bundle(&self) -> PathBuf {
        PathBuf::from(BUNDLES).join(&self.id)
    }

    /// The directory of libcontainer's state.
    fn state(&self) -> PathBuf {
        PathBuf::from(STATES).join(&self.id)
    }

    /// Tells the host if the OOM killer has struck here since the last time.
    pub fn report_oom(&self, events: &Events) {
        self.report_oom_kills(self.cgroup.oom_kills().unwrap_or_default(), events);
    }

    fn report_oom_kills(&self, kills: u64, events: &Events) {
        if self.oom_kills.fetch_max(kills, Ordering::Relaxed) < kills {
            events.oom(&self.id);
        }
    }

    /// Whether the host has paused the container.
    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Freezes or thaws all processes of the container, and returns when that is done.
    ///
    /// # Errors
    /// What the kernel says to it.
    pub async fn set_paused(&self, paused: bool) -> Result<()> {
        let Ok(_none) = timeout(STARTING, self.starting.write()).await else {
            let text = format!("an exec of container {} does not start", self.id);
            return Err(Error::FailedPrecondition(text));
        };
        self.cgroup.freeze(paused).await?;
        self.paused.store(paused, Ordering::Relaxed);
        Ok(())
    }

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, [`Error::Internal`] if the kernel refuses.
    fn signal_all(&self, signal: i32) -> Result<()> {
        let pids = self.cgroup.pids()?;
        if pids.is_empty() {
            return Err(Error::NotFound(format!("container {} has no process", self.id)));
        }
        if signal == libc::SIGKILL {
            return self.cgroup.kill();
        }
        for pid in pids {
            match process::send_signal(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => {
                    return Err(Error::io(format_args!("cannot signal process {pid}"), error));
                }
            }
        }
        Ok(())
    }

    /// Reports out-of-memory kills from now on, as they happen.
    fn watch_memory(self: &Arc<Self>, events: &Arc<Events>) {
        let memory = match self.cgroup.memory_events() {
            Ok(memory) => memory,
            Err(error) => {
                log::warn!("cannot watch the memory of container {}: {error}", self.id);
                return;
            }
        };
        let (container, events) = (Arc::downgrade(self), Arc::clone(events));
        let watching = tokio::spawn(async move {
            while let Some(kills) = memory.value(OOM_KILLS)
                && let Some(container) = container.upgrade()
            {
                container.report_oom_kills(kills, &events);
                drop(container);
                memory.changed().await;
            }
        });
        *lock(&self.watching) = Some(watching.abort_handle());
    }

    /// Removes what the container has left in the agent's directories.
    fn remove_files(&self, submounts: &Submounts) {
        self.sockets.close();
        if let Some(watching) = lock(&self.watching).take() {
            watching.abort();
        }
        self.ground.clear();
        submounts.leave(&std::mem::take(&mut *lock(&self.submounts)));
        let [volumes, sockets] =
            [VOLUMES_DIR, SOCKETS_DIR].map(|directory| Path::new(directory).join(&self.id));
        for directory in [self.state(), self.bundle(), volumes, sockets] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {error}", directory.display());
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}
