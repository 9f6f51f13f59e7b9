//! Life and death of a task: signals, deletes, pauses, and containerd's own end.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::bed::Test;
use crate::cri::watch::until;
use crate::ensure;
use crate::failure::{Context, Outcome, again, holds};
use crate::leftovers;
use crate::runner::Case;
use crate::session::Session;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "lifecycle.kill",
        "kill sends the signal that is named, and the program may catch it",
        kill,
    ),
    Case::any("lifecycle.kill_all", "kill --all reaches every process of the container", kill_all),
    Case::any(
        "lifecycle.delete_force",
        "delete --force ends a running container at once",
        delete_force,
    ),
    Case::any(
        "lifecycle.kill_soon",
        "kill -9 and delete --force work at any moment of the start",
        kill_soon,
    ),
    Case::any(
        "lifecycle.create_start",
        "a task that is created does not run until it is started",
        create_start,
    ),
    Case::any("lifecycle.pause", "pause stops the program, resume lets it go on", pause),
    Case::any("lifecycle.processes", "ps lists the container's processes", processes),
    Case::any("lifecycle.metrics", "metrics tell what the container uses", metrics),
    Case::bulkhead(
        "lifecycle.second_container",
        "a container of a running sandbox shares its VM and nothing else, and ends alone",
        second_container,
    ),
    Case::bulkhead(
        "lifecycle.first_goes",
        "the first container of a sandbox may go, and the others go on",
        first_goes,
    ),
    Case::any(
        "lifecycle.attach",
        "a container started in the background is attached to later",
        attach,
    ),
    Case::any("lifecycle.orphans", "processes whose parent died are reaped", orphans),
    Case::any(
        "lifecycle.containerd_restart",
        "a task lives on while containerd restarts",
        containerd_restart,
    ),
    Case::any(
        "lifecycle.exit_while_away",
        "an exit while containerd is away is told afterwards",
        exit_while_away,
    ),
    Case::any(
        "lifecycle.shim_killed",
        "after a kill -9 of the shim nothing of the container lives on",
        shim_killed,
    ),
];

fn kill(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let script = "trap 'echo caught; exit 4' USR2; echo ready; while :; do sleep 0.1; done";
    let mut session = container.converse(&[], &["sh", "-c", script])?;
    session.read_until("ready\n")?;
    container.kill("SIGUSR2")?;
    session.read_until("caught\n")?;
    session.finish()?.exits(4).map(drop)
}

fn kill_all(t: &Test<'_>) -> Outcome {
    let container = t.container();
    // The first process ignores SIGTERM; its children don't, once they have said so.
    let script = "trap '' TERM; cd /dev/shm; \
                  for i in 1 2; do (trap - TERM; echo > $i; exec sleep 1000) & done; \
                  until [ -s 1 ] && [ -s 2 ]; do sleep 0.1; done; \
                  echo ready; wait; wait; echo both gone; exit 3";
    let mut session = container.converse(&[], &["sh", "-c", script])?;
    session.read_until("ready\n")?;
    container.task("kill", &["--all", "--signal", "TERM"])?.ok()?;
    session.read_until("both gone\n")?;
    session.finish()?.exits(3).map(drop)
}

fn delete_force(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start(&["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"])?;
    container.task("delete", &["--force"])?;
    ensure!(container.state()?.is_empty(), "the task is {}", container.state()?);
    container.container("delete")?.ok().map(drop)
}

fn kill_soon(t: &Test<'_>) -> Outcome {
    for milliseconds in [0, 100, 300, 700, 1500, 3000] {
        let container = t.container();
        let command = container.run_command(&["--null-io", "-d"], &["sleep", "1000"]);
        let session = Session::pipes(command, t.deadline(60))?;
        thread::sleep(Duration::from_millis(milliseconds));
        // There may be no task yet, or one that can't be killed yet: either is said. A kill that succeeds is one.
        let killed = container.task("kill", &["--signal", "KILL"])?.code() == 0;
        let deleted = container.task("delete", &["--force"])?.code() == 0;
        session.finish()?;
        again(t.deadline(20), || {
            let over = !(killed || deleted) || container.state()? != "RUNNING";
            holds(over, || format!("killed after {milliseconds} ms, it runs"))
        })?;
        container.remove();
        leftovers::none(&container.id, &[container.node().bundle(&container.id)], t.deadline(20))?;
    }
    Ok(())
}

