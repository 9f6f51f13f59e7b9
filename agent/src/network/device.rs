//! A network device of the VM, with or without its interface.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use bulkhead_protocols::{address_text, device_address};

use crate::virtio::{self, Driver};

/// The driver of virtio's network devices.
const DRIVER: Driver = Driver("virtio_net");

/// A device by its name on the bus.
pub struct Device(String);

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The devices that the VM came with, by their numbers.
pub fn list() -> Vec<(u32, Device)> {
    // A kernel without the driver has none.
    let devices = DRIVER.devices().unwrap_or_default().into_iter().map(Device);
    devices.filter_map(|device| Some((device.number()?, device))).collect()
}

impl Device {
    /// What the shim calls it, by the address with which it came.
    fn number(&self) -> Option<u32> {
        let text = fs::read_to_string(self.interface().ok()?.join("address")).ok()?;
        number(text.trim())
    }

    /// Where sysfs has its interface.
    fn interface(&self) -> io::Result<PathBuf> {
        let mut interfaces = fs::read_dir(virtio::device(&self.0).join("net"))?;
        interfaces
            .next()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?
            .map(|entry| entry.path())
    }

    /// Makes its interface; returns the interface's number.
    pub fn bind(&self) -> io::Result<u32> {
        DRIVER.bind(&self.0)?;
        let index = fs::read_to_string(self.interface()?.join("ifindex"))?;
        index.trim().parse().map_err(io::Error::other)
    }

    /// Takes its interface away.
    pub fn unbind(&self) -> io::Result<()> {
        DRIVER.unbind(&self.0)
    }
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
