//! A sandbox whose guest answers.

use std::sync::OnceLock;

use bulkhead_protocols::chain;
use slog::{Logger, warn};

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
    _forward: Option<Forward>,
    /// Made for the first volume, since a host has few of what it takes.
    volumes: OnceLock<Option<Volumes>>,
    log: Logger,
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
        Ok(Self { parts, guest, _forward: forward, volumes: OnceLock::new(), log: log.clone() })
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

    /// Forgets the volumes of a container that is gone.
    pub fn forget_volumes(&self, container: &str) {
        if let Some(Some(volumes)) = self.volumes.get() {
            volumes.forget(container);
        }
    }
}
