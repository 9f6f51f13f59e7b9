//! The benchmarks: Bulkhead against runc, interleaved in one run on one containerd, and Kata Containers' starts beside
//! them where its shim is on PATH. Prints a table, and as its last line the same as JSON: a list of {name, unit, value,
//! peer, ratio}.

mod network;
mod pods;
mod storage;

use std::process::ExitCode;
use std::time::Duration;

use bulkhead_tests::bed::{Bed, Container, Test};
use bulkhead_tests::command::{self, Input};
use bulkhead_tests::cri::watch::until;
use bulkhead_tests::failure::{Context, Outcome};
use bulkhead_tests::measure::{self, median};
use bulkhead_tests::options::{Options, Runtime, USAGE};
use bulkhead_tests::product;
use bulkhead_tests::shim;
use serde_json::{Value, json};

/// How often each time is taken.
const ROUNDS: usize = 11;

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> Outcome {
    let Some(options) = Options::parse(std::env::args_os().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let bed = Bed::make(options)?;
    let test = Test::new(&bed, "bench");
    let mut results = Results { list: Vec::new() };
    println!("{:<44} {:>9} {:>9} {:>7}", "", "bulkhead", "runc", "ratio");
    let wanted = |name: &str| {
        let patterns = &bed.options.patterns;
        if patterns.is_empty() {
            return name != ON_REQUEST;
        }
        patterns.iter().any(|pattern| name.contains(pattern.as_str()))
    };
    let mut sections = SECTIONS.into_iter().filter(|(name, _)| wanted(name));
    let measured = sections.try_for_each(|(_, measure)| measure(&test, &mut results));
    // Neither containers nor spares stay behind, whatever went wrong.
    test.close()?;
    bed.containerd.bulkhead(&["gc", "--spares"])?;
    measured?;
    println!("json: {}", Value::Array(results.list));
    Ok(())
}

/// A part of the benchmarks.
type Section = fn(&Test<'_>, &mut Results) -> Outcome;

/// Takes longer than all others together, and has no budget.
const ON_REQUEST: &str = "virtiofsd";

/// All of them; arguments choose some by their names.
const SECTIONS: [(&str, Section); 7] = [
    ("start", cold_start),
    ("idle", idle),
    ("running", in_a_running_sandbox),
    ("pods", pods::measure),
    ("network", network::measure),
    ("storage", storage::measure),
    (ON_REQUEST, storage::settings),
];

/// What was measured.
struct Results {
    list: Vec<Value>,
}

impl Results {
    /// A value beside runc's.
    fn pair(&mut self, name: &str, unit: &str, value: f64, peer: f64) {
        let ratio = if peer > 0.0 { value / peer } else { 0.0 };
        println!("{name:<44} {value:>9.2} {peer:>9.2} {ratio:>7.2}  {unit}");
        self.list.push(
            json!({ "name": name, "unit": unit, "value": value, "peer": peer, "ratio": ratio }),
        );
    }

    /// A value that runc has none beside.
    fn single(&mut self, name: &str, unit: &str, value: f64) {
        println!("{name:<44} {value:>9.2} {:>9} {:>7}  {unit}", "", "");
        self.list.push(
            json!({ "name": name, "unit": unit, "value": value, "peer": null, "ratio": null }),
        );
    }
}

const BOTH: [Runtime; 2] = [Runtime::Bulkhead, Runtime::Runc];

fn seconds(times: &[Duration]) -> f64 {
    median(times.iter().map(Duration::as_secs_f64).collect())
}

/// One way to start a container.
struct Way {
    name: &'static str,
    runtime: Runtime,
    spares: u32,
    first_byte: Vec<Duration>,
    end: Vec<Duration>,
    phases: Vec<(String, Vec<f64>)>,
}

impl Way {
    fn new(name: &'static str, runtime: Runtime, spares: u32) -> Self {
        let (first_byte, end) = (Vec::new(), Vec::new());
        Self { name, runtime, spares, first_byte, end, phases: Vec::new() }
    }

    /// Starts one, and takes the times unless they don't count.
    fn once(&mut self, t: &Test<'_>, counts: bool) -> Outcome {
        let node = &t.bed.containerd;
        spares(t, self.spares)?;
        let container = t.container_of(self.runtime);
        let times = measure::times(container.run_command(&[], &["echo", "hi"]), t.deadline(60))?;
        if self.spares > 0 {
            // The next one, which then is no burden to what is measured meanwhile.
            let dir = product::state_dir(node.dir());
            until(&dir, t.deadline(60), || Ok(dir.join("spare-0").exists())).context("a spare")?;
        }
        if !counts {
            return Ok(());
        }
        self.first_byte.push(times.first_byte);
        self.end.push(times.end);
        for (name, milliseconds) in measure::phases(&node.log(), &container.id) {
            let value = milliseconds as f64 / 1000.0;
            match self.phases.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(value),
                None => self.phases.push((name, vec![value])),
            }
        }
        Ok(())
    }
}

/// Has the sandboxes that start from now on be followed by this many spares.
fn spares(t: &Test<'_>, count: u32) -> Outcome {
    let node = &t.bed.containerd;
    let usual = product::config(&t.bed.options, node.dir());
    node.configure(&format!("{usual}spares = {count}\n"))
}

/// `ctr run --rm`: to the first byte, to the end, and its phases.
fn cold_start(t: &Test<'_>, results: &mut Results) -> Outcome {
    let mut ways =
        vec![Way::new("spare", Runtime::Bulkhead, 1), Way::new("boot", Runtime::Bulkhead, 0)];
    if t.bed.containerd.found(shim::program(Runtime::Kata)).is_some() {
        let mut kata = Way::new("Kata", Runtime::Kata, 0);
        match kata.once(t, false) {
            Ok(()) => ways.push(kata),
            Err(failure) => println!("Kata Containers do not start here: {failure}"),
        }
    }
    ways.push(Way::new("runc", Runtime::Runc, 0));
    // The first of each fills the page cache, or makes the first spare, and doesn't count.
    for round in 0..=ROUNDS {
        for way in &mut ways {
            way.once(t, round > 0)?;
        }
    }
    spares(t, 0)?;
    t.bed.containerd.bulkhead(&["gc"])?.ok()?;
    let Some((runc, others)) = ways.split_last() else { return Ok(()) };
    for way in others {
        let name = format!("ctr run ({}), to the first byte", way.name);
        results.pair(&name, "s", seconds(&way.first_byte), seconds(&runc.first_byte));
        let name = format!("ctr run ({}), to the end", way.name);
        results.pair(&name, "s", seconds(&way.end), seconds(&runc.end));
        for (name, values) in &way.phases {
            results.single(&format!("  phase: {name}"), "s", median(values.clone()));
        }
    }
    Ok(())
}

/// A sandbox of each runtime, that others can join.
fn sandboxes<'t>(t: &Test<'t>) -> Outcome<[Container<'t>; 2]> {
    let containers = BOTH.map(|runtime| t.container_of(runtime));
    for container in &containers {
        let group = container.group_flags();
        let flags = [&["--null-io"], &group.each_ref().map(String::as_str)[..]].concat();
        container.start_with(&flags, &["sleep", "100000"])?;
    }
    Ok(containers)
}

