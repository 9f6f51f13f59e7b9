//! A network device of the VM, with or without its interface.

use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use bulkhead_protocols::{address_text, device_address};

use crate::virtio::{self, Driver};

/// The driver of virtio's network devices.
const DRIVER: Driver = Driver("virtio_net");

/// A device.
pub struct Device {
    /// Its name on the bus.
    name: String,
    interface: Interface,
}

/// What there is of a device's interface.
enum Interface {
    /// It is there, under this number.
    Is(u32),
    /// It is being taken away, for which the kernel waits several ticks.
    Goes(JoinHandle<()>),
    /// There is none.
    None,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// The devices that the VM came with, by their numbers; each has its interface.
pub fn list() -> Vec<(u32, Device)> {
    // A kernel without the driver has none.
    let names = DRIVER.devices().unwrap_or_default().into_iter();
    names.filter_map(Device::found).collect()
}

impl Device {
    /// A device with what the shim calls it, by the address with which it came.
    fn found(name: String) -> Option<(u32, Device)> {
        let interface = interface(&name).ok()?;
        let number = number(fs::read_to_string(interface.join("address")).ok()?.trim())?;
        let interface = Interface::Is(index(&interface).ok()?);
        Some((number, Device { name, interface }))
    }

    /// The number of its interface, which is made where there is none.
    pub fn bind(&mut self) -> io::Result<u32> {
        let index = match self.interface {
            Interface::Is(index) => return Ok(index),
            _ => {
                self.settle();
                DRIVER.bind(&self.name)?;
                index(&interface(&self.name)?)?
            }
        };
        self.interface = Interface::Is(index);
        Ok(index)
    }

    /// Begins to take its interface away, if it has one.
    pub fn unbind(&mut self) {
        if let Interface::Is(_) = self.interface {
            let name = self.name.clone();
            let unbind = move || {
                if let Err(error) = DRIVER.unbind(&name) {
                    log::warn!("{name} keeps its interface: {error}");
                }
            };
            match Builder::new().spawn(unbind) {
                Ok(thread) => self.interface = Interface::Goes(thread),
                Err(error) => log::warn!("{self} keeps its interface: {error}"),
            }
        }
    }

    /// Returns when an interface that was to be taken away is gone.
    pub fn settle(&mut self) {
        if let Interface::Goes(_) = self.interface
            && let Interface::Goes(thread) = mem::replace(&mut self.interface, Interface::None)
        {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// Where sysfs has a device's interface.
fn interface(name: &str) -> io::Result<PathBuf> {
    let mut interfaces = fs::read_dir(virtio::device(name).join("net"))?;
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
