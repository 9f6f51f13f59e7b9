//! Templates: sandboxes that go on from a guest that has booted before.

use std::collections::HashSet;
use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::{Container, Test};
use crate::command::Input;
use crate::ensure;
use crate::failure::Outcome;
use crate::leftovers;
use crate::product;
use crate::runner::Case;
use crate::ward::Ward;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::cloud_hypervisor(
        "template.apart",
        "sandboxes that come from one template have a clock that is right, and no secret in common",
        apart,
    ),
    Case::cloud_hypervisor(
        "template.life",
        "a sandbox that comes from a template does all that one does which has booted",
        life,
    ),
    Case::cloud_hypervisor(
        "template.disk",
        "a sandbox that comes from a template gets its scratch disk",
        disk,
    ),
    Case::cloud_hypervisor(
        "template.misfit",
        "where the template is of something else, or no template at all, guests boot",
        misfit,
    ),
    Case::cloud_hypervisor(
        "template.fails",
        "a template that cannot be made is refused with the reason, and nothing is left",
        fails,
    ),
    Case::cloud_hypervisor(
        "template.interrupted",
        "a template that is interrupted while it is made leaves nothing",
        interrupted,
    ),
    Case::bulkhead("template.qemu", "that QEMU has no templates is said at once", qemu),
];

/// A containerd whose host has a template.
fn ward<'t, 'b>(t: &'t Test<'b>) -> Outcome<Ward<'t, 'b>> {
    let ward = Ward::new(t)?;
    ward.node.bulkhead(&["template", "create"])?.ok()?;
    Ok(ward)
}

/// Requires that nothing is left once the template is removed.
fn close(ward: &Ward<'_, '_>, id: &str) -> Outcome {
    ensure!(
        ward.node.bulkhead(&["template", "remove"])?.ok()?.out() == "removed\n",
        "there was no template"
    );
    ward.nothing_left(id)
}

