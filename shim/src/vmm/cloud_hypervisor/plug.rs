//! Disks that come and go, by the VMM's API. What has gone is told by its events, once the guest has let go of it.

use std::collections::HashSet;

use async_trait::async_trait;
use bulkhead_protocols::chain;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
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

    /// The VMM answers one call after another, in its own time: a thread waits for it.
    async fn call(
        &self,
        call: impl FnOnce(&Api) -> Result<(), ApiError> + Send + 'static,
    ) -> Result<(), PlugError> {
        let api = self.api.clone();
        let refused = |reason| PlugError::Refused { vmm: ROLE, reason };
        let called = spawn_blocking(move || call(&api)).await;
        called.map_err(|error| refused(error.to_string()))?.map_err(|error| refused(chain(&error)))
    }
}

#[async_trait]
impl Plugs for Hotplug {
    async fn plug(&self, disk: &Plug) -> Result<(), PlugError> {
        let disk = Disk::new(&disk.serial, disk.path.display().to_string(), disk.readonly);
        self.call(move |api| api.add_disk(&disk)).await
    }

    async fn unplug(&self, serial: &str) -> Result<(), PlugError> {
        let id = serial.to_owned();
        self.call(move |api| api.remove_device(&id)).await?;
        let mut removed = self.removed.clone();
        let gone = removed.wait_for(|removed| removed.contains(serial));
        match timeout(EJECTION, gone).await {
            // The events end with the VM, and so does the disk.
            Ok(_) => Ok(()),
            Err(_) => Err(PlugError::Held),
        }
    }
}
