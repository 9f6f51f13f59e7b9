//! The task API itself, over the shim's own socket: states, codes and texts.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::{CheckpointTaskRequest, Empty, Status};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::bed::Test;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::runner::Case;
use crate::shim::{Refusal, Reply, Shim, TASK_V2, TASK_V3};
use crate::spec;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "api.created_deleted",
        "a task that is created and never started is deleted cleanly",
        created_deleted,
    ),
    Case::any(
        "api.whole_life",
        "create, start, exec, kill, wait and delete tell the right states and codes",
        whole_life,
    ),
    Case::any(
        "api.delete_running",
        "deleting what runs is refused, and it runs on",
        delete_running,
    ),
    Case::any("api.start_twice", "starting twice is refused, and it runs on", start_twice),
    Case::bulkhead(
        "api.given_up",
        "a container whose Create containerd has given up is not kept",
        given_up,
    ),
    Case::any("api.gone", "every call on what is gone, or never was, says NotFound", gone),
    Case::any("api.exec_stopped", "exec in a stopped container is refused", exec_stopped),
    Case::any(
        "api.wait_many",
        "any number of waits, before and after the end, get the same answer",
        wait_many,
    ),
    Case::any("api.update", "update changes the limits, and the numbers show it", update),
    Case::any("api.kill_exec", "killing an exec, be it with all, kills no other", kill_exec),
    Case::bulkhead(
        "api.exec_first",
        "a container ends after its execs, though nobody takes their output",
        exec_first,
    ),
    Case::any(
        "api.kill_and_start",
        "a container that is killed while it starts ends with 137, and everyone hears of it",
        kill_and_start,
    ),
    Case::any("api.term_created", "a created container ends by what ends a program", term_created),
    Case::any("api.same_exec_twice", "an exec's name can't be taken twice", same_exec_twice),
    Case::bulkhead(
        "api.streams_missing",
        "a stdio FIFO that isn't there is an error, not a hang",
        streams_missing,
    ),
    Case::bulkhead(
        "api.slow_client",
        "a client that takes a killed container's output slowly gets it, and the VM lives meanwhile",
        slow_client,
    ),
    Case::bulkhead(
        "api.pause_exec",
        "an exec starts before a pause or is refused, whenever the pause comes",
        pause_exec,
    ),
    Case::bulkhead("api.both_versions", "task v2 and v3 are served on one socket", both_versions),
    Case::bulkhead("api.checkpoint", "Checkpoint says Unimplemented", checkpoint),
    Case::bulkhead("api.codes", "refusals have the codes that containerd decides by", codes),
];

/// A shim for a container that runs `args`.
pub(super) fn shim(t: &Test<'_>, args: &[&str]) -> Outcome<Shim> {
    shim_of(t, |_| (), args)
}

/// The same, with changes to the spec.
pub fn shim_of(t: &Test<'_>, change: impl FnOnce(&mut Value), args: &[&str]) -> Outcome<Shim> {
    let root = t.root_file_system()?;
    let container = t.container();
    let mut spec = spec::plain(&root, args);
    spec["linux"]["cgroupsPath"] = json!(format!("/e2e/{}", container.id));
    change(&mut spec);
    let bundle: PathBuf = t.directory()?.join(&container.id);
    Shim::start(&t.bed.options, &t.bed.containerd, &container.id, bundle, &spec)
}

/// Ends a container that runs, and its shim.
fn end(shim: &Shim) -> Outcome {
    shim.kill("", 9, true)?;
    let status = shim.wait("")?.exit_status;
    ensure!(status == 137, "SIGKILL gave {status}");
    shim.delete("")?;
    shim.shutdown()?;
    Ok(())
}

/// Requires a refusal whose text holds one of `texts`.
pub(super) fn refused<T>(what: &str, reply: Reply<T>, texts: &[&str]) -> Outcome<Refusal> {
    let Err(refusal) = reply else {
        return Err(crate::failure::Failure::new(format!("{what} was not refused")));
    };
    let low = refusal.message.to_lowercase();
    ensure!(
        texts.iter().any(|text| low.contains(text)),
        "{what} was refused with {:?}, which says none of {texts:?}",
        refusal.message
    );
    Ok(refusal)
}

