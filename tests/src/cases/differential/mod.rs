//! One OCI spec, run by runc and by the runtime under test on the same containerd: what the process
//! sees must be the same, but for the differences that are listed here.

mod specs;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bed::Test;
use crate::command;
use crate::ensure;
use crate::failure::Outcome;
use crate::options::Runtime;
use crate::spec;

pub use specs::CASES;

/// The program that reports.
const PROBE: &str = include_str!("probe.sh");

/// A difference that is meant to be.
struct Intended {
    /// How the probe's lines begin that it is about.
    line: &'static str,
    /// Why the two may differ there.
    reason: &'static str,
    /// What remains of such a line to be compared; `None` for nothing.
    rest: fn(line: &str, spec: &Value) -> Option<String>,
}

/// All of them.
const INTENDED: &[Intended] = &[
    Intended {
        line: "limit ",
        reason: "a limit that the spec doesn't name is inherited: from containerd, or from the guest's kernel",
        rest: |line, spec| named_limit(line, spec).then(|| line.to_owned()),
    },
    Intended {
        line: "oom_score_adj ",
        reason: "one that the spec doesn't name is inherited: runc's shim has 1, the agent has its own",
        rest: |line, spec| spec["process"]["oomScoreAdj"].is_number().then(|| line.to_owned()),
    },
    Intended {
        line: "dev core ",
        reason: "a link to /proc/kcore, which the guest's kernel has not: nobody is to read its memory",
        rest: |_, _| None,
    },
    Intended {
        line: "interfaces ",
        reason: "a kernel may bring fallback tunnels of its own into a new network namespace",
        rest: |line, _| {
            Some(format!("interface lo {}", line.split_whitespace().any(|name| name == "lo")))
        },
    },
    Intended {
        line: "content /proc/",
        reason: "a masked path that the kernel doesn't have is as hidden as one that it has",
        rest: |line, _| (!line.ends_with(" hidden")).then(|| line.to_owned()),
    },
    Intended {
        line: "mount ",
        reason: "devices, identifiers and the types of the host's file systems are those of another kernel",
        rest: |line, _| mount(line),
    },
];

/// What a spec asks for that no other is asked for.
type Change = fn(&mut Value, &Path);

/// Runs the changed spec on both and compares.
fn compare(t: &Test<'_>, change: Change) -> Outcome {
    let oracle = observe(t, Runtime::Runc, change)?;
    let subject = observe(t, t.bed.options.runtime, change)?;
    let only = |these: &[String], those: &[String], sign: char| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .map(|line| format!("{sign} {line}"))
            .collect()
    };
    let mut difference = only(&oracle, &subject, '-');
    difference.extend(only(&subject, &oracle, '+'));
    ensure!(
        difference.is_empty(),
        "runc (-) and the runtime under test (+) differ:\n{}\nmeant to differ are only:\n{}",
        difference.join("\n"),
        INTENDED.iter().map(|one| format!("  {}: {}\n", one.line, one.reason)).collect::<String>()
    );
    Ok(())
}

/// What the probe prints, and how it ends, in comparable lines.
fn observe(t: &Test<'_>, runtime: Runtime, change: Change) -> Outcome<Vec<String>> {
    let root = t.root_file_system()?;
    fs::write(root.join("probe.sh"), PROBE)?;
    fs::set_permissions(
        root.join("probe.sh"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let container = t.container_of(runtime);
    let shared = t.directory()?;
    fs::write(shared.join("file"), "content\n")?;
    let mut spec = spec::plain(&root, &["sh", "/probe.sh"]);
    spec["hostname"] = json!("probed");
    spec["linux"]["cgroupsPath"] = json!(format!("/e2e/{}", container.id));
    change(&mut spec, &shared);
    let config = t.directory()?.join("config.json");
    fs::write(&config, serde_json::to_vec_pretty(&spec)?)?;
    let run = || container.run(&["--config", &config.to_string_lossy()], &[]);
    let mut done = run()?;
    // containerd 1.6 now and then loses the last lines that runc's container printed.
    if runtime == Runtime::Runc && !done.out().ends_with("end\n") {
        done = run()?;
    }
    ensure!(
        done.out().ends_with("end\n"),
        "the probe did not run to its end under {runtime:?}: {}\n{}",
        command::tail(&done.out()),
        command::tail(&done.err())
    );
    let mut lines: Vec<String> =
        done.out().lines().filter_map(|line| comparable(line, &spec)).collect();
    lines.push(format!("exit code {}", done.code()));
    lines.push(format!("stderr {:?}", done.err()));
    lines.sort();
    Ok(lines)
}

/// What remains of a line to be compared.
fn comparable(line: &str, spec: &Value) -> Option<String> {
    match INTENDED.iter().find(|intended| line.starts_with(intended.line)) {
        Some(intended) => (intended.rest)(line, spec),
        None => Some(line.to_owned()),
    }
}

/// Whether a line of /proc/self/limits is about a limit that the spec names.
fn named_limit(line: &str, spec: &Value) -> bool {
    let limits = spec["process"]["rlimits"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = limits.iter().filter_map(|limit| match limit["type"].as_str()? {
        "RLIMIT_NOFILE" => Some("Max open files"),
        "RLIMIT_CORE" => Some("Max core file size"),
        "RLIMIT_NPROC" => Some("Max processes"),
        "RLIMIT_STACK" => Some("Max stack size"),
        "RLIMIT_FSIZE" => Some("Max file size"),
        "RLIMIT_MEMLOCK" => Some("Max locked memory"),
        "RLIMIT_CPU" => Some("Max cpu time"),
        _ => None,
    });
    names.into_iter().any(|name| line.contains(name))
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)), reduced to what the spec decides.
///
/// - Identifiers, devices and roots of mounts are the kernel's.
/// - A file system of the host arrives over virtiofs: its type and its own options are not compared,
///   the mount's flags are, but for access times, which the host's own mount decides.
/// - Of a tmpfs's options its size and mode are compared: the others are defaults of the kernel.
/// - Masked and read-only paths are compared by what can be read and written.
fn mount(line: &str) -> Option<String> {
    let entry = line.strip_prefix("mount ")?;
    let (place, source) = entry.split_once(" - ")?;
    let place: Vec<&str> = place.split(' ').collect();
    let (target, flags) = (*place.get(4)?, *place.get(5)?);
    let source: Vec<&str> = source.splitn(3, ' ').collect();
    let (kind, options) = (*source.first()?, *source.get(2)?);
    let below = |dir: &str| target.starts_with(dir) && target != dir;
    if below("/proc")
        || target.starts_with("/sys/firmware")
        || target == "/sys/devices/virtual/powercap"
    {
        return None;
    }
    let kernel =
        ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"].contains(&kind);
    let mut flags: Vec<&str> =
        flags.split(',').filter(|flag| kernel || !flag.ends_with("atime")).collect();
    flags.sort_unstable();
    let kind = if kernel { kind.trim_end_matches('2') } else { "host" };
    let mut own: Vec<&str> = options
        .split(',')
        .filter(|option| {
            kind == "tmpfs" && (option.starts_with("size=") || option.starts_with("mode="))
        })
        .collect();
    own.sort_unstable();
    Some(format!("mount {target} {kind} {} {}", flags.join(","), own.join(",")))
}

/// Appends to an array of the spec.
fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    } else {
        *list = json!([item]);
    }
}

/// Adds to the probe's environment.
fn env(spec: &mut Value, name: &str, value: &str) {
    push(&mut spec["process"]["env"], json!(format!("{name}={value}")));
}