/// What an idle sandbox holds.
fn idle(t: &Test<'_>, results: &mut Results) -> Outcome {
    let containers = sandboxes(t)?;
    std::thread::sleep(t.deadline(2));
    memory(&containers, results)
}

/// What costs a sandbox that is there: exec, a second container.
fn in_a_running_sandbox(t: &Test<'_>, results: &mut Results) -> Outcome {
    let containers = sandboxes(t)?;
    let mut exec = [Vec::new(), Vec::new()];
    let mut second = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (index, runtime) in BOTH.into_iter().enumerate() {
            let command =
                containers[index].exec_command(&format!("e{round}"), &[], &["echo", "hi"]);
            let execution = measure::times(command, t.deadline(60))?;
            let other = t.container_of(runtime);
            let group = containers[index].group_flags();
            let flags = group.each_ref().map(String::as_str);
            let run = measure::times(other.run_command(&flags, &["echo", "hi"]), t.deadline(60))?;
            if round > 0 {
                exec[index].push(execution.end);
                second[index].push(run.first_byte);
            }
        }
    }
    results.pair("exec, to the end", "s", seconds(&exec[0]), seconds(&exec[1]));
    results.pair(
        "second container, to the first byte",
        "s",
        seconds(&second[0]),
        seconds(&second[1]),
    );
    Ok(())
}

/// The memory of one idle sandbox.
fn memory(containers: &[Container<'_>; 2], results: &mut Results) -> Outcome {
    let mib = |kib: u64| kib as f64 / 1024.0;
    let [ours, peers] = [
        measure::processes(containers[0].shim_pid()?)?,
        measure::processes(containers[1].shim_pid()?)?,
    ];
    let shim = |list: &[measure::Process]| {
        list.iter()
            .filter(|process| process.program.contains("shim"))
            .map(|process| process.rss)
            .sum()
    };
    for process in &ours {
        results.single(&format!("  idle: {}, PSS", process.program), "MiB", mib(process.pss));
    }
    let guest = ours.iter().map(|process| process.guest).max_by_key(|guest| guest.resident);
    let guest = guest.unwrap_or_default();
    // What no process has mapped is on the host all the same.
    let unused = guest.held.saturating_sub(guest.resident);
    results.single("  idle: guest memory not mapped", "MiB", mib(unused));
    let pss = |list: &[measure::Process]| list.iter().map(|process| process.pss).sum::<u64>();
    let (total, peer) = (mib(pss(&ours) + unused), mib(pss(&peers)));
    results.pair("idle sandbox, all processes, PSS", "MiB", total, peer);
    results.pair("shim, resident", "MiB", mib(shim(&ours)), mib(shim(&peers)));
    let mut inspect = containers[0].node().tool("bulkhead");
    inspect.args(["inspect", "--json", &containers[0].id]);
    let seen = command::run(inspect, Input::Null, Duration::from_secs(30))?.ok()?;
    let seen: Value = serde_json::from_str(&seen.out())?;
    let agent = seen["guest"]["agent_rss"].as_u64().unwrap_or(0);
    results.single("agent, resident", "MiB", mib(agent >> 10));
    // Without huge pages the host holds what the guest has touched; else some more that lies beside it.
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let what = if huge.is_ok_and(|huge| huge.contains("[deny]")) { "touched" } else { "held" };
    results.single(&format!("idle guest, memory {what}"), "MiB", mib(guest.held));
    Ok(())
}
