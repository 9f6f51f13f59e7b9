//! Disks of the VM, by their serial numbers.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_protocols::DISK_BY_SERIAL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// Where sysfs has block devices.
const BLOCK: &str = "/sys/class/block";

/// How long a disk that the host has plugged in may take to be there.
const DEADLINE: Duration = Duration::from_secs(20);

/// The group of the kernel's own notices of devices.
const KERNEL: u32 = 1;

/// The node of a disk that is named by its serial number, once it is there. What names no disk so is returned as it is.
///
/// # Errors
/// `TimedOut` if it does not come, and what the kernel says.
pub fn node(source: &str) -> io::Result<PathBuf> {
    let Some(serial) = source.strip_prefix(DISK_BY_SERIAL) else {
        return Ok(PathBuf::from(source));
    };
    // Before the first look: a disk that comes after it is told of.
    let notices = notices()?;
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(node) = find(serial) {
            return Ok(node);
        }
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(notices.as_fd(), PollFlags::POLLIN)], left)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // One at a time; where some were lost, that is one, too.
        let _ = recv(notices.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT);
    }
}

/// The kernel's notices of devices, each sent when the device can be used.
fn notices() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
    Ok(socket)
}

fn find(serial: &str) -> Option<PathBuf> {
    let disks = fs::read_dir(BLOCK).ok()?.flatten();
    let mut found = disks.filter(|disk| {
        fs::read_to_string(disk.path().join("serial")).is_ok_and(|text| text.trim_end() == serial)
    });
    let node = Path::new("/dev").join(found.next()?.file_name());
    // A disk that is known and not usable yet has still its notice to come.
    fs::File::open(&node).is_ok().then_some(node)
}