fn create_start(t: &Test<'_>) -> Outcome {
    let dir = t.directory()?;
    // No dashes in the arguments: this ctr command takes them for its own flags.
    fs::write(dir.join("script"), "echo ran > /host/file; exec sleep 1000")?;
    let container = t.container();
    let mount = format!("type=bind,src={},dst=/host,options=rbind:rw", dir.display());
    container.create(&["--mount", &mount], &["sh", "/host/script"])?;
    ensure!(container.state()?.is_empty(), "a container alone has no task");
    container.task("start", &["--null-io", "--detach"])?.ok()?;
    ensure!(container.state()? == "RUNNING", "the task is {}", container.state()?);
    let written = || Ok(fs::read_to_string(dir.join("file")).unwrap_or_default() == "ran\n");
    until(&dir, t.deadline(20), written).context("the program's file")?;
    container.task("start", &["--null-io", "--detach"])?.refused(&["already exists", "already"])?;
    container.kill("KILL")?;
    container.wait_stopped()?;
    container.delete().map(drop)
}

fn pause(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let script = "echo ready; while :; do echo .; sleep 0.05; done";
    let mut session = container.converse(&[], &["sh", "-c", script])?;
    session.read_until("ready\n")?;
    container.task("pause", &[])?.ok()?;
    ensure!(container.state()? == "PAUSED", "the task is {}", container.state()?);
    // What was on its way arrives; then nothing.
    while session.read_within(Duration::from_millis(700))?.is_some_and(|piece| !piece.is_empty()) {}
    ensure!(session.read_within(Duration::from_secs(1))?.is_none(), "the paused program prints");
    container.task("resume", &[])?.ok()?;
    session.read_until(".\n")?;
    ensure!(container.state()? == "RUNNING", "the task is {}", container.state()?);
    container.kill("KILL")?;
    session.finish()?.exits(137).map(drop)
}

fn processes(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let mut session =
        container.converse(&[], &["sh", "-c", "sleep 1000 & sleep 1000 & echo ready; wait"])?;
    session.read_until("ready\n")?;
    let list = container.task("ps", &[])?.ok()?.out();
    let pids =
        list.lines().skip(1).filter_map(|line| line.split_whitespace().next()?.parse::<u32>().ok());
    let count = pids.count();
    ensure!(count == 3, "ps lists {count} processes:\n{list}");
    container.kill("KILL")?;
    session.finish()?.exits(137).map(drop)
}

fn metrics(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start(&["sh", "-c", "while :; do :; done"])?;
    thread::sleep(Duration::from_secs(1));
    let json = container.task("metrics", &["--format", "json"])?.ok()?.out();
    let value: Value = serde_json::from_str(&json)?;
    // cgroup v1 and v2 name their numbers differently; each has both of these.
    let memory = find(&value, &["memory"], &["usage"]);
    let cpu = find(&value, &["cpu"], &["usage_usec", "total"]);
    ensure!(memory > 10_000, "memory in use: {memory}\n{json}");
    ensure!(cpu > 1_000, "processor time: {cpu}\n{json}");
    container.kill("KILL")?;
    container.wait_stopped()?;
    container.delete().map(drop)
}

/// The greatest number that one of `keys` has anywhere below one of `groups`.
fn find(value: &Value, groups: &[&str], keys: &[&str]) -> u64 {
    let Value::Object(map) = value else { return 0 };
    let below = map.iter().map(|(key, inner)| {
        let here =
            if groups.is_empty() && keys.contains(&key.as_str()) { number(inner) } else { 0 };
        let groups = if groups.contains(&key.as_str()) { &[] } else { groups };
        here.max(find(inner, groups, keys))
    });
    below.max().unwrap_or(0)
}

/// A number, which protobuf's JSON may write as a string, or one level down.
fn number(value: &Value) -> u64 {
    let text = || value.as_str()?.parse().ok();
    value.as_u64().or_else(text).or_else(|| value.get("usage").map(number)).unwrap_or(0)
}

fn second_container(t: &Test<'_>) -> Outcome {
    const BOOT: &str = "/proc/sys/kernel/random/boot_id";
    let (first, second) = (t.container(), t.container());
    let group = first.group_flags();
    let group = group.each_ref().map(String::as_str);
    let flags = [&["--null-io"], &group[..]].concat();
    let script = "echo first > /who; exec sleep 100000";
    first.start_with(&flags, &["sh", "-c", script])?;
    let boot = first.exec("boot", &[], &["cat", BOOT])?.ok()?.out();

    let script = format!("cat {BOOT}; ls /who; echo $$");
    let done = second.run(&group, &["sh", "-c", &script])?.ok()?;
    ensure!(
        done.out() == format!("{boot}1\n"),
        "the first has {boot:?}, the second printed {:?}",
        done.out()
    );
    ensure!(done.err().contains("/who"), "the second sees the first one's files: {}", done.err());
    let done = first.exec("after", &[], &["cat", "/who"])?.ok()?;
    ensure!(done.out() == "first\n", "printed {:?}", done.out());
    Ok(())
}

