//! The kernel's compiler of BPF programs (its admin-guide/sysctl/net.rst, `bpf_jit_enable`).
//!
//! The first program that it compiles takes 2 MiB, of which a container's device rules fill a few hundred bytes. They are
//! asked for when a device is opened; what would gain by being compiled comes with a seccomp profile, or is the
//! containers' own.

use std::fs;
use std::io;

const SWITCH: &str = "/proc/sys/net/core/bpf_jit_enable";

/// The compiler is off as long as this lives, and on afterwards: one that was killed does not leave it off for good. Another
/// container that is made meanwhile may have it on earlier, and these rules compiled.
pub struct Off(());

impl Off {
    /// Switches it off.
    ///
    /// # Errors
    /// Where the kernel has no such switch, since it has no compiler, or does not let it go.
    pub fn switch() -> io::Result<Off> {
        fs::write(SWITCH, "0").map(Off)
    }
}

impl Drop for Off {
    fn drop(&mut self) {
        // What could be written before can be written again.
        let _ = fs::write(SWITCH, "1");
    }
}