/// Whether a sandbox's guest has booted.
fn has_booted(container: &Container<'_>) -> Outcome<bool> {
    let seen = container.inspect()?;
    let phases = seen["phases"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(phases.iter().any(|phase| phase["name"] == "guest.kernel"))
}

fn apart(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let containers = [ward.container(), ward.container()];
    let mut secrets = HashSet::new();
    for container in &containers {
        container.start(&["sleep", "100000"])?;
        ensure!(!has_booted(container)?, "{} has booted", container.id);
        let program = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; \
                       head -c 16 /dev/urandom | md5sum";
        let seen = container.exec("secrets", &[], &["sh", "-c", program])?.ok()?.out();
        ensure!(seen.lines().count() == 3, "{seen}");
        secrets.extend(seen.lines().map(str::to_owned));
        let clock = container.exec("clock", &[], &["date", "+%s"])?.ok()?.out();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let apart = now.abs_diff(clock.trim().parse()?);
        ensure!(apart <= t.deadline(5).as_secs(), "the clock is wrong by {apart} s");
    }
    ensure!(secrets.len() == 6, "some are equal: {secrets:?}");
    for container in &containers {
        container.kill("SIGKILL")?;
        container.wait_stopped()?;
        ensure!(container.delete()? == 137, "it did not end by the signal");
    }
    close(&ward, &containers[0].id)
}

fn disk(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let container = ward.container();
    let annotation = "io.bulkhead.scratch_paths=/data";
    container.start_with(&["--null-io", "--annotation", annotation], &["sleep", "100000"])?;
    ensure!(!has_booted(&container)?, "{} has booted", container.id);
    let seen =
        container.sh("echo new > /data/file; awk '$2 == \"/data\" { print $3 }' /proc/mounts")?;
    ensure!(seen == "ext4\n", "/data is on {seen}");
    container.remove();
    close(&ward, &container.id)
}

fn life(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let dir = t.directory()?;
    fs::write(dir.join("from-host"), "host")?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", dir.display());
    let first = ward.container();
    let group = first.group_flags();
    let flags = [&["--mount", &mount], &group.each_ref().map(String::as_str)[..]].concat();
    first.start_with(&flags, &["sleep", "100000"])?;
    let done =
        first.exec("files", &[], &["sh", "-c", "cat /data/from-host; echo guest >/data/new"])?;
    ensure!(done.ok()?.out() == "host", "the file of the host is not there");
    ensure!(
        fs::read_to_string(dir.join("new"))? == "guest\n",
        "the file of the guest is not there"
    );
    let echoed = ward.container().run_with(
        &[],
        &["sh", "-c", "cat; exit 7"],
        Input::Bytes(vec![b'x'; 1 << 20]),
    )?;
    ensure!(echoed.exits(7)?.out().len() == 1 << 20, "not all came back");
    let second = ward.container();
    let group = first.group_flags();
    second.run(&group.each_ref().map(String::as_str), &["true"])?.ok()?;
    // A template that is made anew, or removed, is nothing to those that run.
    ward.node.bulkhead(&["template", "create"])?.ok()?;
    first.task("pause", &[])?.ok()?;
    first.task("resume", &[])?.ok()?;
    first.exec("again", &[], &["true"])?.ok()?;
    first.task("delete", &["--force"])?.ok()?;
    close(&ward, &first.id)
}

fn misfit(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    ward.configure("kernel_params = [\"loglevel=4\"]")?;
    ward.container().run(&[], &["true"])?.ok()?;
    ensure!(ward.node.log().contains("is of another kernel_params"), "the log does not say why");
    ward.configure("")?;
    fs::write(product::state_dir(ward.node.dir()).join("template"), "{}")?;
    let container = ward.container();
    container.start(&["sleep", "100000"])?;
    ensure!(has_booted(&container)?, "it comes from what is no template");
    ensure!(ward.node.log().contains("template is no template"), "the log does not say why");
    container.task("delete", &["--force"])?.ok()?;
    close(&ward, &container.id)
}

fn fails(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let vmm = ward.script("vmm", "echo no VM today >&2; exit 3")?;
    ward.configure(&format!("cloud_hypervisor = {vmm:?}"))?;
    ward.node.bulkhead(&["template", "create"])?.refused(&["no VM today"])?;
    ward.configure("kernel_params = [\"rdinit=/nowhere\"]")?;
    ward.node.bulkhead(&["template", "create"])?.refused(&["the VM did not start"])?;
    let left = leftovers::entries(&product::state_dir(ward.node.dir()));
    ensure!(left.is_empty(), "left over: {left:?}");
    Ok(())
}

fn interrupted(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let vmm = ward.script("vmm", "exec sleep 1000")?;
    ward.configure(&format!("cloud_hypervisor = {vmm:?}"))?;
    let mut tool = ward.node.tool("bulkhead");
    let tool = tool.args(["template", "create"]).stderr(Stdio::piped()).spawn()?;
    let pid = Pid::from_raw(i32::try_from(tool.id())?);
    // It has come as far as the VMM once the VMM's API socket is there.
    let state_dir = product::state_dir(ward.node.dir());
    let api = || leftovers::entries(&state_dir).iter().any(|dir| dir.join("api").exists());
    let limit = Instant::now() + t.deadline(20);
    while !api() {
        ensure!(Instant::now() < limit, "it starts no VMM");
        thread::sleep(Duration::from_millis(50));
    }
    kill(pid, Signal::SIGINT)?;
    let done = tool.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(1), "it ended with {}", done.status);
    ensure!(said.trim() == "bulkhead: interrupted", "it says {said:?}");
    let left = leftovers::entries(&state_dir);
    ensure!(left.is_empty(), "left over: {left:?}");
    Ok(())
}

fn qemu(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("hypervisor = \"qemu\"")?;
    ward.node.bulkhead(&["template", "create"])?.refused(&["qemu has no templates"])?;
    ensure!(
        ward.node.bulkhead(&["template", "remove"])?.ok()?.out() == "there is none\n",
        "there was one"
    );
    Ok(())
}
