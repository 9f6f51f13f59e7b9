//! The end of the guest.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

use crate::cgroup::{Cgroup, Watcher};

/// How long killed processes may take to be gone.
const DEADLINE: Duration = Duration::from_secs(2);

/// Ends every container, lets go of the given mounts, and writes everything to where it belongs.
/// What can't be done is logged: the VM is over in any case.
pub async fn quiesce(watcher: &Watcher, mounts: &[String]) {
    let containers = Cgroup::of_all();
    containers.kill_if_populated();
    if let Err(error) = containers.emptied(watcher, DEADLINE).await {
        log::warn!("{error}");
    }
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
