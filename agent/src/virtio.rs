//! The drivers of virtio devices, as sysfs has them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where sysfs has the bus.
const BUS: &str = "/sys/bus/virtio";

/// A driver by its name on the bus.
pub struct Driver(pub &'static str);

impl Driver {
    /// The names of the devices that it has.
    ///
    /// # Errors
    /// The kernel has no such driver.
    pub fn devices(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.path())?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| name.starts_with("virtio")).collect())
    }

    /// Has it take a device.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(&self, device: &str) -> io::Result<()> {
        fs::write(self.path().join("bind"), device)
    }

    /// Has it let go of a device.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unbind(&self, device: &str) -> io::Result<()> {
        fs::write(self.path().join("unbind"), device)
    }

    fn path(&self) -> PathBuf {
        Path::new(BUS).join("drivers").join(self.0)
    }
}

/// Where sysfs has a device.
pub fn device(name: &str) -> PathBuf {
    Path::new(BUS).join("devices").join(name)
}
