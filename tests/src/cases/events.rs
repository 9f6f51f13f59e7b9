//! Events: what containerd's subscribers see.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bed::Test;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::product::process;
use crate::runner::Case;
use crate::session::Session;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "events.order",
        "events come in order, with exactly one exit for each process",
        order,
    ),
    Case::any(
        "events.short_life",
        "the exit of a program that ends at once never overtakes its start",
        short_life,
    ),
    Case::any("events.pause", "pause and resume are told", pause),
    Case::bulkhead(
        "events.vm_lost",
        "a VM that dies ends its processes with 137, once each, and the log has the reason",
        vm_lost,
    ),
    Case::bulkhead(
        "events.daemon_lost",
        "a VM whose file server or vsock daemon dies does not hang, and the log has the reason",
        daemon_lost,
    ),
];

/// An event of one container: its topic and its content.
type Event = (String, Value);

/// A running `ctr events` that is known to be subscribed.
fn subscribe(t: &Test<'_>) -> Outcome<Session> {
    let mut session = Session::pipes(t.bed.containerd.ctr(["events"]), t.deadline(60))?;
    // Nothing tells when the subscription holds, so an event of our own does.
    for _ in 0..50 {
        let marker = t.container();
        marker.create(&[], &["true"])?;
        marker.container("delete")?.ok()?;
        let mut seen = Vec::new();
        while let Some(piece) = more(&mut session, Duration::from_millis(300))? {
            seen.extend(piece);
            if String::from_utf8_lossy(&seen).contains(&marker.id) {
                return Ok(session);
            }
        }
    }
    Err(Failure::new("`ctr events` shows nothing"))
}

/// What `ctr events` prints within a time; nothing once it has ended.
fn more(session: &mut Session, time: Duration) -> Outcome<Option<Vec<u8>>> {
    Ok(session.read_within(time)?.filter(|piece| !piece.is_empty()))
}

/// The task events of container `id`, up to its delete and whatever comes shortly after.
fn collect(t: &Test<'_>, mut session: Session, id: &str) -> Outcome<Vec<Event>> {
    let mut text = String::new();
    let deleted =
        |text: &str| text.lines().any(|line| line.contains(id) && line.contains(" /tasks/delete "));
    while !deleted(&text) {
        match more(&mut session, t.deadline(3))? {
            Some(piece) => text.push_str(&String::from_utf8_lossy(&piece)),
            None => break,
        }
    }
    // Another exit, if there is one too many, would come now.
    while let Some(piece) = more(&mut session, Duration::from_millis(500))? {
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    let mine = text.lines().filter(|line| line.contains(id) && line.contains(" /tasks/"));
    mine.map(|line| {
        let start =
            line.find('{').ok_or_else(|| Failure::new(format!("no content in {line:?}")))?;
        let topic = line[..start].split_whitespace().next_back().unwrap_or_default().to_owned();
        Ok((topic, serde_json::from_str(&line[start..])?))
    })
    .collect()
}

fn topics(events: &[Event]) -> Vec<&str> {
    events.iter().map(|(topic, _)| topic.as_str()).collect()
}

/// Requires exactly these topics. runc's shim may end before its last event is out.
fn in_order(t: &Test<'_>, seen: &[&str], expected: &[&str]) -> Outcome {
    let lost = !t.is_bulkhead() && Some(seen) == expected.split_last().map(|(_, rest)| rest);
    ensure!(seen == expected || lost, "the events were {seen:?}");
    Ok(())
}

fn order(t: &Test<'_>) -> Outcome {
    let session = subscribe(t)?;
    let container = t.container();
    container.start(&["sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.1; done"])?;
    container.exec("e", &[], &["sh", "-c", "exit 5"])?.exits(5)?;
    container.kill("TERM")?;
    container.wait_stopped()?;
    container.delete()?;
    let events = collect(t, session, &container.id)?;
    let seen = topics(&events);
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
        "/tasks/delete",
    ];
    in_order(t, &seen, &expected)?;
    let exits = exits(&events)?;
    ensure!(exits == [("e", 5), (container.id.as_str(), 4)], "the exits were {exits:?}");
    let pid = |topic: &str| {
        events.iter().find(|(name, _)| name == topic).map(|(_, event)| event["pid"].as_u64())
    };
    ensure!(pid("/tasks/create") == pid("/tasks/start"), "create and start tell different pids");
    Ok(())
}

/// Which processes have ended, and how. Each says when.
fn exits(events: &[Event]) -> Outcome<Vec<(&str, u64)>> {
    let exits = events.iter().filter(|(topic, _)| topic == "/tasks/exit");
    exits
        .map(|(_, event)| {
            ensure!(!event["exited_at"].is_null(), "an exit without its time: {event}");
            let (id, status) = (event["id"].as_str(), event["exit_status"].as_u64());
            Ok((id.unwrap_or_default(), status.unwrap_or_default()))
        })
        .collect()
}

fn vm_lost(t: &Test<'_>) -> Outcome {
    lost(t, &t.bed.options.hypervisor)
}

fn daemon_lost(t: &Test<'_>) -> Outcome {
    lost(t, "virtiofsd")?;
    if t.bed.options.hypervisor == "qemu" {
        lost(t, "vhost-device-vsock")?;
    }
    Ok(())
}

/// A running container and its exec, whose process of that name on the host is killed.
fn lost(t: &Test<'_>, name: &str) -> Outcome {
    let session = subscribe(t)?;
    let container = t.container();
    container.start(&["sleep", "100000"])?;
    let exec = container.exec_command("e", &[], &["sh", "-c", "echo ready; exec sleep 100000"]);
    let mut exec = Session::pipes(exec, t.deadline(30))?;
    exec.read_until("ready\n")?;
    let process = process(&container.inspect()?, name)?;
    kill(Pid::from_raw(process), Signal::SIGKILL)?;
    exec.finish()?.exits(137)?;
    container.wait_stopped()?;
    let status = container.delete()?;
    ensure!(status == 137, "the container ended with {status}");
    let events = collect(t, session, &container.id)?;
    let exits = exits(&events)?;
    ensure!(exits == [("e", 137), (container.id.as_str(), 137)], "the exits were {exits:?}");
    let log = container.node().log();
    let told = |line: &str| [&container.id, name, "SIGKILL"].iter().all(|word| line.contains(word));
    ensure!(log.lines().any(told), "the log does not say what became of {name}");
    Ok(())
}

fn short_life(t: &Test<'_>) -> Outcome {
    for _ in 0..3 {
        let session = subscribe(t)?;
        let container = t.container();
        container.run(&[], &["true"])?.ok()?;
        let events = collect(t, session, &container.id)?;
        let seen = topics(&events);
        in_order(t, &seen, &["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"])?;
    }
    Ok(())
}

fn pause(t: &Test<'_>) -> Outcome {
    let session = subscribe(t)?;
    let container = t.container();
    container.start(&["sleep", "1000"])?;
    container.task("pause", &[])?.ok()?;
    container.task("resume", &[])?.ok()?;
    container.kill("KILL")?;
    container.wait_stopped()?;
    container.delete()?;
    let events = collect(t, session, &container.id)?;
    let seen = topics(&events);
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/exit",
        "/tasks/delete",
    ];
    in_order(t, &seen, &expected)?;
    Ok(())
}
