//! Resource limits of a process, set from outside or just before its program.
//!
//! Left to libcontainer they would hold during its own work, which fails with few descriptors or
//! little memory.

use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxBlockIo, LinuxResources, PosixRlimit, PosixRlimitType};
use nix::errno::Errno;

use crate::cgroup::{self, CONTAINERS};
use crate::error::{Error, Result};

/// Adapts limits to this kernel, and to libcgroups. That no huge pages of a size may be used which is not known here is
/// left out: the kubelet says so of all sizes that its host knows. Numbers of processors and of memory nodes are the
/// host's, and say nothing of the guest's.
pub fn adapt(resources: &mut LinuxResources) {
    let known = |size: &str| {
        let file = format!("{}/{CONTAINERS}/hugetlb.{size}.max", cgroup::ROOT);
        Path::new(&file).exists()
    };
    if let Some(limits) = resources.hugepage_limits_mut() {
        limits.retain(|limit| limit.limit() != 0 || known(limit.page_size()));
    }
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
        // None is not said, here and below.
        let (quota, period) =
            (cpu.quota().filter(|it| *it != 0), cpu.period().filter(|it| *it != 0));
        cpu.set_quota(quota).set_period(period);
    }
    if let Some(memory) = resources.memory_mut() {
        let (limit, swap) =
            (memory.limit().filter(|it| *it != 0), memory.swap().filter(|it| *it != 0));
        memory.set_limit(limit).set_swap(swap);
        match (limit, swap) {
            // libcgroups wants a limit beside it.
            (None, Some(-1)) => {
                memory.set_swap(None);
                add_unified(resources, "memory.swap.max", "max".to_owned());
            }
            // As much as memory is none beside it, which libcgroups does not write.
            (Some(limit), Some(swap)) if limit == swap && limit > 0 => {
                add_unified(resources, "memory.swap.max", "0".to_owned());
            }
            _ => {}
        }
    }
    // None is no limit, where libcgroups allows one.
    if let Some(pids) = resources.pids_mut()
        && pids.limit() == 0
    {
        pids.set_limit(-1);
    }
    // libcgroups computes what becomes of it in 16 bits, which it leaves: runc's formula, from 10..1000 to 1..10000.
    if let Some(weight) = resources.block_io().as_ref().and_then(LinuxBlockIo::weight) {
        if let Some(block_io) = resources.block_io_mut() {
            block_io.set_weight(None);
        }
        if weight > 0 {
            let weight = 1 + u64::from(weight.saturating_sub(10)) * 9999 / 990;
            add_unified(resources, "io.weight", weight.to_string());
        }
    }
}

/// Says it in cgroup v2's own words, unless the spec does.
fn add_unified(resources: &mut LinuxResources, file: &str, value: String) {
    let mut unified = resources.unified().clone().unwrap_or_default();
    unified.entry(file.to_owned()).or_insert(value);
    resources.set_unified(Some(unified));
}

/// The limit of locked memory that a container inherits.
///
/// # Errors
/// What the kernel says.
pub fn locked_memory() -> Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    Errno::result(result).map_err(|error| Error::io("cannot read RLIMIT_MEMLOCK", error))?;
    Ok(limit)
}

/// Sets the limits of a process; 0 is this one.
///
/// # Errors
/// The limit that the kernel refused.
pub fn set_all(pid: i32, limits: &[PosixRlimit]) -> Result<()> {
    limits.iter().try_for_each(|limit| {
        let value = libc::rlimit { rlim_cur: limit.soft(), rlim_max: limit.hard() };
        // The specification lists them in the kernel's order.
        set(pid, limit.typ() as Resource, value).map_err(|error| {
            Error::InvalidArgument(format!("process.rlimits: {:?}: {error}", limit.typ()))
        })
    })
}

/// Sets one limit of a process.
///
/// # Errors
/// What the kernel says.
pub fn set(pid: i32, resource: Resource, limit: libc::rlimit) -> Result<()> {
    // SAFETY: the new limit is read, and no old one is asked for.
    let result = unsafe { libc::prlimit(pid, resource, &raw const limit, std::ptr::null_mut()) };
    Errno::result(result).map(drop).map_err(|error| {
        let libc::rlimit { rlim_cur, rlim_max } = limit;
        Error::io(format_args!("cannot set {rlim_cur}, at most {rlim_max}"), error)
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
