//! The end of the guest.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use bulkhead_protocols::SCRATCH_DIR;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

use crate::cgroup::Cgroup;

/// How long killed processes may take to be gone.
const DEADLINE: Duration = Duration::from_secs(2);

nix::ioctl_read! {
    /// `FS_IOC_SHUTDOWN` of linux/fs.h, which reads its argument whatever its name says.
    shut_down, b'X', 125, u32
}

/// Write nothing any more, not even the log.
const NO_LOG: u32 = 2;

/// Keeps what is not written yet from being written: the disk ends with the VM, and so would that. A file system that
/// cannot do that writes it; where nothing is mounted, nothing happens.
fn abandon(mount: &Path) {
    if let Ok(root) = File::open(mount) {
        let mut flags = NO_LOG;
        // SAFETY: the descriptor is open, and the flags live until the call returns.
        let _ = unsafe { shut_down(root.as_raw_fd(), &raw mut flags) };
    }
}

/// Ends every container, lets go of the given mounts, and writes everything to where it belongs.
/// What can't be done is logged: the VM is over in any case.
pub async fn quiesce(mounts: &[String]) {
    let containers = Cgroup::of_all();
    containers.kill_if_populated();
    if let Err(error) = containers.emptied(DEADLINE).await {
        log::warn!("{error}");
    }
    abandon(Path::new(SCRATCH_DIR));
    for target in mounts.iter().rev() {
        if let Err(error) = umount2(target.as_str(), MntFlags::UMOUNT_NOFOLLOW) {
            log::warn!("cannot unmount {target}: {error}");
        }
    }
    sync();
}

/// Switches the machine off. One without ACPI has no switch: it can only be reset, and its VMM ends
/// at that.
pub fn power_off() -> nix::Result<Infallible> {
    let acpi = Path::new("/sys/firmware/acpi").exists();
    reboot(if acpi { RebootMode::RB_POWER_OFF } else { RebootMode::RB_AUTOBOOT })
}
