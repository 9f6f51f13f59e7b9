//! `bulkhead`, the operator's tool, beside sandboxes that run and sandboxes whose shim is gone.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bed::{Container, Test};
use crate::ensure;
use crate::failure::Outcome;
use crate::leftovers;
use crate::product;
use crate::runner::Case;
use crate::ward::Ward;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "tool.inspect",
        "inspect shows a running sandbox: VMM, devices, processes, phases, and the guest from inside",
        inspect,
    ),
    Case::bulkhead(
        "tool.list",
        "list shows the sandboxes that run, and no longer those that are gone",
        list,
    ),
    Case::bulkhead(
        "tool.gc",
        "gc takes away what a killed shim left, and touches nothing that runs",
        gc,
    ),
    Case::bulkhead(
        "tool.check_boot",
        "check --boot boots a guest and leaves nothing, and says why there is none",
        check_boot,
    ),
];

fn inspect(t: &Test<'_>) -> Outcome {
    let c = t.container();
    c.start(&["sleep", "100000"])?;
    let seen = c.inspect()?;
    ensure!(seen["state"] == "running", "state: {}", seen["state"]);
    ensure!(
        seen["hypervisor"] == t.bed.options.hypervisor.as_str(),
        "hypervisor: {}",
        seen["hypervisor"]
    );
    let roles: Vec<&str> = list_of(&seen["processes"])
        .iter()
        .filter(|process| process["alive"] == true && process["memory"]["pss"].as_u64() > Some(0))
        .filter_map(|process| process["role"].as_str())
        .collect();
    for role in ["shim", "virtiofsd", &t.bed.options.hypervisor] {
        ensure!(roles.contains(&role), "{role} is not among {roles:?}");
    }
    ensure!(list_of(&seen["devices"]).len() >= 3, "devices: {}", seen["devices"]);
    let phases: Vec<&str> =
        list_of(&seen["phases"]).iter().filter_map(|phase| phase["name"].as_str()).collect();
    ensure!(phases.contains(&"guest.kernel") && phases.contains(&"started"), "phases: {phases:?}");
    let guest = &seen["guest"];
    ensure!(
        guest["agent_rss"].as_u64() > Some(0) && guest["memory"]["MemTotal"].as_u64() > Some(0),
        "the guest from inside: {guest}"
    );
    let text = t.bed.containerd.bulkhead(&["inspect", &c.id])?.ok()?.out();
    ensure!(text.contains(" available, agent "), "{text}");
    Ok(())
}

fn list(t: &Test<'_>) -> Outcome {
    let c = t.container();
    c.start(&["sleep", "100000"])?;
    let listed = |c: &Container<'_>| -> Outcome<bool> {
        let text = t.bed.containerd.bulkhead(&["list"])?.ok()?.out();
        Ok(text.lines().any(|line| line.starts_with(&c.id) && line.contains("running")))
    };
    ensure!(listed(&c)?, "a running sandbox is not listed");
    c.task("delete", &["--force"])?.ok()?;
    leftovers::none(&c.id, &[], t.deadline(15))?;
    ensure!(!listed(&c)?, "a sandbox that is gone is still listed");
    Ok(())
}

fn gc(t: &Test<'_>) -> Outcome {
    // With containerd away: it would clean up itself.
    let node = t.bed.another()?;
    let (dead, alive) = (t.container_on(&node), t.container_on(&node));
    for c in [&dead, &alive] {
        c.start(&["sleep", "100000"])?;
    }
    let shim = dead.shim_pid()?;
    node.stop()?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    leftovers::await_end(shim, t.deadline(10));

    node.bulkhead(&["gc"])?.ok()?;
    let list = node.bulkhead(&["list"])?.ok()?.out();
    ensure!(!list.contains(&dead.id), "left: {list}");
    ensure!(list.contains(&alive.id), "gone: {list}");
    let directories = leftovers::entries(&product::state_dir(node.dir()));
    ensure!(directories.len() == 1, "directories: {directories:?}");

    node.launch()?;
    let done = alive.exec("e", &[], &["echo", "still here"])?.ok()?;
    ensure!(done.out() == "still here\n", "printed {:?}", done.out());
    dead.remove();
    alive.remove();
    node.stop()?;
    leftovers::none(&node.dir().to_string_lossy(), &[], t.deadline(20))
}

fn check_boot(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("")?;
    let checked = |code: i32, texts: [&str; 2]| -> Outcome {
        let done = ward.node.bulkhead(&["check", "--boot"])?;
        let said = texts.iter().all(|text| done.out().contains(text));
        ensure!(said && done.code() == code, "not {texts:?}, but {}: {}", done.code(), done.out());
        Ok(())
    };
    checked(0, ["ok    boot                a guest came and went in ", "can run sandboxes"])?;
    ward.configure("scratch_dir = \"/proc/nowhere\"")?;
    checked(1, ["FAIL  boot                ", "/proc/nowhere"])?;
    let dir = product::state_dir(ward.node.dir());
    leftovers::none(&dir.to_string_lossy(), &[], t.deadline(15))?;
    let left = leftovers::entries(&dir);
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

fn list_of(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
