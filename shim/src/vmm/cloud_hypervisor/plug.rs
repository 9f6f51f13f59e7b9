//! Disks that come and go, by the VMM's API. What has gone is told by its events, once the guest has let go of it.

use std::collections::HashSet;

use async_trait::async_trait;
use bulkhead_protocols::chain;
use tokio::sync::watch;
use tokio::time::timeout;

use super::ROLE;
use super::api::{Api, ApiError};
use super::command::Disk;
use crate::vmm::plug::{EJECTION, Plug, PlugError, Plugs};

/// The disks of a running VM.
pub(super) struct Hotplug {
    api: Api,
    /// The devices that are out again.
    removed: watch::Receiver<HashSet<String>>,
}

impl Hotplug {
    pub(super) fn new(api: Api, removed: watch::Receiver<HashSet<String>>) -> Self {
        Self { api, removed }
    }
}

#[async_trait]
impl Plugs for Hotplug {
    async fn plug(&self, disk: &Plug) -> Result<(), PlugError> {
        let disk = Disk::new(&disk.serial, disk.path.display().to_string(), disk.readonly);
        self.api.add_disk(&disk).await.map_err(|error| refused(&error))
    }

    async fn unplug(&self, serial: &str) -> Result<(), PlugError> {
        self.api.remove_device(serial).await.map_err(|error| refused(&error))?;
        let mut removed = self.removed.clone();
        let gone = removed.wait_for(|removed| removed.contains(serial));
        match timeout(EJECTION, gone).await {
            // The events end with the VM, and so does the disk.
            Ok(_) => Ok(()),
            Err(_) => Err(PlugError::Held),
        }
    }
}

fn refused(error: &ApiError) -> PlugError {
    PlugError::Refused { vmm: ROLE, reason: chain(error) }
}
