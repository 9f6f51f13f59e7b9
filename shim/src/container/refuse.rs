//! What the OCI spec of a container may not ask for, since a guest cannot honour it.
//!
//! A rule a line, and nothing of the host is looked at. Rules: the OCI runtime specification 1.2.

use std::path::Path;

use oci_spec::runtime::{
    Linux, LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxSeccomp, LinuxSeccompAction,
    LinuxThrottleDevice, Mount, Process, Spec,
};

use super::error::{SpecError, refused};

/// Of what SELinux or AppArmor would have to do.
const NO_LSM: &str = "the guest's kernel has no such security module";

/// Of limits that cgroup v1 alone had.
const NOT_IN_V2: &str = "cgroup v2, which the guest has, has no such limit";

/// What no document may ask for, be it a pod's or a container's.
pub fn document(spec: &Spec) -> Result<(), SpecError> {
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| {
        #[allow(deprecated)] // prestart is deprecated, and still asked for
        [
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ]
        .into_iter()
        .flatten()
        .any(|list| !list.is_empty())
    });
    let rules = [
        (hooks, "hooks", "a program of the host cannot act on a container in a guest"),
        (spec.solaris().is_some(), "solaris", "the guest runs Linux"),
        (spec.windows().is_some(), "windows", "the guest runs Linux"),
        (spec.vm().is_some(), "vm", "the VM is the runtime's own; see its configuration file"),
    ];
    first_broken(&rules, "")
}

/// What no process may ask for, the first one or an exec.
pub fn process(process: &Process) -> Result<(), SpecError> {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let user = process.user();
    let all = [user.uid(), user.gid()];
    let mut ids = all.iter().chain(user.additional_gids().iter().flatten());
    let rules = [
        (ids.any(|id| i32::try_from(*id).is_err()), "user", "ids must be 0 to 2147483647"),
        (process.args().as_ref().is_none_or(Vec::is_empty), "args", "must name a program"),
        (set(process.apparmor_profile()), "apparmorProfile", NO_LSM),
        (set(process.selinux_label()), "selinuxLabel", NO_LSM),
        (!process.cwd().is_absolute(), "cwd", "must be an absolute path"),
    ];
    first_broken(&rules, "process.")
}

/// What the part of the document about Linux may not ask for.
pub fn linux(linux: &Linux) -> Result<(), SpecError> {
    let mapped = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let rules = [
        (mapped(linux.uid_mappings()), "uidMappings", "user namespaces are not supported"),
        (mapped(linux.gid_mappings()), "gidMappings", "user namespaces are not supported"),
        (linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()), "mountLabel", NO_LSM),
        (linux.intel_rdt().is_some(), "intelRdt", "a guest has no resctrl file system"),
        (linux.memory_policy().is_some(), "memoryPolicy", "a guest has one memory node"),
        (
            linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()),
            "netDevices",
            "devices of the host cannot be moved into a guest",
        ),
        (
            linux.seccomp().as_ref().is_some_and(notifies),
            "seccomp",
            "its listener is on the host, out of the guest's reach",
        ),
        (
            linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()),
            "timeOffsets",
            "clocks of a container's own are not supported",
        ),
    ];
    first_broken(&rules, "linux.")
}

