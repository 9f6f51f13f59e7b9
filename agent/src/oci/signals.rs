//! Signal dispositions, which execve(2) hands on where they are "ignore".

/// The kernel's number of signals.
const LAST: libc::c_int = 64;

/// `struct sigaction` of the kernel, which is not the C library's.
#[repr(C)]
struct Action {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Gives every signal its default back.
///
/// A Rust program ignores SIGPIPE, and the C library's posix_spawn lets its children ignore the two
/// signals that it uses itself (32 and 33). Its own functions can't change those, so the system call
/// is made directly.
pub fn reset() {
    let default = Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for number in 1..=LAST {
        // SAFETY: the action is valid and installs no handler. Signals that allow no change give an
        // error, which changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                &raw const default,
                std::ptr::null_mut::<Action>(),
                size_of::<u64>(),
            );
        }
    }
}
