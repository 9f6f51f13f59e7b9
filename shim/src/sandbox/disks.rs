//! Disks of the containers: plugged in for one, and out again with it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_protocols::{DISK_BY_SERIAL, ROOTFS_DIR, agent};
use futures::future::join_all;
use slog::{info, warn};

use super::first::Source;
use super::running::Running;
use super::{SandboxError, aside};
use crate::container::devices::BlockDevice;
use crate::storage::block::{EROFS, Exposed, Image};
use crate::sys::lock;
use crate::vmm::{Plug, PlugError};

/// The disks that containers have, by their serial numbers.
#[derive(Debug)]
pub struct Disks {
    count: AtomicU32,
    /// Those that the VM started with and that are nobody's now.
    free: Mutex<HashMap<Source, String>>,
    of: Mutex<HashMap<String, Vec<(String, Source)>>>,
}

impl Disks {
    /// Those that the VM started with.
    pub fn new(first: HashMap<Source, String>) -> Disks {
        let count = AtomicU32::new(first.len().try_into().unwrap_or(u32::MAX));
        Disks { count, free: Mutex::new(first), of: Mutex::default() }
    }

    fn give(&self, container: &str, serial: &str, source: &Source) {
        let disk = (serial.to_owned(), source.clone());
        lock(&self.of).entry(container.to_owned()).or_default().push(disk);
    }
}

impl Image {
    /// Whether the host mounts the image since it could not be plugged in. One that may be written to it mounts only
    /// if the VM has not even tried: another VM may have it.
    fn may_stay(&self, error: &PlugError) -> bool {
        self.by_host && (self.fstype == EROFS || matches!(error, PlugError::NoPlace(_)))
    }
}

impl Running {
    /// Plugs in the images of a container's root file system. Returns how the guest mounts them, the topmost first;
    /// nothing where the VM has no place for them, and the host mounts them.
    pub async fn plug(
        &self,
        container: &str,
        images: Vec<Image>,
    ) -> Result<Vec<agent::Mount>, SandboxError> {
        let mut mounts = Vec::new();
        for image in images {
            let Some(mount) = self.plug_image(container, image).await? else {
                self.unplug(container).await;
                return Ok(Vec::new());
            };
            mounts.push(mount);
        }
        Ok(mounts)
    }

    async fn plug_image(
        &self,
        container: &str,
        image: Image,
    ) -> Result<Option<agent::Mount>, SandboxError> {
        let source = match self.plug_in(container, &image.path, image.read_only).await {
            Ok(source) => source,
            Err(SandboxError::Plug { source, path }) if image.may_stay(&source) => {
                let path = path.display();
                info!(self.log, "the host mounts {path}: {source}"; "container" => container);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let name = source.trim_start_matches(DISK_BY_SERIAL);
        Ok(Some(agent::Mount {
            target: format!("{ROOTFS_DIR}/{container}/{name}"),
            source,
            fstype: image.fstype,
            options: image.options,
            ..Default::default()
        }))
    }

    /// Plugs in a block device of a container. Returns which disk of the guest's it is.
    pub async fn plug_device(
        &self,
        container: &str,
        device: &BlockDevice,
    ) -> Result<agent::Device, SandboxError> {
        let source = self.plug_in(container, &device.path, device.read_only).await?;
        let (major, minor) = device.number;
        Ok(agent::Device { source, major, minor, ..Default::default() })
    }

    /// Plugs in a block device or a file. Returns its name in the guest.
    async fn plug_in(
        &self,
        container: &str,
        image: &Path,
        readonly: bool,
    ) -> Result<String, SandboxError> {
        let source = (image.to_owned(), readonly);
        let first = lock(&self.disks.free).remove(&source);
        if let Some(serial) = first {
            self.disks.give(container, &serial, &source);
            return Ok(format!("{DISK_BY_SERIAL}{serial}"));
        }
        let serial = format!("disk{}", self.disks.count.fetch_add(1, Ordering::Relaxed));
        let exposed = self.parts.spec.dir.join(&serial);
        let path = image.to_owned();
        let exposed = aside(move || Exposed::at(exposed, &path)).await?;
        let exposed = exposed.map_err(|error| SandboxError::Share(error.into()))?;
        let path = exposed.path.clone();
        let disk = Plug { serial: serial.clone(), path, readonly };
        // Before it is there: a call that is not answered in time may still be carried out.
        self.disks.give(container, &serial, &source);
        if let Err(source) = self.parts.vm.plug(&disk).await {
            if let (PlugError::NoPlace(_), Some(serials)) =
                (&source, lock(&self.disks.of).get_mut(container))
            {
                serials.pop();
            }
            return Err(SandboxError::Plug { path: image.to_owned(), source });
        }
        self.parts.record_device(&format!("virtio-blk {serial}, {}", image.display()));
        Ok(format!("{DISK_BY_SERIAL}{serial}"))
    }

    /// Takes the disks of a container that is gone out of the VM: whoever gave them wants them back. One that the VM
    /// started with may have to stay, for the container to come again.
    pub async fn unplug(&self, container: &str) {
        let disks = lock(&self.disks.of).remove(container).unwrap_or_default();
        let unplugged = disks.iter().map(|(serial, _)| self.parts.vm.unplug(serial));
        let unplugged = join_all(unplugged).await;
        for ((serial, source), unplugged) in disks.iter().zip(unplugged) {
            match unplugged {
                Ok(()) => self.parts.forget_device(&format!("virtio-blk {serial}, ")),
                Err(error) if self.parts.first.get(source) == Some(serial) => {
                    info!(self.log, "{} stays in the VM: {error}", source.0.display());
                    lock(&self.disks.free).insert(source.clone(), serial.clone());
                }
                Err(error) => warn!(self.log, "{error}"; "container" => container),
            }
        }
    }
}
