//! A network device of the VM, with or without its interface.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use bulkhead_protocols::{address_text, device_address};

/// Where sysfs has the devices of virtio's bus.
const DEVICES: &str = "/sys/bus/virtio/devices";

/// Where sysfs has the driver of the network devices among them.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";

/// A device.
pub struct Device {
    /// Its name on the bus.
    name: String,
    /// The number of its interface, if it has one that is to stay.
    interface: Option<u32>,
    /// Takes its interface away, for which the kernel waits several ticks.
    leaving: Option<JoinHandle<()>>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// The devices that the VM came with, by their numbers; each has its interface.
pub fn list() -> Vec<(u32, Device)> {
    // A kernel without the driver has none.
    let entries = fs::read_dir(DRIVER).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("virtio")).filter_map(Device::found).collect()
}

impl Device {
    /// A device with what the shim calls it, by the address with which it came.
    fn found(name: String) -> Option<(u32, Device)> {
        let interface = interface(&name).ok()?;
        let number = number(fs::read_to_string(interface.join("address")).ok()?.trim())?;
        let interface = Some(index(&interface).ok()?);
        Some((number, Device { name, interface, leaving: None }))
    }

    /// The number of its interface, which is made where there is none.
    pub fn bind(&mut self) -> io::Result<u32> {
        if let Some(index) = self.interface {
            return Ok(index);
        }
        self.settle();
        fs::write(Path::new(DRIVER).join("bind"), &self.name)?;
        let index = index(&interface(&self.name)?)?;
        self.interface = Some(index);
        Ok(index)
    }

    /// Begins to take its interface away, if it has one.
    pub fn unbind(&mut self) {
        if self.interface.take().is_none() {
            return;
        }
        let name = self.name.clone();
        let unbind = move || {
            if let Err(error) = fs::write(Path::new(DRIVER).join("unbind"), &name) {
                log::warn!("{name} keeps its interface: {error}");
            }
        };
        let keeps = |error: &io::Error| log::warn!("{self} keeps its interface: {error}");
        self.leaving = Builder::new().spawn(unbind).inspect_err(keeps).ok();
    }

    /// Returns when an interface that was to be taken away is gone.
    pub fn settle(&mut self) {
        if let Some(thread) = self.leaving.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// Where sysfs has a device's interface.
fn interface(name: &str) -> io::Result<PathBuf> {
    let mut interfaces = fs::read_dir(Path::new(DEVICES).join(name).join("net"))?;
    let first = interfaces.next().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    first.map(|entry| entry.path())
}

fn index(interface: &Path) -> io::Result<u32> {
    let index = fs::read_to_string(interface.join("ifindex"))?;
    index.trim().parse().map_err(io::Error::other)
}

fn number(address: &str) -> Option<u32> {
    let number = u8::from_str_radix(address.get(15..)?, 16).ok()?;
    (address_text(device_address(number)) == address).then_some(number.into())
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_device_is_known_by_its_address() {
        assert_eq!(number("02:62:75:6c:6b:0a"), Some(10));
        for other in ["", "02:62:75:6c:6b", "02:62:75:6c:6c:0a", "de:ad:be:ef:00:01"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
