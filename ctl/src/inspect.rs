//! `bulkhead inspect`: the record of a sandbox, and what its processes hold now.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use bulkhead_protocols::agent::DiagnosticsResponse;
use bulkhead_protocols::chain;
use bulkhead_shim::record::{Phase, ProcessId, Record};
use bulkhead_shim::service;
use bulkhead_shim::vmm::{VmInfo, vm_info};
use serde_json::{Value, json};

use crate::memory::Memory;
use crate::{list, text};

/// How long a VMM may take to say what its VM consists of, and a guest how it is.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Phases of the guest's own clock start with this.
const GUEST: &str = "guest.";

/// Shows a sandbox that has a record.
///
/// # Errors
/// Those of `out`.
pub fn run(directory: &Path, record: &Record, json: bool, out: &mut impl Write) -> io::Result<()> {
    let live = Live::of(record);
    if json {
        return writeln!(out, "{:#}", value(directory, record, &live));
    }
    show(directory, record, &live, out)
}

/// What is true of a sandbox at this moment.
struct Live<'a> {
    state: &'static str,
    processes: Vec<(&'a ProcessId, Option<Memory>)>,
    vm: Option<Result<VmInfo, String>>,
    guest: Result<DiagnosticsResponse, String>,
}

impl Live<'_> {
    fn of(record: &Record) -> Live<'_> {
        let memory = |process: &ProcessId| process.is_alive().then(|| Memory::of(process.pid));
        let processes = record.all_processes().map(|p| (p, memory(p).flatten())).collect();
        let info = |socket| vm_info(socket, ANSWER_DEADLINE).map_err(|e| chain(&e));
        Live {
            state: list::state(record),
            processes,
            vm: record.api.as_deref().map(info),
            guest: if record.is_spare() {
                Err("it waits for a sandbox".to_owned())
            } else {
                service::inspect(&record.socket, ANSWER_DEADLINE).map_err(|e| chain(&e))
            },
        }
    }
}

fn value(directory: &Path, record: &Record, live: &Live<'_>) -> Value {
    let mut value = json!(record);
    let process = |(process, memory): &(&ProcessId, Option<Memory>)| {
        json!({
            "role": process.role,
            "pid": process.pid,
            "start_time": process.start_time,
            "alive": process.is_alive(),
            "memory": memory,
        })
    };
    let processes: Vec<Value> = live.processes.iter().map(process).collect();
    let vm = live.vm.as_ref().map(|vm| match vm {
        Ok(info) => json!({
            "state": info.state,
            "devices": info.device_tree.iter().map(|(name, d)| json!({"name": name, "pci": d.pci_bdf}))
                .collect::<Vec<_>>(),
        }),
        Err(error) => json!({ "error": error }),
    });
    value["directory"] = json!(directory);
    value["state"] = json!(live.state);
    value["processes"] = json!(processes);
    value["vm"] = json!(vm);
    value["guest"] = match &live.guest {
        Ok(guest) => json!({
            "memory": guest.memory, "agent_rss": guest.agent_rss, "kernel_log": guest.kernel_log,
        }),
        Err(error) => json!({ "error": error }),
    };
    value
}

fn show(
    directory: &Path,
    record: &Record,
    live: &Live<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let created = UNIX_EPOCH + Duration::from_millis(record.created_ms);
    let cpus = if record.vcpus == 1 { "vCPU" } else { "vCPUs" };
    let guest = format!("{} {cpus}, {}", record.vcpus, text::mib(record.memory));
    let mut facts = vec![
        ("sandbox", format!("{} (namespace {})", record.id, record.namespace)),
        ("state", live.state.to_owned()),
        ("created", humantime::format_rfc3339_seconds(created).to_string()),
        ("hypervisor", format!("{} with {}: {}", record.hypervisor, record.accel, record.reason)),
        ("guest", guest),
        ("kernel", record.kernel.display().to_string()),
        ("initramfs", record.initramfs.display().to_string()),
        ("directory", directory.display().to_string()),
    ];
    facts.extend(record.devices.iter().map(|device| ("device", device.clone())));
    match &live.vm {
        Some(Ok(vm)) => {
            facts.push(("vm", vm.state.clone()));
            for (name, device) in &vm.device_tree {
                if let Some(place) = &device.pci_bdf {
                    facts.push(("pci", format!("{place} {name}")));
                }
            }
        }
        Some(Err(error)) => facts.push(("vm", error.clone())),
        None => {}
    }
    let inside = match &live.guest {
        Ok(guest) => {
            let size =
                |name| guest.memory.get(name).map_or("?".to_owned(), |size| text::mib(*size));
            let (available, total) = (size("MemAvailable"), size("MemTotal"));
            format!("{available} of {total} available, agent {}", text::mib(guest.agent_rss))
        }
        Err(error) => error.clone(),
    };
    facts.push(("inside", inside));
    let facts = facts.into_iter().map(|(name, fact)| vec![name.to_owned(), fact]);
    text::table(out, &facts.collect::<Vec<_>>())?;
    writeln!(out)?;
    text::table(out, &processes(live))?;
    if !record.phases.is_empty() {
        writeln!(out)?;
        text::table(out, &phases(&record.phases))?;
    }
    Ok(())
}

