//! What file systems are to programs: on root file systems, volumes and disks alike.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::disk::alone;
use crate::bed::{Container, Test};
use crate::command::{self, Input};
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("storage.rootfs", "a root file system is one to programs", rootfs),
    Case::any("storage.volume", "a directory of the host is a file system to programs", volume),
    Case::bulkhead(
        "storage.on_disk",
        "a directory on the disk is a file system to programs",
        on_disk,
    ),
    Case::bulkhead(
        "storage.on_upper",
        "a root file system with its upper directory on the disk is one",
        on_upper,
    ),
    Case::any("storage.many", "a directory of 100,000 entries is listed whole, and removed", many),
    Case::any(
        "storage.mapped",
        "what a program left in a mapping is on the host when its end is",
        mapped,
    ),
    Case::bulkhead(
        "storage.code",
        "programs run, whatever lay before in the memory that they are read into",
        code,
    ),
    Case::any("storage.locks", "two containers lock the files of one volume", locks),
];

/// What is asked of each.
const CHECKS: [&str; 5] = ["names", "nodes", "data", "random", "locks"];

/// The program that asks.
pub fn probe(t: &Test<'_>) -> PathBuf {
    t.bed.options.target.join("guest/bulkhead-probe")
}

fn mount(source: &std::path::Path, inside: &str) -> String {
    format!("type=bind,src={},dst={inside},options=rbind", source.display())
}

fn ask(container: &Container<'_>, directory: &str) -> Outcome {
    for check in CHECKS {
        container.sh(&format!("mkdir -p {directory}; /probe {check} {directory}"))?;
    }
    Ok(())
}

fn code(t: &Test<'_>) -> Outcome {
    const PROGRAMS: usize = 16;
    let programs = t.directory()?;
    let source = programs.join("source.c");
    // One's code lies elsewhere in its file than the next one's.
    fs::write(
        &source,
        "#include <stdio.h>\n__asm__(SKIP);\nint main(void) { return printf(\"%d\\n\", NUMBER) < 0; }\n",
    )?;
    for number in 1..=PROGRAMS {
        let mut gcc = Command::new("gcc");
        let skip = format!("-DSKIP=\".skip {}, 0x90\"", number * 528);
        gcc.args(["-static", "-O1", &format!("-DNUMBER={number}"), &skip, "-o"]);
        gcc.arg(programs.join(number.to_string())).arg(&source);
        command::run(gcc, Input::Null, t.deadline(20))?.ok()?;
    }
    let container = t.container();
    let bound = mount(&programs, "/programs");
    let flags = ["--null-io", "--privileged", "--mount", &bound];
    container.start_with(&flags, &["sleep", "100000"])?;
    // Each is read anew, into pages that may have had another's code.
    let said = container.sh(&format!(
        "for round in 1 2 3 4 5; do for number in $(seq {PROGRAMS}); do
             said=$(/programs/$number 2>&1) || true
             echo 3 > /proc/sys/vm/drop_caches
             test \"$said\" = $number || echo \"$number said $said\"
         done; done"
    ))?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

fn rootfs(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let probe = mount(&probe(t), "/probe");
    container
        .start_with(&["--null-io", "--privileged", "--mount", &probe], &["sleep", "100000"])?;
    ask(&container, "/asked")
}

fn volume(t: &Test<'_>) -> Outcome {
    let (container, dir) = (t.container(), t.directory()?);
    let (probe, volume) = (mount(&probe(t), "/probe"), mount(&dir, "/volume"));
    let flags = ["--null-io", "--privileged", "--mount", &probe, "--mount", &volume];
    container.start_with(&flags, &["sleep", "100000"])?;
    ask(&container, "/volume")
}

fn on_disk(t: &Test<'_>) -> Outcome {
    let probe = mount(&probe(t), "/probe");
    let container = alone(t, &[("scratch_paths", "/data")], &["--mount", &probe])?;
    ask(&container, "/data")
}

fn on_upper(t: &Test<'_>) -> Outcome {
    let probe = mount(&probe(t), "/probe");
    let container = alone(t, &[("rootfs_upper", "guest")], &["--mount", &probe])?;
    ask(&container, "/asked")
}

fn many(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let probe = mount(&probe(t), "/probe");
    // A file that the guest knows takes a descriptor of the host's, of which a process without privileges has few.
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let count = if privileged() { 100_000 } else { 100_000.min(most / 10 * 8) };
    if count < 100_000 {
        println!(
            "storage.many: {count} entries, since this machine's limit of open files is {most}"
        );
    }
    let count = format!("COUNT={count}");
    container.run(&["--mount", &probe, "--env", &count], &["/probe", "many", "/"])?.ok().map(drop)
}

/// Whether limits of resources can be raised here (capabilities(7)).
fn privileged() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask >> CAP_SYS_RESOURCE & 1 == 1)
}

fn mapped(t: &Test<'_>) -> Outcome {
    let dir = t.directory()?;
    let (probe, volume) = (mount(&probe(t), "/probe"), mount(&dir, "/volume"));
    let flags = ["--mount", &probe, "--mount", &volume];
    t.container().run(&flags, &["/probe", "mapped", "/volume"])?.ok()?;
    let seen = fs::read(dir.join("left"))?;
    ensure!(seen.starts_with(b"left in memory"), "the host has {:?}", &seen[..20]);
    Ok(())
}

fn locks(t: &Test<'_>) -> Outcome {
    let (pod, dir) = (t.pod().run()?, t.directory()?);
    fs::copy(probe(t), dir.join("probe"))?;
    let holder = "mkfifo /volume/end; sleep 100000 > /volume/end & /volume/probe hold /volume < /volume/end > /volume/said";
    let one = pod.container("one").mount(&dir, "/volume").script(holder).start()?;
    one.sh("until grep -q held /volume/said; do sleep 0.1; done")?;
    let two = pod.container("two").mount(&dir, "/volume").start()?;
    two.sh("/volume/probe held /volume").map(drop)
}
