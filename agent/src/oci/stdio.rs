//! The owner of a process's pipes.

use std::os::fd::BorrowedFd;

use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Uid, fchown};

use crate::error::{Error, Result};

/// Gives the pipes that are this helper's stdio, and will be the process's, to the process's user,
/// who may want to open `/dev/stdout` again. As with runc, the group stays.
///
/// # Errors
/// What the kernel says.
pub fn give_to(uid: u32) -> Result<()> {
    let failed = |error| Error::io("cannot give the process its stdio", error);
    for number in 0..=2 {
        // SAFETY: the standard descriptors are open for as long as this helper lives.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let status = fstat(fd).map_err(failed)?;
        // /dev/null is everyone's.
        let is_pipe = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO;
        if is_pipe && status.st_uid != uid {
            fchown(fd, Some(Uid::from_raw(uid)), None).map_err(failed)?;
        }
    }
    Ok(())
}
