//! Whether the kernel can confine the VMM to its own files (landlock(7)).

/// The rules that cloud-hypervisor insists on came with this version of the interface: file
/// truncation, Linux 6.2.
const NEEDED: libc::c_long = 3;

/// Whether cloud-hypervisor's `--landlock` works on this kernel; where it does not, the VMM would
/// refuse to start with it.
pub(super) fn usable() -> bool {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag, no attributes and size 0, the call only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    version >= NEEDED
}
