//! The first process of a PID namespace that containers share: it adopts orphans, collects them, and does
//! nothing else. It is this program under the name that Kubernetes' users know from `ps`.

use std::ffi::CString;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};

use crate::error::{Error, Result};

/// The program's name; main tells by it what it is to do.
pub const NAME: &str = "/pause";

/// Its root: a directory in which there is nothing.
const EMPTY: &str = "/run/bulkhead/empty";

/// Who it is, as Kubernetes' own `pause` image has it.
const USER: u32 = 65535;

/// Starts it in a PID namespace of its own. Returns its number in the guest's.
///
/// # Errors
/// [`Error::Internal`] if there can't be another process.
pub fn spawn() -> Result<u32> {
    let failed = |error: std::io::Error| Error::io("cannot make a PID namespace", error);
    std::fs::create_dir_all(EMPTY).map_err(failed)?;
    let name = CString::new(NAME).map_err(|error| failed(error.into()))?;
    let arguments = [name.as_ptr(), std::ptr::null()];
    let flags = libc::c_long::from(libc::CLONE_NEWPID | libc::SIGCHLD);
    // SAFETY: without CLONE_VM it is a fork. The child makes two system calls, with what was prepared before;
    // `arguments` ends with a null pointer, and so does the environment, which is empty.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if pid == 0 {
            let environment = [std::ptr::null()];
            libc::execve(c"/proc/self/exe".as_ptr(), arguments.as_ptr(), environment.as_ptr());
            libc::_exit(127);
        }
        pid
    };
    let pid = Errno::result(pid).map_err(|errno| failed(errno.into()))?;
    // Its end would be all its containers'.
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000").map_err(failed)?;
    u32::try_from(pid).map_err(|error| failed(std::io::Error::other(error)))
}

/// Collects whatever ends. It returns only if it can't.
pub fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> nix::Result<std::convert::Infallible> {
    // Nothing of the guest is to be seen through it, and what is mounted in the guest now is not to stay for its sake.
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    mount(Some(EMPTY), EMPTY, NOTHING, MsFlags::MS_BIND, NOTHING)?;
    chdir(EMPTY)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let ended = SigSet::from(Signal::SIGCHLD);
    ended.thread_block()?;
    setgroups(&[])?;
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                // A status that nix has no name for is collected all the same.
                Ok(_) | Err(_) => {}
            }
        }
        ended.wait()?;
    }
}
