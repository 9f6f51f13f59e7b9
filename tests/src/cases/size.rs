//! How much of the host a guest may have, and what it gives back.

use std::fs;

use k8s_cri::v1::LinuxContainerResources;
use nix::unistd::{SysconfVar, sysconf};

use crate::bed::Test;
use crate::cri::cgroup::PodCgroup;
use crate::ensure;
use crate::failure::{Failure, Outcome, again, holds};
use crate::product;
use crate::runner::Case;
use crate::ward::Ward;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "size.container",
        "the guest of a container that is run alone has room for its limits",
        container,
    ),
    Case::bulkhead(
        "size.config_path",
        "the configuration file that the runtime's options name is the one that holds",
        config_path,
    ),
    Case::bulkhead("size.pod", "containers of a pod may use all of their limits", pod),
    Case::bulkhead(
        "size.cgroup",
        "a guest with no memory left ends a process in it, not the pod",
        cgroup,
    ),
    Case::bulkhead("size.back", "memory that the guest frees is the host's again", back),
];

const MIB: u64 = 1 << 20;

/// Prints how many processors a container's guest has, and how many KiB of memory.
const SIZE: &str = "nproc; awk '/MemTotal/ { print $2 }' /proc/meminfo";

/// Requires this many processors, as far as the host has them, and more memory than `least` and less than `most`.
fn is(printed: &str, processors: i64, least: u64, most: u64) -> Outcome {
    let mut numbers = printed.lines().filter_map(|line| line.trim().parse::<u64>().ok());
    let (Some(count), Some(kib)) = (numbers.next(), numbers.next()) else {
        return Err(Failure::new(format!("its guest's size is {printed:?}")));
    };
    let there = sysconf(SysconfVar::_NPROCESSORS_ONLN)?.unwrap_or(1).min(processors);
    ensure!(i64::try_from(count)? == there, "{count} processors, not {there}");
    let memory = kib << 10;
    ensure!(memory > least && memory < most, "{kib} KiB of memory, not {least} to {most} bytes");
    Ok(())
}

fn container(t: &Test<'_>) -> Outcome {
    let limits = ["--memory-limit", "734003200", "--cpus", "1.5"];
    let done = t.container().run(&limits, &["sh", "-c", SIZE])?.ok()?;
    is(&done.out(), 2, 700 * MIB, 780 * MIB)?;
    // What is said wins.
    let said = ["--annotation", "io.bulkhead.memory=256MiB", "--annotation", "io.bulkhead.vcpus=1"];
    let done = t.container().run(&[limits, said].concat(), &["sh", "-c", SIZE])?.ok()?;
    is(&done.out(), 1, 200 * MIB, 256 * MIB)
}

fn config_path(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let all = fs::read_to_string(ward.node.config_file())?;
    let file = ward.node.dir().join("large.toml");
    let path = file.to_str().ok_or_else(|| Failure::new("the scratch directory is not text"))?;
    let flags = ["--runtime-config-path", path];
    fs::write(&file, format!("{all}\nvcpus = 2\nmemory = \"384MiB\"\n"))?;
    let done = ward.container().run(&flags, &["sh", "-c", SIZE])?.ok()?;
    is(&done.out(), 2, 300 * MIB, 384 * MIB)?;
    is(&ward.container().run(&[], &["sh", "-c", SIZE])?.ok()?.out(), 1, 400 * MIB, 512 * MIB)?;
    fs::write(&file, all.replace("state_dir = \"", "state_dir = \"/elsewhere"))?;
    ward.refused_with(&flags, 10, &["state_dir = \"/elsewhere", "is not allowed"])?;
    fs::write(&file, "no_such_key = 1\n")?;
    ward.refused_with(&flags, 10, &["no_such_key", path])?;
    let relative = ["--runtime-config-path", "large.toml"];
    ward.refused_with(&relative, 10, &["large.toml", "an absolute path"])?;
    fs::remove_file(&file)?;
    ward.refused_with(&flags, 10, &["No such file", path]).map(drop)
}

fn pod(t: &Test<'_>) -> Outcome {
    let limit = 600 * MIB;
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 200_000,
        memory_limit_in_bytes: i64::try_from(limit)?,
        ..LinuxContainerResources::default()
    };
    let pod = t.pod().linux(|linux| linux.resources = Some(resources.clone())).run()?;
    let script = format!("{SIZE}; dd if=/dev/zero of=/dev/null bs={} count=1", 560 * MIB);
    let plan = pod.container("app").script(&script);
    let app = plan.with(|config| config.linux.get_or_insert_default().resources = Some(resources));
    let done = app.run()?.exits(0)?;
    is(&done.out(), 2, limit, limit + 100 * MIB)
}

fn cgroup(t: &Test<'_>) -> Outcome {
    let parent = PodCgroup::new(&t.unique())?;
    parent.limit_memory(480 * MIB)?;
    let pod = t.pod().linux(|linux| linux.cgroup_parent.clone_from(&parent.path)).run()?;
    is(&pod.container("size").script(SIZE).run()?.exits(0)?.out(), 1, 200 * MIB, 440 * MIB)?;
    let done = pod.container("app").command(&["tail", "/dev/zero"]).run()?.exits(137)?;
    ensure!(done.reason == "OOMKilled", "{done:?}");
    ensure!(pod.is_ready()?, "the pod is not ready");
    pod.container("next").start()?.prints("echo here", "here\n")?;
    Ok(pod.remove()?)
}

fn back(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    // QEMU's microvm goes without the device.
    ward.configure("qemu_machine = \"q35\"")?;
    let container = ward.container();
    container.start(&["sleep", "100000"])?;
    let pid = product::process(&container.inspect()?, &t.bed.options.hypervisor)?;
    let before = held(pid)?;
    let bytes = 200 * MIB;
    // dd has all of it until nobody is there to read.
    let hold = format!("dd if=/dev/zero bs={bytes} count=1 | cat /go");
    container.sh(&format!("mkfifo /go; ({hold} &) >/dev/null 2>&1"))?;
    await_held(t, pid, |now| now > before + bytes / 4 * 3)?;
    container.sh("echo > /go")?;
    await_held(t, pid, |now| now < before + bytes / 2)?;
    container.remove();
    ward.nothing_left(&container.id)
}

/// How many bytes of its guest's memory the host holds for this VMM.
fn held(pid: i32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.ok_or_else(|| Failure::new("the VMM's memory is not told"))? << 10)
}

fn await_held(t: &Test<'_>, pid: i32, wanted: impl Fn(u64) -> bool) -> Outcome {
    again(t.deadline(60), || {
        let held = held(pid)?;
        holds(wanted(held), || format!("the VMM has {held} bytes of its guest's memory"))
    })
}