fn created_deleted(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["true"])?;
    let pid = shim.create()?.pid;
    ensure!(pid > 0, "Create gave no pid");
    let state = shim.state("")?;
    ensure!(state.status.enum_value() == Ok(Status::CREATED), "the state is {:?}", state.status);
    shim.delete("")?;
    refused("State after Delete", shim.state(""), &["not found", "no such", "not created"])?;
    shim.shutdown()?;
    Ok(())
}

fn whole_life(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"])?;
    let created = shim.create()?.pid;
    let started = shim.start_process("")?.pid;
    ensure!(created == started, "Create said pid {created}, Start {started}");
    let state = shim.state("")?;
    ensure!(state.status.enum_value() == Ok(Status::RUNNING), "the state is {:?}", state.status);
    ensure!(
        state.pid == started && state.id == shim.id,
        "State tells of {} {}",
        state.id,
        state.pid
    );
    let connect = shim.connect()?;
    ensure!(connect.task_pid == started && connect.shim_pid > 0, "Connect says {connect:?}");
    ensure!(!shim.pids()?.processes.is_empty(), "Pids is empty");

    shim.exec("e", &["sh", "-c", "exit 21"])?;
    ensure!(
        shim.state("e")?.status.enum_value() == Ok(Status::CREATED),
        "an exec is created before it starts"
    );
    shim.start_process("e")?;
    let status = shim.wait("e")?.exit_status;
    ensure!(status == 21, "the exec gave {status}");
    let deleted = shim.delete("e")?;
    ensure!(deleted.exit_status == 21 && deleted.exited_at.is_some(), "Delete says {deleted:?}");

    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|now| now.as_secs());
    let killed = i64::try_from(now()?)?;
    shim.kill("", 15, false)?;
    let waited = shim.wait("")?;
    let when = waited.exited_at.seconds;
    ensure!(
        waited.exit_status == 9 && (killed..=i64::try_from(now()?)?).contains(&when),
        "Wait says {waited:?}, killed at {killed}"
    );
    let state = shim.state("")?;
    ensure!(state.status.enum_value() == Ok(Status::STOPPED), "the state is {:?}", state.status);
    ensure!(state.exit_status == 9, "State tells of exit {}", state.exit_status);
    ensure!(shim.delete("")?.exit_status == 9, "Delete tells of another exit");
    shim.shutdown()?;
    Ok(())
}

fn delete_running(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    refused("Delete of a running container", shim.delete(""), &["running"])?;
    ensure!(shim.state("")?.status.enum_value() == Ok(Status::RUNNING), "it no longer runs");
    end(&shim)
}

fn start_twice(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    refused("the second Start", shim.start_process(""), &["running", "already", "start"])?;
    ensure!(shim.state("")?.status.enum_value() == Ok(Status::RUNNING), "it no longer runs");
    end(&shim)
}

fn given_up(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["true"])?;
    let created = thread::scope(|scope| -> Outcome<_> {
        let create = scope.spawn(|| shim.create());
        // It waits for the boot.
        thread::sleep(Duration::from_millis(300));
        refused("Delete of what is still made", shim.delete(""), &["not found", "no such"])?;
        create.join().map_err(|_| Failure::new("the caller panicked"))
    })?;
    let refusal = refused("Create", created, &["not found", "no such"])?;
    ensure!(refusal.code == Code::NOT_FOUND, "the code is {:?}", refusal.code);
    refused("State", shim.state(""), &["not found", "no such"])?;
    shim.shutdown()?;
    Ok(())
}