fn first_goes(t: &Test<'_>) -> Outcome {
    let (first, second) = (t.container(), t.container());
    let group = first.group_flags();
    let flags = [&["--null-io"], &group.each_ref().map(String::as_str)[..]].concat();
    for container in [&first, &second] {
        container.start_with(&flags, &["sleep", "100000"])?;
    }
    first.kill("KILL")?;
    first.wait_stopped()?;
    ensure!(first.delete()? == 137, "the first did not end by SIGKILL");
    // containerd's clean-up after the first one runs beside this.
    thread::sleep(t.deadline(2));
    let done = second.exec("e", &[], &["echo", "still here"])?.ok()?;
    ensure!(done.out() == "still here\n", "printed {:?}", done.out());
    Ok(())
}

fn attach(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start_with(
        &[],
        &["sh", "-c", "while read line; do echo got $line; [ $line = end ] && exit 8; done"],
    )?;
    let mut first =
        Session::pipes(container.node().ctr(["task", "attach", &container.id]), t.deadline(30))?;
    first.write(b"one\n")?;
    first.read_until("got one\n")?;
    // Detached again, the way a closed terminal window does it.
    first.signal(nix::sys::signal::Signal::SIGKILL)?;
    drop(first);
    let mut second =
        Session::pipes(container.node().ctr(["task", "attach", &container.id]), t.deadline(30))?;
    second.write(b"two\n")?;
    second.read_until("got two\n")?;
    second.write(b"end\n")?;
    second.read_until("got end\n")?;
    // ctr deletes the task when it has seen its end.
    second.finish()?.exits(8)?;
    container.container("delete")?.ok().map(drop)
}

fn orphans(t: &Test<'_>) -> Outcome {
    let container = t.container();
    // The program itself waits for nobody: its own children are zombies then, those of a subshell are not.
    let script =
        "(sleep 0.2 & sleep 1000 &) ; sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status; echo end";
    let done = container.run(&[], &["sh", "-c", script])?.ok()?;
    ensure!(done.out() == "end\n", "there are zombies: {:?}", done.out());
    Ok(())
}

fn containerd_restart(t: &Test<'_>) -> Outcome {
    let node = t.bed.another()?;
    let container = t.container_on(&node);
    container.start(&["sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done"])?;
    node.stop()?;
    node.launch()?;
    ensure!(
        container.state()? == "RUNNING",
        "after the restart the task is {:?}",
        container.state()?
    );
    let done = container.exec("e", &[], &["echo", "still here"])?.ok()?;
    ensure!(done.out() == "still here\n", "printed {:?}", done.out());
    container.kill("TERM")?;
    container.wait_stopped()?;
    let code = container.delete()?;
    ensure!(code == 6, "the exit code is {code}");
    node.stop()?;
    leftovers::none(&node.dir().to_string_lossy(), &[], t.deadline(20))
}

fn exit_while_away(t: &Test<'_>) -> Outcome {
    let node = t.bed.another()?;
    let dir = t.directory()?;
    let mount = format!("type=bind,src={},dst=/host,options=rbind:rw", dir.display());
    let container = t.container_on(&node);
    let script = "until test -e /host/go; do sleep 0.1; done; exit 5";
    container.start_with(&["--null-io", "--mount", &mount], &["sh", "-c", script])?;
    node.stop()?;
    fs::write(dir.join("go"), "")?;
    thread::sleep(t.deadline(2));
    node.launch()?;
    if t.forgets_stopped() && container.state()?.is_empty() {
        container.container("delete")?.ok()?;
    } else {
        container.wait_stopped()?;
        let code = container.delete()?;
        ensure!(code == 5, "the exit code is {code}");
    }
    node.stop()?;
    leftovers::none(&node.dir().to_string_lossy(), &[], t.deadline(20))
}

fn shim_killed(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start(&["sleep", "100000"])?;
    let shim = container.shim_pid()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL)?;
    // containerd notices, runs the shim's delete command, and forgets the task or shows it as stopped.
    again(t.deadline(20), || {
        let state = container.state()?;
        let over = !["RUNNING", "UNKNOWN"].contains(&state.as_str());
        holds(over, || format!("the task is still {state}"))
    })?;
    container.remove();
    Ok(())
}
