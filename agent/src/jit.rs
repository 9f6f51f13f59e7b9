//! The kernel's compiler of BPF programs (its admin-guide/sysctl/net.rst, `bpf_jit_enable`).
//!
//! The first program that it compiles takes 2 MiB, of which a container's device rules fill a few hundred bytes. They are
//! asked for when a device is opened; what would gain by being compiled, as a seccomp profile, is loaded later.

use std::fs;

const SWITCH: &str = "/proc/sys/net/core/bpf_jit_enable";

/// Does a work with the compiler off, where the kernel lets it be switched. Another container that is made meanwhile may
/// switch it on earlier, and have this one's rules compiled.
pub fn off<T>(work: impl FnOnce() -> T) -> T {
    let switched = fs::write(SWITCH, "0").is_ok();
    let done = work();
    if switched {
        // What could be written before can be written again.
        let _ = fs::write(SWITCH, "1");
    }
    done
}