fn gone(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["true"])?;
    let texts = ["not found", "no such", "not created", "does not exist"];
    let none = |when: &str| -> Outcome {
        let calls: [(&str, Option<Refusal>); 11] = [
            ("State", shim.state("").err()),
            ("Kill", shim.kill("", 9, false).err()),
            ("Start", shim.start_process("").err()),
            ("Exec", shim.exec("e", &["true"]).err()),
            ("Wait", shim.wait("").err()),
            ("Pids", shim.pids().err()),
            ("Stats", shim.stats().err()),
            ("Update", shim.update(&json!({})).err()),
            ("Pause", shim.set_paused(true).err()),
            ("CloseIO", shim.close_input("").err()),
            ("Delete", shim.delete("").err()),
        ];
        for (call, refusal) in calls {
            let reply: Reply = refusal.map_or_else(|| Ok(Empty::new()), Err);
            let refusal = refused(&format!("{call} {when}"), reply, &texts)?;
            ensure!(
                !t.is_bulkhead() || refusal.code == Code::NOT_FOUND,
                "{call} {when} has the code {:?}: {}",
                refusal.code,
                refusal.message
            );
        }
        Ok(())
    };
    none("before Create")?;
    shim.create()?;
    let refusal = refused("State of no exec", shim.state("nobody"), &texts)?;
    ensure!(refusal.code == Code::NOT_FOUND, "the code is {:?}", refusal.code);
    shim.start_process("")?;
    shim.wait("")?;
    shim.delete("")?;
    none("after Delete")?;
    shim.shutdown()?;
    Ok(())
}

fn exec_stopped(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["true"])?;
    shim.create()?;
    shim.start_process("")?;
    shim.wait("")?;
    // Refused by Exec itself, or at the latest by Start.
    let reply = shim.exec("e", &["true"]).and_then(|_| shim.start_process("e"));
    refused("exec in a stopped container", reply, &["stopped", "not running", "not found"])?;
    refused(
        "Kill of the stopped one",
        shim.kill("", 15, false),
        &["finished", "not found", "stopped", "not running"],
    )?;
    shim.kill("", 15, true)?;
    shim.delete("")?;
    shim.shutdown()?;
    Ok(())
}

fn wait_many(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sh", "-c", "sleep 1; exit 17"])?;
    shim.create()?;
    shim.start_process("")?;
    let answers: Vec<Reply<_>> = std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| shim.wait(""))).collect();
        waiters.into_iter().filter_map(|waiter| waiter.join().ok()).collect()
    });
    let late = shim.wait("")?;
    ensure!(answers.len() == 4 && late.exit_status == 17, "late: {late:?}");
    for answer in answers {
        let answer = answer?;
        ensure!(
            answer.exit_status == 17 && answer.exited_at == late.exited_at,
            "one waiter got {answer:?}"
        );
    }
    shim.delete("")?;
    shim.shutdown()?;
    Ok(())
}

