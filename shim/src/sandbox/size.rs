//! How large a sandbox's guest is: its containers have room for all that their limits allow, and the sandbox's control
//! group on the host has room for the guest.

use std::collections::HashMap;

use bulkhead_protocols::cri::LinuxContainerResources;
use nix::unistd::{SysconfVar, sysconf};
use oci_spec::runtime::{LinuxResources, Spec};

use super::Pod;
use crate::cgroup;
use crate::config::Config;
use crate::vmm::{Accel, Selection};

/// What a guest's kernel and agent take beside the containers, in bytes, and the kernel for each processor; and which part
/// of the guest's memory goes to its descriptors of pages.
const GUEST: u64 = 46 << 20;
const PROCESSOR: u64 = 2 << 20;
const DESCRIPTORS: u64 = 64;

/// What VMM, file server and shim take beside the guest, in bytes; without KVM there is the translated code, too
/// (`tb-size` on QEMU's command line). And which part of the guest's memory goes to tables of pages of 4 KiB: the VMM's,
/// the file server's and KVM's, and tmpfs's own.
const HOST: u64 = 40 << 20;
const HOST_TCG: u64 = 192 << 20;
const TABLES: u64 = 120;

/// The weight of one processor (Kubernetes' `MilliCPUToShares`).
const SHARES: i64 = 1024;

/// The period of a quota that comes without one, in microseconds: the kernel's own (its `sched-bwc.rst`).
const PERIOD: i64 = 100_000;

/// A limit of so much is a mark that there is none.
const UNLIMITED: u64 = 1 << 60;

/// vCPUs, and bytes of memory, of a guest for this pod: what the configuration says, or else its annotations; without
/// annotations it is as much more as its containers may use, and as much less as its control group has room for.
pub fn of(config: &Config, pod: &Pod, accel: Accel) -> (u32, u64) {
    let said = |key: &str| Config::annotated(&pod.annotations, key);
    let (mut vcpus, mut bytes) = (config.vcpus, config.memory);
    if !said("vcpus") {
        let wanted = processors(&pod.resources).min(host(SysconfVar::_NPROCESSORS_ONLN));
        vcpus = vcpus.max(u32::try_from(wanted).unwrap_or(u32::MAX).min(Config::VCPUS.1));
    }
    if !said("memory") {
        let all = host(SysconfVar::_PHYS_PAGES).saturating_mul(host(SysconfVar::PAGE_SIZE));
        let limit = u64::try_from(pod.resources.memory_limit_in_bytes).unwrap_or(0);
        let limit = if limit < UNLIMITED { limit.min(all) } else { 0 };
        bytes = memory(bytes, limit, vcpus, cgroup::memory_limit(&pod.cgroup), accel);
    }
    (vcpus, bytes)
}

/// The same of a sandbox with this spec; none where it cannot be known, of which the sandbox says why.
pub fn of_spec(config: &Config, spec: &Spec) -> Option<(u32, u64)> {
    let pod = Pod::of_spec(spec);
    let own = config.clone().with(&pod.annotations).ok()?;
    Some(of(&own, &pod, Selection::of(&own).ok()?.accel))
}

/// A number that the host's kernel knows.
fn host(what: SysconfVar) -> u64 {
    sysconf(what).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(1)
}

/// How many processors these resources are, at least.
fn processors(resources: &LinuxContainerResources) -> u64 {
    let whole = |parts: i64, of: i64| u64::try_from(parts).unwrap_or(0).div_ceil(of.unsigned_abs());
    let period = if resources.cpu_period > 0 { resources.cpu_period } else { PERIOD };
    whole(resources.cpu_quota, period).max(whole(resources.cpu_shares, SHARES))
}

/// The memory of a guest whose containers may use `limit` bytes together, if that is said, and whose control group may
/// use `most`, if that is limited.
fn memory(usual: u64, limit: u64, vcpus: u32, most: Option<u64>, accel: Accel) -> u64 {
    let beside = match accel {
        Accel::Kvm => HOST,
        Accel::Tcg => HOST_TCG,
    };
    let (smallest, largest) = Config::MEMORY;
    let most = most.map_or(largest, |bytes| {
        let room = bytes.saturating_sub(beside);
        (room - room / TABLES).clamp(smallest, largest)
    });
    let own = limit / DESCRIPTORS + GUEST + u64::from(vcpus) * PROCESSOR;
    let least = if limit == 0 { 0 } else { limit + own };
    let bytes = usual.clamp(least.min(most), most);
    bytes - bytes % Config::MEMORY_STEP
}

