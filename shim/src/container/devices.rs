//! Block devices that a container gets: each becomes a disk of the VM.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use rustix::fs::{major, minor};

use super::error::SpecError;
use crate::storage::host;
use crate::storage::share::ShareError;

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its node.
    pub path: PathBuf,
    /// Its number, as the spec has it.
    pub number: (u32, u32),
    /// Whether the container may only read it.
    pub read_only: bool,
}

impl BlockDevice {
    /// What a VM needs of it.
    pub fn source(&self) -> (PathBuf, bool) {
        (self.path.clone(), self.read_only)
    }

    /// Those that a spec asks for one by one: with a rule of their own in `linux.resources.devices`. A container that
    /// may use every device of its host (privileged) is meant to have the guest's.
    ///
    /// # Errors
    /// [`SpecError::Source`] if the host has no such device.
    pub fn all_of(spec: &Spec) -> Result<Vec<BlockDevice>, SpecError> {
        let Some(linux) = spec.linux() else { return Ok(Vec::new()) };
        let mut found: Vec<BlockDevice> = Vec::new();
        for (index, device) in linux.devices().iter().flatten().enumerate() {
            let Some(number) = number(device) else { continue };
            let mut allowing = rules(linux, device, true).peekable();
            if allowing.peek().is_none() {
                continue;
            }
            // One device may have several names.
            if found.iter().any(|found| found.number == number) {
                continue;
            }
            let (path, node) = node(number);
            let path = node.map_err(|source| SpecError::Source {
                field: format!("linux.devices[{index}]"),
                source: ShareError::Source { path, source },
            })?;
            let writes =
                |rule: &LinuxDeviceCgroup| rule.access().as_deref().is_none_or(|a| a.contains('w'));
            let may_write = allowing.any(writes) && !rules(linux, device, false).any(writes);
            found.push(BlockDevice { path, number, read_only: !may_write });
        }
        Ok(found)
    }
}

/// Leaves out the block devices that are not the container's: in the guest their numbers are other devices'.
pub fn leave_out_others(linux: &mut Linux) {
    let mut devices = linux.devices_mut().take().unwrap_or_default();
    devices
        .retain(|device| number(device).is_none() || rules(linux, device, true).next().is_some());
    linux.set_devices(Some(devices));
}

/// The number of a block device; none of any other.
fn number(device: &LinuxDevice) -> Option<(u32, u32)> {
    let is_block = device.typ() == LinuxDeviceType::B;
    let number = (u32::try_from(device.major()).ok()?, u32::try_from(device.minor()).ok()?);
    is_block.then_some(number)
}

/// The rules that allow, or deny, this device alone.
fn rules<'a>(
    linux: &'a Linux,
    device: &'a LinuxDevice,
    allow: bool,
) -> impl Iterator<Item = &'a LinuxDeviceCgroup> {
    let resources = linux.resources().iter();
    resources.flat_map(|resources| resources.devices().iter().flatten()).filter(move |rule| {
        rule.allow() == allow
            && rule.typ() == Some(LinuxDeviceType::B)
            && rule.major() == Some(device.major())
            && rule.minor() == Some(device.minor())
    })
}

/// The host's own node of a block device, and where the kernel was asked for it.
fn node((wanted_major, wanted_minor): (u32, u32)) -> (PathBuf, io::Result<PathBuf>) {
    let asked = PathBuf::from(format!("/sys/dev/block/{wanted_major}:{wanted_minor}"));
    let found = fs::read_to_string(asked.join("uevent")).and_then(|text| {
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let node = Path::new("/dev").join(name.ok_or(io::ErrorKind::NotFound)?);
        let device = fs::metadata(host::by_descriptor(&host::find(&node)?))?.rdev();
        let same = (major(device), minor(device)) == (wanted_major, wanted_minor);
        if same { Ok(node) } else { Err(io::ErrorKind::NotFound.into()) }
    });
    (asked, found)
}