fn update(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    let limit: u64 = 48 << 20;
    shim.update(&json!({ "memory": { "limit": limit } }))?;
    let stats = shim.stats()?;
    // The limit as a varint stands in the metrics of cgroup v1 and of v2 alike.
    let mut varint = Vec::new();
    let mut rest = limit;
    while rest >= 0x80 {
        varint.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    varint.push(rest as u8);
    let found = stats.stats.value.windows(varint.len()).any(|window| window == varint);
    ensure!(found, "the metrics ({}) don't tell of the new limit", stats.stats.type_url);
    if t.is_bulkhead() {
        let refusal = shim.update(&json!({ "memory": { "swappiness": 10 } }));
        refused("Update of what cannot be", refusal, &["linux.resources.memory.swappiness"])?;
    }
    end(&shim)
}

fn kill_exec(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    shim.exec("never", &["true"])?;
    ensure!(shim.kill("never", 9, true).is_err(), "an exec that was not started was killed");
    let status = shim.delete("never")?.exit_status;
    ensure!(status == 0, "an exec that never ran has ended with {status}");
    shim.exec("e", &["sleep", "1000"])?;
    shim.start_process("e")?;
    // By the number of its field, too: the only one is the exec's id.
    let of_exec =
        |info: &Any| info.type_url.ends_with(".ProcessDetails") && info.value == b"\x0a\x01e";
    let pids = shim.pids()?.processes;
    let execs = pids.iter().filter(|process| process.info.as_ref().is_some_and(of_exec)).count();
    ensure!(pids.len() == 2 && execs == 1, "Pids says {pids:?}");
    // No signal at all asks whether it is there.
    shim.kill("e", 0, false)?;
    shim.kill("e", 9, true)?;
    let status = shim.wait("e")?.exit_status;
    ensure!(status == 137, "the exec ended with {status}");
    ensure!(shim.state("")?.status.enum_value() == Ok(Status::RUNNING), "the container ended, too");
    end(&shim)
}

fn exec_first(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    let fifo = shim.bundle.join("e");
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let name = fifo.to_string_lossy().into_owned();
    shim.exec_with("e", &["cat", "/dev/zero"], |request| request.stdout = name)?;
    let mut output = File::options().read(true).write(true).open(&fifo)?;
    shim.start_process("e")?;
    output.read_exact(&mut [0; 1024])?;
    shim.kill("", 9, false)?;
    let status = shim.wait("")?.exit_status;
    let exec = shim.state("e")?;
    ensure!(status == 137 && exec.status.enum_value() == Ok(Status::STOPPED), "{status}, {exec:?}");
    ensure!(exec.exit_status == 137, "the exec ended with {}", exec.exit_status);
    shim.delete("e")?;
    shim.delete("")?;
    shim.shutdown()?;
    Ok(())
}

fn kill_and_start(t: &Test<'_>) -> Outcome {
    for round in 0..3 {
        let shim = shim(t, &["sleep", "1000"])?;
        shim.create()?;
        let (started, killed) = thread::scope(|scope| -> Outcome<_> {
            let start = scope.spawn(|| shim.start_process(""));
            thread::sleep(Duration::from_millis(3 * round));
            let killed = shim.kill("", 9, false);
            Ok((start.join().map_err(|_| Failure::new("the caller panicked"))?, killed))
        })?;
        killed?;
        let status = shim.wait("")?.exit_status;
        ensure!(status == 137, "round {round}: {status}; the start: {started:?}");
        let status = shim.delete("")?.exit_status;
        ensure!(status == 137, "round {round}: Delete says {status}");
        shim.shutdown()?;
    }
    Ok(())
}

fn term_created(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.kill("", 15, false)?;
    let status = shim.wait("")?.exit_status;
    ensure!(status != 0, "it ended with {status}");
    ensure!(shim.start_process("").is_err(), "it was started after its end");
    shim.delete("")?;
    shim.shutdown()?;
    Ok(())
}

fn same_exec_twice(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    shim.exec("e", &["sleep", "1000"])?;
    let refusal = refused(
        "the second Exec of one name",
        shim.exec("e", &["true"]),
        &["already exists", "exists"],
    )?;
    ensure!(refusal.code == Code::ALREADY_EXISTS, "the code is {:?}", refusal.code);
    shim.start_process("e")?;
    shim.kill("e", 9, false)?;
    shim.wait("e")?;
    shim.delete("e")?;
    end(&shim)
}

fn streams_missing(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["true"])?;
    let missing = shim.bundle.join("no-such-fifo").to_string_lossy().into_owned();
    let reply = shim.create_with(|request| request.stdout = missing);
    refused("Create with a missing FIFO", reply, &["no such file"])?;
    shim.shutdown()?;
    Ok(())
}

fn slow_client(t: &Test<'_>) -> Outcome {
    // Longer than a container may take to end after SIGKILL. A page of the FIFO is free every second.
    const SLOW: Duration = Duration::from_secs(22);
    let shim = shim(t, &["cat", "/dev/zero"])?;
    let fifo = shim.bundle.join("stdout");
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let pid = shim.create_with(|request| request.stdout = fifo.to_string_lossy().into_owned())?.pid;
    let mut output = File::open(&fifo)?;
    shim.start_process("")?;
    output.read_exact(&mut [0; 1 << 20])?;
    // What lies between the two is full then, and takes longer than that to be read.
    thread::sleep(Duration::from_secs(2));
    shim.kill("", 9, true)?;
    let killed = Instant::now();
    while killed.elapsed() < SLOW {
        output.read_exact(&mut [0; 1024])?;
        thread::sleep(Duration::from_millis(250));
    }
    ensure!(kill(Pid::from_raw(i32::try_from(pid)?), None).is_ok(), "the VMM is gone");
    // Its end waits for the client still, and comes once that has taken everything.
    let rest = thread::spawn(move || output.read_to_end(&mut Vec::new()));
    let status = shim.wait("")?.exit_status;
    ensure!(status == 137, "SIGKILL gave {status}");
    shim.delete("")?;
    let rest = rest.join().map_err(|_| Failure::new("the reader panicked"))??;
    ensure!(rest > 0, "the end came before the output");
    shim.shutdown()?;
    Ok(())
}

