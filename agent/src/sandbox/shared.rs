//! File systems and the PID namespace that the containers of a sandbox share.

use std::collections::HashSet;
use std::sync::Mutex;

use bulkhead_protocols::agent::Mount;

use super::pause;
use super::submounts::Submounts;
use crate::error::Result;
use crate::setup::mount_one;
use crate::sys::lock;

/// What there is of it; it comes with the first container that needs it, and stays until the VM ends.
#[derive(Default)]
pub struct Shared {
    mounted: Mutex<HashSet<String>>,
    pause: Mutex<Option<u32>>,
    /// What the host has mounted in the share.
    pub submounts: Submounts,
}

impl Shared {
    /// Mounts what is not mounted yet.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn mount(&self, mounts: &[Mount]) -> Result<()> {
        let mut mounted = lock(&self.mounted);
        for mount in mounts {
            if !mounted.contains(&mount.target) {
                mount_one(mount)?;
                mounted.insert(mount.target.clone());
            }
        }
        Ok(())
    }

    /// The first process of the sandbox's PID namespace.
    ///
    /// # Errors
    /// It can't be started.
    pub fn first_process(&self) -> Result<u32> {
        let mut pause = lock(&self.pause);
        match *pause {
            Some(pid) => Ok(pid),
            None => Ok(*pause.insert(pause::spawn()?)),
        }
    }
}
