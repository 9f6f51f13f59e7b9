//! System calls that are newer than a seccomp profile: they work, or are not there.

use std::fs::File;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{Attempt, Found, require};

/// fchmodat2(2), of Linux 6.6: what glibc 2.39 has chmod(1) and tar call first.
const FCHMODAT2: libc::c_long = 452;

/// A number that no kernel has given to a call.
const NOBODYS: libc::c_long = 2000;

/// Neither call may be answered as if it were there and had failed.
pub fn check(dir: &Path) -> Found {
    let path = dir.join("called");
    File::create(&path).at("create")?;
    let name = [path.as_os_str().as_bytes(), b"\0"].concat();
    for number in [FCHMODAT2, NOBODYS] {
        // SAFETY: the name ends with a NUL and outlives the call; the other call is none.
        let done = unsafe { libc::syscall(number, libc::AT_FDCWD, name.as_ptr(), 0o600, 0) };
        let error = Error::last_os_error();
        require!(
            done == 0 || error.raw_os_error() == Some(libc::ENOSYS),
            "call {number}: {error}, as if this were a kernel that has it"
        );
    }
    Ok(())
}
