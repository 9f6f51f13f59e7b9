//! Disks of the VM, by their serial numbers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_protocols::DISK_BY_SERIAL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd;

/// Where sysfs has block devices.
const BLOCK: &str = "/sys/block";

/// Where the kernel makes the nodes of devices.
const NODES: &str = "/dev";

/// How long a disk that the host has plugged in may take to be there.
const DEADLINE: Duration = Duration::from_secs(20);

/// The node of a disk that is named by its serial number, once it is there. What names no disk so is returned as it is.
///
/// # Errors
/// `TimedOut` if it does not come, and what the kernel says.
pub fn node(source: &str) -> io::Result<PathBuf> {
    let Some(serial) = source.strip_prefix(DISK_BY_SERIAL) else {
        return Ok(PathBuf::from(source));
    };
    if let Some(node) = find(serial) {
        return Ok(node);
    }
    let nodes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    nodes.add_watch(NODES, AddWatchFlags::IN_CREATE)?;
    let end = Instant::now() + DEADLINE;
    // It may have come before the watch.
    while find(serial).is_none() {
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).map_err(io::Error::other)?;
        let mut waits = [PollFd::new(nodes.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waits, left)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        nodes.read_events()?;
    }
    find(serial).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn find(serial: &str) -> Option<PathBuf> {
    let disks = fs::read_dir(BLOCK).ok()?.flatten();
    let mut found = disks.filter(|disk| {
        fs::read_to_string(disk.path().join("serial")).is_ok_and(|text| text.trim_end() == serial)
    });
    let node = Path::new(NODES).join(found.next()?.file_name());
    node.exists().then_some(node)
}