fn processes(live: &Live<'_>) -> Vec<Vec<String>> {
    let mut rows = vec![["PROCESS", "PID", "RSS", "PSS"].map(str::to_owned).to_vec()];
    let mut sum = 0;
    for (process, memory) in &live.processes {
        let (rss, pss) = match memory {
            Some(memory) => {
                sum += memory.pss;
                (text::mib(memory.rss), text::mib(memory.pss))
            }
            None if process.is_alive() => ("?".to_owned(), "?".to_owned()),
            None => ("gone".to_owned(), String::new()),
        };
        rows.push(vec![process.role.clone(), process.pid.to_string(), rss, pss]);
    }
    rows.push(vec!["sum".to_owned(), String::new(), String::new(), text::mib(sum)]);
    rows
}

/// Each phase with the time at which it was reached and what it took since the one before it on
/// the same clock.
fn phases(phases: &[Phase]) -> Vec<Vec<String>> {
    let mut rows = vec![["PHASE", "AT", "TOOK"].map(str::to_owned).to_vec()];
    let (mut host, mut guest) = (0, 0);
    for phase in phases {
        let clock = if phase.name.starts_with(GUEST) { &mut guest } else { &mut host };
        let took = phase.micros.saturating_sub(*clock);
        *clock = phase.micros;
        rows.push(vec![phase.name.clone(), text::ms(phase.micros), text::ms(took)]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_shim::record::Entry;

    use crate::find::tests::entry;

    fn shown(entry: &Entry, json: bool) -> String {
        let mut out = Vec::new();
        let record = entry.record.as_ref().expect("a record");
        run(&entry.directory, record, json, &mut out).expect("write");
        String::from_utf8(out).expect("text")
    }

    fn running() -> Entry {
        let mut entry = entry("default", "web");
        if let Ok(record) = &mut entry.record {
            record.shim = ProcessId::own("shim").expect("stat");
            record.api = Some("/nowhere/api".into());
            record.phases =
                [("share", 1000), ("guest.init", 500_000), ("vmm", 9500), ("guest.ready", 600_000)]
                    .map(|(name, us)| Phase::new(name, Duration::from_micros(us)))
                    .into();
        }
        entry
    }

    #[test]
    fn a_person_sees_guest_processes_and_phases() {
        let text = shown(&running(), false);
        for part in [
            "sandbox     web (namespace default)",
            "state       running",
            "created     2023-11-14T22:13:20Z",
            "hypervisor  qemu with tcg: why",
            "guest       2 vCPUs, 256.0 MiB",
            "device      vsock on /v",
            "vm          cloud-hypervisor's API at /nowhere/api cannot be used: No such file",
            "inside      the shim cannot be reached: No such file",
            "gone",
        ] {
            assert!(text.contains(part), "{part:?} not in\n{text}");
        }
        assert!(
            text.lines().any(|line| line.starts_with("shim ") && line.contains("MiB")),
            "{text}"
        );
    }

    #[test]
    fn each_clock_has_its_own_steps() {
        let Ok(record) = running().record else { panic!("a record") };
        let took: Vec<String> =
            phases(&record.phases).into_iter().skip(1).map(|r| r[2].clone()).collect();
        assert_eq!(took, ["1.0 ms", "500.0 ms", "8.5 ms", "100.0 ms"]);
    }

    #[test]
    fn a_program_gets_the_record_and_the_live_numbers() {
        let value: Value = serde_json::from_str(&shown(&running(), true)).expect("json");
        assert_eq!(value["id"], "web");
        assert_eq!(value["state"], "running");
        assert_eq!(value["processes"][0]["role"], "shim");
        assert!(value["processes"][0]["memory"]["pss"].as_u64() > Some(0));
        assert_eq!(value["processes"][1]["alive"], false);
        assert_eq!(value["phases"][2]["micros"], 9500);
        assert!(value["vm"]["error"].is_string());
        assert!(value["guest"]["error"].is_string());
    }
}
