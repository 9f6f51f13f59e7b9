//! Disks of the containers: plugged in for one, and out again with it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_protocols::{DISK_BY_SERIAL, ROOTFS_DIR, agent};
use slog::{info, warn};
use tokio::task::spawn_blocking;

use super::SandboxError;
use super::running::Running;
use crate::storage::block::{Exposed, Image};
use crate::sys::lock;
use crate::vmm::{Plug, PlugError};

/// The serial numbers of the disks that containers have.
#[derive(Debug, Default)]
pub struct Disks {
    count: AtomicU32,
    of: Mutex<HashMap<String, String>>,
}

impl Running {
    /// Plugs in the image of a container's root file system. Returns how the guest mounts it; nothing where the VM has
    /// no place for it, and the host can mount it.
    pub async fn plug(
        &self,
        container: &str,
        image: Image,
    ) -> Result<Option<agent::Mount>, SandboxError> {
        let serial = format!("disk{}", self.disks.count.fetch_add(1, Ordering::Relaxed));
        let exposed = self.parts.spec.dir.join(&serial);
        let path = image.path.clone();
        // A thread of its own, as for mounts.
        let exposed = spawn_blocking(move || Exposed::at(exposed, &path)).await;
        let exposed = exposed.map_err(|_| SandboxError::Interrupted)?;
        let exposed = exposed.map_err(|error| SandboxError::Share(error.into()))?;
        let path = exposed.path.clone();
        let disk = Plug { serial: serial.clone(), path, readonly: image.read_only };
        // Before it is there: a call that is not answered in time may still be carried out.
        lock(&self.disks.of).insert(container.to_owned(), serial.clone());
        match self.parts.vm.plug(&disk).await {
            Ok(()) => {}
            Err(PlugError::NoPlace(why)) if !image.is_file => {
                lock(&self.disks.of).remove(container);
                let path = image.path.display();
                info!(self.log, "the host mounts {path}: {why}"; "container" => container);
                return Ok(None);
            }
            Err(source) => return Err(SandboxError::Plug { path: image.path, source }),
        }
        self.parts.record_device(&format!("virtio-blk {serial}, {}", image.path.display()));
        Ok(Some(agent::Mount {
            source: format!("{DISK_BY_SERIAL}{serial}"),
            target: format!("{ROOTFS_DIR}/{container}/disk"),
            fstype: image.fstype,
            options: image.options,
            ..Default::default()
        }))
    }

    /// Takes the disk of a container that is gone out of the VM, if it has one: whoever gave it wants it back.
    pub async fn unplug(&self, container: &str) {
        let Some(serial) = lock(&self.disks.of).remove(container) else { return };
        match self.parts.vm.unplug(&serial).await {
            Ok(()) => self.parts.forget_device(&format!("virtio-blk {serial}, ")),
            Err(error) => warn!(self.log, "{error}"; "container" => container),
        }
    }
}
