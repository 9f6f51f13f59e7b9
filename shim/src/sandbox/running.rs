//! A sandbox whose guest answers.

use std::sync::OnceLock;

use bulkhead_protocols::chain;
use slog::{Logger, warn};
use tokio::task::JoinHandle;

use super::disks::Disks;
use super::launch::Parts;
use super::{Pod, SandboxError};
use crate::guest::Guest;
use crate::network::{Forward, NetworkError};
use crate::storage::volume::{Volume, Volumes};

/// What a running sandbox has.
pub struct Running {
    /// What it has on the host.
    pub parts: Parts,
    /// Its guest.
    pub guest: Guest,
    /// Has the guest's network follow the pod's.
    following: JoinHandle<()>,
    _forward: Option<Forward>,
    /// Made for the first volume, since a host has few of what it takes.
    volumes: OnceLock<Option<Volumes>>,
    /// The disks of its containers.
    pub disks: Disks,
    /// Its log.
    pub log: Logger,
}

impl Running {
    /// Takes over what was started. A host on which ports cannot be forwarded has pods all the same.
    pub fn new(parts: Parts, guest: Guest, pod: &Pod, log: &Logger) -> Result<Self, SandboxError> {
        let forward = match &pod.network {
            Some(namespace) => match Forward::start(namespace, &guest, log) {
                Err(error @ NetworkError::Listen(_)) => {
                    warn!(log, "ports are not forwarded: {}", chain(&error));
                    None
                }
                forward => Some(forward?),
            },
            None => None,
        };
        let following = parts.network.start(&guest);
        let (volumes, log) = (OnceLock::new(), log.clone());
        let disks = Disks::new(parts.first.clone());
        Ok(Self { parts, guest, following, _forward: forward, volumes, disks, log })
    }

    /// Whether volumes can be followed. Where they cannot, the guest sees them in the share, and their changes
    /// without inotify.
    pub fn follows(&self) -> bool {
        let volumes = self.volumes.get_or_init(|| {
            Volumes::start(&self.guest, &self.log)
                .inspect_err(|error| {
                    let limit = "fs.inotify.max_user_instances may be too low";
                    warn!(self.log, "volumes are not followed: {error}; {limit}");
                })
                .ok()
        });
        volumes.is_some()
    }

    /// Follows the volumes of a new container.
    pub fn follow(&self, new: &[Volume]) {
        for volume in new {
            if let Some(Some(volumes)) = self.volumes.get()
                && let Err(error) = volumes.add(volume)
            {
                warn!(self.log, "changes of {} will not be seen: {error}", volume.host.display());
            }
        }
    }

    /// Returns when the guest's network is as the pod's is now.
    pub async fn settle_network(&self) {
        // What fails is logged, and tried again.
        let _ = self.parts.network.settle(&self.guest).await;
    }

    /// Forgets the volumes of a container that is gone.
    pub fn forget_volumes(&self, container: &str) {
        if let Some(Some(volumes)) = self.volumes.get() {
            volumes.forget(container);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.following.abort();
    }
}
