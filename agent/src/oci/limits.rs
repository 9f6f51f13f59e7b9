//! Resource limits of a process, set from outside or just before its program.
//!
//! Left to libcontainer they would hold during its own work, which fails with few descriptors or
//! little memory.

use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxResources, PosixRlimit, PosixRlimitType};
use nix::errno::Errno;

use super::failure::Failure;
use crate::cgroup::{self, CONTAINERS};

/// Leaves out that no huge pages of a size may be used which this kernel does not know: the kubelet says so of all sizes
/// that its host knows.
pub fn drop_unknown_sizes(resources: &mut LinuxResources) {
    let known = |size: &str| {
        let file = format!("{}/{CONTAINERS}/hugetlb.{size}.max", cgroup::ROOT);
        Path::new(&file).exists()
    };
    if let Some(limits) = resources.hugepage_limits_mut() {
        limits.retain(|limit| limit.limit() != 0 || known(limit.page_size()));
    }
}

/// The limit of locked memory that a container inherits.
///
/// # Errors
/// What the kernel says.
pub fn locked_memory() -> Result<libc::rlimit, Failure> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    Errno::result(result).map_err(|error| Failure::io("cannot read RLIMIT_MEMLOCK", error))?;
    Ok(limit)
}

/// Sets the limits of a process; 0 is this one.
///
/// # Errors
/// The limit that the kernel refused.
pub fn set_all(pid: i32, limits: &[PosixRlimit]) -> Result<(), Failure> {
    limits.iter().try_for_each(|limit| {
        let value = libc::rlimit { rlim_cur: limit.soft(), rlim_max: limit.hard() };
        set(pid, number(limit.typ()), value).map_err(|failure| {
            Failure::invalid(format!("process.rlimits: {:?}: {failure}", limit.typ()))
        })
    })
}

/// Sets one limit of a process.
///
/// # Errors
/// What the kernel says.
pub fn set(pid: i32, resource: Resource, limit: libc::rlimit) -> Result<(), Failure> {
    // SAFETY: the new limit is read, and no old one is asked for.
    let result = unsafe { libc::prlimit(pid, resource, &raw const limit, std::ptr::null_mut()) };
    Errno::result(result).map(drop).map_err(|error| {
        let libc::rlimit { rlim_cur, rlim_max } = limit;
        Failure::io(format_args!("cannot set {rlim_cur}, at most {rlim_max}"), error)
    })
}

/// Which of an exec's limits are for libcontainer to set, early, when they may still be raised; the
/// others only get lower, and are for the last moment.
pub fn is_harmless(limit: &PosixRlimit) -> bool {
    use PosixRlimitType::*;
    matches!(
        limit.typ(),
        RlimitMemlock
            | RlimitMsgqueue
            | RlimitNice
            | RlimitNproc
            | RlimitRtprio
            | RlimitRttime
            | RlimitSigpending
            | RlimitLocks
    )
}

/// The kernel's number of a limit.
type Resource = libc::__rlimit_resource_t;

fn number(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