/// What the CRI plugin says of a pod by the annotations of its sandbox container.
pub fn announced(annotations: &HashMap<String, String>) -> LinuxContainerResources {
    let said = |name: &str| {
        let value = annotations.get(&format!("io.kubernetes.cri.sandbox-{name}"));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    LinuxContainerResources {
        cpu_period: said("cpu-period"),
        cpu_quota: said("cpu-quota"),
        cpu_shares: said("cpu-shares"),
        memory_limit_in_bytes: said("memory"),
        ..Default::default()
    }
}

/// What a container that is run alone may use.
pub fn allowed(resources: &LinuxResources) -> LinuxContainerResources {
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
    let mut all = LinuxContainerResources {
        memory_limit_in_bytes: memory.unwrap_or(0),
        ..Default::default()
    };
    if let Some(cpu) = resources.cpu() {
        all.cpu_period = cpu.period().and_then(|it| i64::try_from(it).ok()).unwrap_or(0);
        // Shares are a weight here, and no number of processors.
        all.cpu_quota = cpu.quota().unwrap_or(0);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn containers_have_room_for_their_limits() {
        let of = |limit, most| memory(512 * MIB, limit, 1, most, Accel::Kvm) / MIB;
        assert_eq!(of(0, None), 512);
        assert_eq!(of(100 * MIB, None), 512, "never less than usual for that");
        assert_eq!(of(2048 * MIB, None), 2048 + 32 + 48);
        assert_eq!(of(1000 * MIB, None), 1062, "a multiple of 2 MiB");
        assert_eq!(of(u64::MAX / 2, None), 1 << 20);
        assert_eq!(memory(512 * MIB, 1024 * MIB, 8, None, Accel::Kvm) / MIB, 1024 + 16 + 62);
    }

    #[test]
    fn the_control_group_has_room_for_the_guest() {
        let of = |limit, most: u64| memory(512 * MIB, limit, 1, Some(most * MIB), Accel::Kvm) / MIB;
        assert_eq!(of(0, 4096), 512);
        assert_eq!(of(0, 240), 198);
        assert_eq!(of(128 * MIB, 256), 214);
        assert_eq!(of(16384 * MIB, 16384 + 128), 16384 - 50, "but for its tables");
        assert_eq!(of(1024 * MIB, 1024 + 128), 1024 + 16 + 48);
        assert_eq!(of(8 * MIB, 8), 64, "no guest is smaller");
        assert_eq!(memory(512 * MIB, 0, 1, Some(448 * MIB), Accel::Tcg) / MIB, 252);
    }

    #[test]
    fn processors_are_whole() {
        let of = |quota, period, shares| {
            processors(&LinuxContainerResources {
                cpu_quota: quota,
                cpu_period: period,
                cpu_shares: shares,
                ..Default::default()
            })
        };
        assert_eq!(of(0, 0, 0), 0);
        assert_eq!(of(-1, 100_000, 2), 1);
        assert_eq!(of(150_000, 100_000, 0), 2);
        assert_eq!(of(400_000, 100_000, 1024), 4);
        assert_eq!(of(0, 100_000, 2049), 3);
        assert_eq!(of(200_000, 0, 0), 2, "the kernel's period");
        assert_eq!(of(i64::MAX, 1, i64::MAX), u64::MAX / 2);
    }

    #[test]
    fn the_pods_own_word_is_the_last() {
        let mut pod = Pod {
            resources: LinuxContainerResources {
                memory_limit_in_bytes: 600 << 20,
                ..Default::default()
            },
            ..Default::default()
        };
        let config = Config { memory: 64 * MIB, vcpus: 1, ..Config::default() };
        assert_eq!(of(&config, &pod, Accel::Kvm).1 / MIB, 656);
        pod.annotations.insert("io.bulkhead.memory".to_owned(), "64MiB".to_owned());
        assert_eq!(of(&config, &pod, Accel::Kvm), (1, 64 * MIB));
    }

    #[test]
    fn no_limit_is_none_and_the_host_is_the_last() {
        let config = Config::default();
        let size = |memory_limit_in_bytes, cpu_quota| {
            let resources =
                LinuxContainerResources { memory_limit_in_bytes, cpu_quota, ..Default::default() };
            of(&config, &Pod { resources, ..Default::default() }, Accel::Kvm)
        };
        for unlimited in [-1, 0, i64::MAX, 0x7fff_ffff_ffff_f000] {
            assert_eq!(size(unlimited, -1), (config.vcpus, config.memory));
        }
        let (vcpus, bytes) = size(1 << 50, i64::MAX);
        let all = host(SysconfVar::_PHYS_PAGES) * host(SysconfVar::PAGE_SIZE);
        assert!(bytes > all && bytes - all < all / 32 + 64 * MIB, "{bytes}");
        assert!(vcpus <= 64 && u64::from(vcpus) <= host(SysconfVar::_NPROCESSORS_ONLN));
    }

    #[test]
    fn the_size_is_known_from_the_spec_where_a_vmm_is() {
        let config = Config::default();
        let is = |memory| Selection::of(&config).ok().map(|_| (config.vcpus, memory));
        let mut spec = Spec::default();
        spec.set_linux(None);
        assert_eq!(of_spec(&config, &spec), is(config.memory));
        let said =
            |memory: &str| HashMap::from([("io.bulkhead.memory".to_owned(), memory.to_owned())]);
        spec.set_annotations(Some(said("1GiB")));
        assert_eq!(of_spec(&config, &spec), is(1 << 30));
        spec.set_annotations(Some(said("much")));
        assert_eq!(of_spec(&config, &spec), None);
    }

    #[test]
    fn containerds_annotations_are_read() {
        let list = [("memory", "1048576"), ("cpu-quota", "-1"), ("cpu-period", "x")];
        let list = list.map(|(name, value)| (format!("io.kubernetes.cri.sandbox-{name}"), value));
        let seen = announced(&list.map(|(name, value)| (name, value.to_owned())).into());
        assert_eq!(
            (seen.memory_limit_in_bytes, seen.cpu_quota, seen.cpu_period, seen.cpu_shares),
            (1 << 20, -1, 0, 0)
        );
    }
}