/// What limits may not say, those of a new container or changed ones. `disks` are the numbers of the container's disks.
pub fn resources(resources: &LinuxResources, disks: &[(i64, i64)]) -> Result<(), SpecError> {
    let memory = |asks: fn(&LinuxMemory) -> bool| resources.memory().as_ref().is_some_and(asks);
    let cpu = |asks: fn(&LinuxCpu) -> bool| resources.cpu().as_ref().is_some_and(asks);
    let block = |asks: fn(&LinuxBlockIo) -> bool| resources.block_io().as_ref().is_some_and(asks);
    let others = |list: fn(&LinuxBlockIo) -> &Option<Vec<LinuxThrottleDevice>>| {
        let mut list = resources.block_io().iter().flat_map(|block| list(block).iter().flatten());
        list.any(|device| !disks.contains(&(device.major(), device.minor())))
    };
    let with_slash = |(file, _): (&String, &String)| file.contains('/');
    let no_disk = "the device is no disk of the container";
    let rules = [
        (memory(|memory| memory.swappiness().is_some()), "memory.swappiness", NOT_IN_V2),
        (memory(|memory| memory.kernel().is_some()), "memory.kernel", NOT_IN_V2),
        (memory(|memory| memory.kernel_tcp().is_some()), "memory.kernelTCP", NOT_IN_V2),
        (memory(|memory| memory.use_hierarchy() == Some(false)), "memory.useHierarchy", NOT_IN_V2),
        (
            memory(|memory| memory.disable_oom_killer() == Some(true)),
            "memory.disableOOMKiller",
            NOT_IN_V2,
        ),
        (
            memory(|memory| memory.check_before_update() == Some(true)),
            "memory.checkBeforeUpdate",
            "what a container uses beyond a new limit the kernel takes back, or ends a process",
        ),
        (cpu(|cpu| cpu.realtime_runtime().is_some()), "cpu.realtimeRuntime", NOT_IN_V2),
        (cpu(|cpu| cpu.realtime_period().is_some()), "cpu.realtimePeriod", NOT_IN_V2),
        (resources.network().is_some(), "network", NOT_IN_V2),
        (resources.rdma().is_some(), "rdma", "a guest has no RDMA devices"),
        (
            resources.unified().iter().flatten().any(with_slash),
            "unified",
            "a key is the name of a file, without a slash",
        ),
        (block(|block| block.leaf_weight().is_some()), "blockIO.leafWeight", NOT_IN_V2),
        (
            block(|block| block.weight_device().iter().flatten().next().is_some()),
            "blockIO.weightDevice",
            "the guest's kernel weighs no single devices",
        ),
        (others(LinuxBlockIo::throttle_read_bps_device), "blockIO.throttleReadBpsDevice", no_disk),
        (
            others(LinuxBlockIo::throttle_write_bps_device),
            "blockIO.throttleWriteBpsDevice",
            no_disk,
        ),
        (
            others(LinuxBlockIo::throttle_read_iops_device),
            "blockIO.throttleReadIOPSDevice",
            no_disk,
        ),
        (
            others(LinuxBlockIo::throttle_write_iops_device),
            "blockIO.throttleWriteIOPSDevice",
            no_disk,
        ),
    ];
    first_broken(&rules, "linux.resources.")
}

/// Whether a seccomp profile asks another program.
fn notifies(seccomp: &LinuxSeccomp) -> bool {
    let mut rules = seccomp.syscalls().iter().flatten();
    seccomp.listener_path().is_some()
        || rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify)
}

fn first_broken(rules: &[(bool, &str, &str)], prefix: &str) -> Result<(), SpecError> {
    match rules.iter().find(|(broken, ..)| *broken) {
        Some((_, field, reason)) => Err(refused(format!("{prefix}{field}"), reason)),
        None => Ok(()),
    }
}

/// What no mount may ask for, whatever it shows.
pub fn mount(mount: &Mount, index: usize) -> Result<(), SpecError> {
    let mut options = mount.options().iter().flatten();
    let unknown = ["tmpcopyup", "idmap", "ridmap"];
    if let Some(option) = options.find(|option| unknown.contains(&option.as_str())) {
        let reason = format!("{option} is not supported");
        return Err(refused(format!("mounts[{index}].options"), &reason));
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        let reason = "idmapped mounts are not supported";
        return Err(refused(format!("mounts[{index}].uidMappings"), reason));
    }
    let destination = Path::new("/").join(mount.destination());
    if is_bind(mount) && destination.components().eq(Path::new("/dev").components()) {
        let reason = "the container's /dev is made of the guest's devices";
        return Err(refused(format!("mounts[{index}].destination"), reason));
    }
    Ok(())
}

/// Whether a mount shows something that is there already.
pub fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| option == "bind" || option == "rbind")
}