fn pause_exec(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    let mut refusals = 0;
    for round in 0..12 {
        let exec = format!("e{round}");
        shim.exec(&exec, &["true"])?;
        let started = thread::scope(|scope| -> Outcome<_> {
            let start = scope.spawn(|| shim.start_process(&exec));
            thread::sleep(Duration::from_millis(20 * round));
            shim.set_paused(true)?;
            // It does not wait for the container to go on.
            let started = start.join().map_err(|_| Failure::new("the caller panicked"))?;
            shim.set_paused(false)?;
            Ok(started)
        })?;
        if started.is_err() {
            refused("Start in a paused container", started, &["paused"])?;
            refusals += 1;
        } else {
            let status = shim.wait(&exec)?.exit_status;
            ensure!(status == 0, "round {round}: {status}");
        }
        shim.delete(&exec)?;
    }
    ensure!(refusals < 12, "no exec was ever in time");
    end(&shim)
}

fn both_versions(t: &Test<'_>) -> Outcome {
    let mut shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    for service in [TASK_V2, TASK_V3] {
        shim.under(service);
        let state = shim.state("")?;
        ensure!(
            state.status.enum_value() == Ok(Status::RUNNING),
            "{service} says {:?}",
            state.status
        );
    }
    end(&shim)
}

fn checkpoint(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    shim.start_process("")?;
    let request = CheckpointTaskRequest { id: shim.id.clone(), ..Default::default() };
    let refusal =
        refused("Checkpoint", shim.call::<_, Empty>("Checkpoint", &request), &["checkpoint"])?;
    ensure!(refusal.code == Code::UNIMPLEMENTED, "the code is {:?}", refusal.code);
    end(&shim)
}

fn codes(t: &Test<'_>) -> Outcome {
    let shim = shim(t, &["sleep", "1000"])?;
    shim.create()?;
    let again = refused("the second Create", shim.create(), &["exist", "already"])?;
    ensure!(again.code == Code::ALREADY_EXISTS, "Create again: {:?}", again.code);
    shim.start_process("")?;
    let twice = refused("the second Start", shim.start_process(""), &["running", "started"])?;
    ensure!(twice.code == Code::FAILED_PRECONDITION, "Start again: {:?}", twice.code);
    let delete = refused("Delete of what runs", shim.delete(""), &["running"])?;
    ensure!(delete.code == Code::FAILED_PRECONDITION, "Delete of what runs: {:?}", delete.code);
    let signal = refused("signal 99", shim.kill("", 99, false), &["signal", "99"])?;
    ensure!(signal.code == Code::INVALID_ARGUMENT, "signal 99: {:?}", signal.code);
    shim.kill("", 9, false)?;
    shim.wait("")?;
    let exec = shim.exec("e", &["true"]).and_then(|_| shim.start_process("e"));
    let exec = refused("exec in a stopped container", exec, &["stopped", "not running"])?;
    ensure!(exec.code == Code::FAILED_PRECONDITION, "exec in a stopped container: {:?}", exec.code);
    let kill = refused(
        "Kill of what is gone",
        shim.kill("", 9, false),
        &["finished", "not running", "ended", "gone"],
    )?;
    ensure!(kill.code == Code::NOT_FOUND, "Kill of what is gone: {:?}", kill.code);
    shim.delete("")?;
    shim.shutdown()?;
    Ok(())
}
