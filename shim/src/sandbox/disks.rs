//! Disks of the containers: plugged in for one, and out again with it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bulkhead_protocols::{DISK_BY_SERIAL, ROOTFS_DIR, agent};
use slog::{info, warn};
use tokio::task::spawn_blocking;

use super::SandboxError;
use super::running::Running;
use crate::container::devices::BlockDevice;
use crate::storage::block::{EROFS, Exposed, Image, Root};
use crate::storage::host;
use crate::storage::share::ShareError;
use crate::sys::lock;
use crate::vmm::{Disk, Plug, PlugError, Selection, VmSpec};

/// A block device or an image, and whether it may only be read.
pub type Source = (PathBuf, bool);

/// What the first container of a sandbox sees of the host, as far as the start of its VM depends on it.
#[derive(Debug, Clone, Default)]
pub struct First {
    /// Its root file system.
    pub root: Root,
    /// Whether it may not write there.
    pub read_only: bool,
    /// Whether it sees other files.
    pub binds: bool,
    /// Its block devices.
    pub devices: Vec<Source>,
}

impl First {
    /// Gives the VM the disks that it will have, if there is room for them, and takes the share away if nothing is to
    /// be seen there. `upper` says that the guest has what is written to the root file system. Returns their names.
    ///
    /// # Errors
    /// A disk that cannot be opened.
    pub fn cold(
        self,
        upper: bool,
        selection: &Selection,
        spec: &mut VmSpec,
    ) -> Result<HashMap<Source, String>, SandboxError> {
        let images = self.root.images(upper && !self.read_only);
        let shows_files = self.binds || images.is_empty();
        let count = images.len();
        let images = images.into_iter().map(|image| (image.path, image.read_only));
        let sources: Vec<_> = images.chain(self.devices).collect();
        let fit = spec.disks.len() + sources.len() <= selection.disks();
        if !shows_files && (fit || count <= selection.places()) {
            spec.share = None;
        }
        let mut names = HashMap::new();
        for (path, readonly) in sources.into_iter().filter(|_| fit) {
            let serial = format!("disk{}", names.len());
            let what = path.display().to_string();
            let file = open(&path, readonly);
            let file = file.map_err(|source| ShareError::Source { path: path.clone(), source })?;
            spec.disks.push(Disk { serial: serial.clone(), file: Arc::new(file), readonly, what });
            names.insert((path, readonly), serial);
        }
        Ok(names)
    }
}

fn open(path: &Path, readonly: bool) -> io::Result<File> {
    let found = host::find(path)?;
    OpenOptions::new().read(true).write(!readonly).open(host::by_descriptor(&found))
}

/// The serial numbers of the disks that containers have.
#[derive(Debug)]
pub struct Disks {
    count: AtomicU32,
    /// Those that the VM started with, until their container comes. They stay as long as the VM.
    cold: Mutex<HashMap<Source, String>>,
    of: Mutex<HashMap<String, Vec<String>>>,
}

impl Disks {
    /// Those that the VM started with.
    pub fn new(cold: HashMap<Source, String>) -> Disks {
        let count = AtomicU32::new(cold.len().try_into().unwrap_or(u32::MAX));
        Disks { count, cold: Mutex::new(cold), of: Mutex::default() }
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
        let cold = lock(&self.disks.cold).remove(&(image.to_owned(), readonly));
        if let Some(serial) = cold {
            return Ok(format!("{DISK_BY_SERIAL}{serial}"));
        }
        let serial = format!("disk{}", self.disks.count.fetch_add(1, Ordering::Relaxed));
        let exposed = self.parts.spec.dir.join(&serial);
        let path = image.to_owned();
        // A thread of its own, as for mounts.
        let exposed = spawn_blocking(move || Exposed::at(exposed, &path)).await;
        let exposed = exposed.map_err(|_| SandboxError::Interrupted)?;
        let exposed = exposed.map_err(|error| SandboxError::Share(error.into()))?;
        let path = exposed.path.clone();
        let disk = Plug { serial: serial.clone(), path, readonly };
        // Before it is there: a call that is not answered in time may still be carried out.
        lock(&self.disks.of).entry(container.to_owned()).or_default().push(serial.clone());
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

    /// Takes the disks of a container that is gone out of the VM: whoever gave them wants them back.
    pub async fn unplug(&self, container: &str) {
        let serials = lock(&self.disks.of).remove(container).unwrap_or_default();
        for serial in serials {
            match self.parts.vm.unplug(&serial).await {
                Ok(()) => self.parts.forget_device(&format!("virtio-blk {serial}, ")),
                Err(error) => warn!(self.log, "{error}"; "container" => container),
            }
        }
    }
}
