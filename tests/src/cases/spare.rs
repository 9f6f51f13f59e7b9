//! Spares: sandboxes that go on from a guest which has booted before.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bed::{Container, Test};
use crate::command::{self, Input};
use crate::containerd::Containerd;
use crate::cri::watch::until;
use crate::ensure;
use crate::failure::{Context, Outcome};
use crate::leftovers;
use crate::product;
use crate::runner::Case;
use crate::ward::Ward;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "spare.apart",
        "sandboxes that were spare have a clock that is right, and a guest of their own",
        apart,
    ),
    Case::bulkhead(
        "spare.life",
        "a sandbox that was spare does all that one does that was not",
        life,
    ),
    Case::bulkhead(
        "spare.asks",
        "a sandbox gets what its annotations say, whatever the spare guest has",
        asks,
    ),
    Case::bulkhead(
        "spare.misfit",
        "a spare of another configuration is not taken, and goes away",
        misfit,
    ),
    Case::bulkhead(
        "spare.dies",
        "a spare whose VM has died is missed by nobody, and the log says how it died",
        dies,
    ),
    Case::bulkhead(
        "spare.killed",
        "a shim that was spare leaves nothing when it is killed",
        killed,
    ),
    Case::bulkhead(
        "spare.size",
        "where sandboxes have another size than the configuration's, their spares have it soon",
        size,
    ),
    Case::bulkhead("spare.lost", "a spare that nobody can find any more ends by itself", lost),
    Case::bulkhead("spare.pod", "a pod's network reaches a guest that was spare", pod),
];

/// A containerd whose host keeps a spare, the first of which is there.
fn ward<'t, 'b>(t: &'t Test<'b>) -> Outcome<Ward<'t, 'b>> {
    let ward = Ward::new(t)?;
    ward.configure("spares = 1")?;
    ward.container().run(&[], &["true"])?.ok()?;
    ready(t, &ward.node)?;
    Ok(ward)
}

/// Waits until there is a spare.
fn ready(t: &Test<'_>, node: &Containerd) -> Outcome {
    let dir = product::state_dir(node.dir());
    until(&dir, t.deadline(60), || Ok(dir.join("spare-0").exists())).context("a spare")
}

/// Waits until a spare that has ended has left its place: a sandbox that starts before that finds it taken.
fn left(node: &Containerd) -> Outcome {
    let lock = fs::File::open(product::state_dir(node.dir()).join("spare-0.lock"))?;
    lock.lock().context("the lock of its place")
}

/// Requires that a spare goes once there are to be none, not before, and that nothing is left.
fn close(t: &Test<'_>, node: &Containerd) -> Outcome {
    ready(t, node)?;
    let ended = node.bulkhead(&["gc"])?.ok()?.out();
    ensure!(!ended.contains("spare-"), "gc says {ended:?}");
    node.configure(&product::config(&t.bed.options, node.dir()))?;
    gone(node, &["gc"])
}

/// Requires that a command ends the spare, and that nothing is left.
fn gone(node: &Containerd, command: &[&str]) -> Outcome {
    let ended = node.bulkhead(command)?.ok()?.out();
    ensure!(ended.contains("removed spare-"), "gc says {ended:?}");
    let dir = product::state_dir(node.dir());
    let left = leftovers::entries(&dir);
    ensure!(left.is_empty(), "left over: {left:?}");
    Ok(())
}

/// Whether a sandbox was spare.
fn was_spare(container: &Container<'_>) -> Outcome<bool> {
    let seen = container.inspect()?;
    let phases = seen["phases"].as_array().map(Vec::as_slice).unwrap_or_default();
    let has = |name| phases.iter().any(|phase| phase["name"] == name);
    Ok(has("spare") && !has("vmm"))
}

