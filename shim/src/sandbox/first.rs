//! The first container of a sandbox: what it brings by disks is in the VM when that starts.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{SandboxError, aside};
use crate::storage::block::Root;
use crate::storage::host;
use crate::vmm::{Disk, Selection, VmSpec};

/// A block device or an image, and whether it may only be read.
pub type Source = (PathBuf, bool);

/// What it sees of the host, as far as the start of the VM depends on it.
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
    /// Whether it has disks even in a guest that has none to write to.
    pub fn brings_disks(&self) -> bool {
        !self.devices.is_empty() || !self.root.clone().images(false).is_empty()
    }

    /// Gives the VM its disks, if there is room for all of them, and takes the share away if nothing is to be seen
    /// there. `upper` says that the guest has what is written to the root file system. Returns the disks' names. One
    /// that cannot be opened is left out: who plugs it in later is told why.
    ///
    /// # Errors
    /// [`SandboxError::Interrupted`]
    pub async fn take_along(
        self,
        upper: bool,
        selection: &Selection,
        spec: &mut VmSpec,
    ) -> Result<HashMap<Source, String>, SandboxError> {
        let images = self.root.images(upper && !self.read_only);
        let shows_files = self.binds || images.is_empty();
        let images = images.into_iter().map(|image| (image.path, image.read_only));
        let mut sources: Vec<_> = images.chain(self.devices).collect();
        sources.sort();
        sources.dedup();
        let mut names = HashMap::new();
        if spec.disks.len() + sources.len() > selection.disks() {
            return Ok(names);
        }
        let count = sources.len();
        let opened = aside(|| {
            let opened = sources.into_iter().map(|source| (open(&source), source));
            opened.filter_map(|(file, source)| Some((file.ok()?, source))).collect::<Vec<_>>()
        });
        let opened = opened.await?;
        if !shows_files && opened.len() == count {
            spec.share = None;
        }
        for (file, source) in opened {
            let serial = format!("disk{}", names.len());
            let what = source.0.display().to_string();
            let (file, readonly) = (Arc::new(file), source.1);
            spec.disks.push(Disk { serial: serial.clone(), file, readonly, what });
            names.insert(source, serial);
        }
        Ok(names)
    }
}

fn open((path, readonly): &Source) -> io::Result<File> {
    let found = host::find(Path::new(path))?;
    OpenOptions::new().read(true).write(!readonly).open(host::by_descriptor(&found))
}
