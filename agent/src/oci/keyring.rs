//! The session keyring of a container: one for all its processes, and for no others.

use std::ffi::CString;

use nix::errno::Errno;

use crate::error::{Error, Result};

/// `KEYCTL_JOIN_SESSION_KEYRING` and `KEYCTL_SETPERM` of keyctl(2).
const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SETPERM: libc::c_long = 5;

/// All rights for who has it, and for its user all but to write and to change: an exec finds it by its name.
const RIGHTS: libc::c_long = 0x3f1b_0000;

/// Joins the keyring of a container, which is made if there is none, under the name that runc gives it.
///
/// # Errors
/// What the kernel says; one without keyrings is fine.
pub fn join(container: &str) -> Result<()> {
    let failed = |error| Error::io("cannot join the container's session keyring", error);
    let name = CString::new(format!("_ses.{container}")).map_err(|_| failed(Errno::EINVAL))?;
    // SAFETY: the call reads the name, which ends with a zero.
    let keyring = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    let keyring = match Errno::result(keyring) {
        Err(Errno::ENOSYS) => return Ok(()),
        keyring => keyring.map_err(failed)?,
    };
    // SAFETY: the call takes two numbers.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, keyring, RIGHTS) };
    Errno::result(done).map(drop).map_err(failed)
}