fn apart(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let containers = [ward.container(), ward.container()];
    let mut secrets = HashSet::new();
    for container in &containers {
        ready(t, &ward.node)?;
        container.start(&["sleep", "100000"])?;
        ensure!(was_spare(container)?, "{} has booted", container.id);
        let program = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid";
        let seen = container.exec("secrets", &[], &["sh", "-c", program])?.ok()?.out();
        secrets.extend(seen.lines().map(str::to_owned));
        let clock = container.exec("clock", &[], &["date", "+%s"])?.ok()?.out();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let apart = now.abs_diff(clock.trim().parse()?);
        ensure!(apart <= t.deadline(5).as_secs(), "the clock is wrong by {apart} s");
    }
    ensure!(secrets.len() == 4, "some are equal: {secrets:?}");
    for container in &containers {
        container.kill("SIGKILL")?;
        container.wait_stopped()?;
        ensure!(container.delete()? == 137, "it did not end by the signal");
    }
    close(t, &ward.node)
}

fn life(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let dir = t.directory()?;
    fs::write(dir.join("from-host"), "host")?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", dir.display());
    let first = ward.container();
    let group = first.group_flags();
    let flags = [&["--mount", &mount], &group.each_ref().map(String::as_str)[..]].concat();
    first.start_with(&[&["--null-io"], &flags[..]].concat(), &["sleep", "100000"])?;
    ensure!(was_spare(&first)?, "it has booted");
    let done =
        first.exec("files", &[], &["sh", "-c", "cat /data/from-host; echo guest >/data/new"])?;
    ensure!(done.ok()?.out() == "host", "the file of the host is not there");
    ensure!(fs::read_to_string(dir.join("new"))? == "guest\n", "the guest's file is not there");
    let second = ward.container();
    second.run(&group.each_ref().map(String::as_str), &["true"])?.ok()?;
    ready(t, &ward.node)?;
    let echoed = ward.container().run_with(
        &[],
        &["sh", "-c", "cat; exit 7"],
        Input::Bytes(vec![b'x'; 1 << 20]),
    )?;
    ensure!(echoed.exits(7)?.out().len() == 1 << 20, "not all came back");
    ensure!(ward.node.log().contains("a spare guest is taken"), "the log does not say so");
    first.task("pause", &[])?.ok()?;
    first.task("resume", &[])?.ok()?;
    first.task("delete", &["--force"])?.ok()?;
    close(t, &ward.node)
}

fn asks(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let container = ward.container();
    let flags = ["--null-io", "--annotation", "io.bulkhead.scratch_paths=/data"];
    container.start_with(&flags, &["sleep", "100000"])?;
    let seen =
        container.sh("echo new > /data/file; awk '$2 == \"/data\" { print $3 }' /proc/mounts")?;
    ensure!(seen == "ext4\n", "/data is on {seen}");
    // QEMU's microvm takes no disk while it runs.
    let takes = t.bed.options.hypervisor == "cloud-hypervisor";
    ensure!(was_spare(&container)? == takes, "it was spare: {}", !takes);
    container.remove();
    ready(t, &ward.node)?;
    let unfit = || ward.node.log().matches("the spare guest is not taken").count();
    let before = unfit();
    let large = ward.container();
    let flags = ["--null-io", "--annotation", "io.bulkhead.memory=640MiB"];
    large.start_with(&flags, &["sleep", "100000"])?;
    ensure!(!was_spare(&large)?, "a guest has another size than its spare");
    let memory: u64 = large.sh("awk '/^MemTotal/ { print $2 }' /proc/meminfo")?.trim().parse()?;
    ensure!(memory > 512 << 10, "it has {memory} KiB");
    ensure!(unfit() == before, "the spare was lost for that");
    large.remove();
    close(t, &ward.node)
}

fn size(t: &Test<'_>) -> Outcome {
    const LIMIT: &str = "629145600";
    let ward = ward(t)?;
    let start = |flags: &[&str]| -> Outcome<_> {
        let container = ward.container();
        container.start_with(&[&["--null-io"], flags].concat(), &["sleep", "100000"])?;
        let spare = was_spare(&container)?;
        let program = "awk '/^MemTotal/ { print $2 }' /proc/meminfo";
        let memory: u64 = container.sh(program)?.trim().parse()?;
        container.remove();
        Ok((spare, memory > 512 << 10))
    };
    let (usual, large) = (&[][..], &["--memory-limit", LIMIT][..]);
    let odd = &["--memory-limit", "943718400"][..];
    for (flags, expected) in [
        // The first leaves the spare alone, and so does the second, which has one made that is like itself.
        (large, (false, true)),
        (large, (false, true)),
        (large, (true, true)),
        // What is of another size once changes nothing.
        (usual, (false, false)),
        (odd, (false, true)),
        (large, (true, true)),
    ] {
        ready(t, &ward.node)?;
        let seen = start(flags)?;
        ensure!(seen == expected, "(spare, large) with {flags:?}: {seen:?}, not {expected:?}");
    }
    close(t, &ward.node)
}

fn misfit(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    ward.configure("spares = 1\nkernel_params = [\"loglevel=4\"]")?;
    let container = ward.container();
    container.start(&["sleep", "100000"])?;
    ensure!(!was_spare(&container)?, "it was spare");
    let cmdline = container.sh("cat /proc/cmdline")?;
    ensure!(cmdline.contains("loglevel=4"), "its kernel was told {cmdline}");
    ensure!(ward.node.log().contains("the spare guest is not taken"), "the log does not say why");
    container.remove();
    close(t, &ward.node)
}

fn dies(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let seen = ward.node.bulkhead(&["inspect", "--json", "spare-"])?.ok()?.out();
    let seen: Value = serde_json::from_str(&seen)?;
    let processes = seen["processes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let vmm = processes.iter().find(|process| process["role"] == seen["hypervisor"]);
    let vmm = vmm.and_then(|vmm| vmm["pid"].as_i64()).unwrap_or_default();
    kill(Pid::from_raw(i32::try_from(vmm)?), Signal::SIGKILL)?;
    let dir = product::state_dir(ward.node.dir());
    let gone = || Ok(!dir.join("spare-0").exists());
    until(&dir, t.deadline(15), gone).context("the end of the spare")?;
    left(&ward.node)?;
    ward.container().run(&[], &["true"])?.ok()?;
    ensure!(ward.node.log().contains("was killed by SIGKILL"), "the log does not say how it died");
    close(t, &ward.node)
}

fn lost(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let dir = product::state_dir(ward.node.dir());
    fs::remove_file(dir.join("spare-0"))?;
    let ended = || Ok(!leftovers::entries(&dir).iter().any(|path| path.is_dir()));
    until(&dir, t.deadline(15), ended).context("the end of the spare")?;
    left(&ward.node)?;
    ward.container().run(&[], &["true"])?.ok()?;
    ready(t, &ward.node)?;
    // Whatever the configuration wants.
    gone(&ward.node, &["gc", "--spares"])
}

fn killed(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let container = ward.container();
    container.start(&["sleep", "100000"])?;
    ensure!(was_spare(&container)?, "it has booted");
    let seen = container.inspect()?;
    let shim = seen["shim"]["pid"].as_i64().unwrap_or_default();
    kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
    // containerd notices, and has the shim's program clean up.
    let dir = product::state_dir(ward.node.dir());
    let sandbox = PathBuf::from(seen["directory"].as_str().unwrap_or_default());
    until(&dir, t.deadline(20), || Ok(!sandbox.exists())).context("the end of the sandbox")?;
    container.remove();
    close(t, &ward.node)
}

fn pod(t: &Test<'_>) -> Outcome {
    t.on_own_node(|node| {
        node.configure("spares = 1\n")?;
        t.pod_on(node).run()?.remove()?;
        ready(t, &node.containerd)?;
        // A VM that takes no disks while it runs can be a pod's without.
        let pod = t.pod_on(node).annotation("io.bulkhead.scratch_size", "0").run()?;
        let app = pod.container("app").start()?;
        let log = node.containerd.log();
        ensure!(log.contains("a spare guest is taken"), "the log: {}", command::tail(&log));
        app.prints(
            "ip -4 -o addr show eth0 | sed 's/.*inet //; s/ .*//'",
            &format!("{}/16\n", pod.address()?),
        )?;
        app.sh("ping -c 1 -W 5 10.88.0.1")?;
        app.stop(0)?;
        app.ended()?.exits(137)?;
        pod.remove()?;
        close(t, &node.containerd)
    })
}
