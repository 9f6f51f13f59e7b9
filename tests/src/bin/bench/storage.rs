//! Files of a container: fio's sequential, random and synchronous work, and the metadata of many files, on each of the
//! places that a container may have them.

use bulkhead_tests::bed::{Container, Test};
use bulkhead_tests::failure::{Failure, Outcome};
use bulkhead_tests::measure::median;
use bulkhead_tests::options::Runtime;
use bulkhead_tests::ward::Ward;
use serde_json::Value;

use super::Results;

/// How often each is measured.
const ROUNDS: usize = 3;

/// Debian's programs, of this machine.
const PROGRAMS: [&str; 3] = [
    "type=bind,src=/usr,dst=/usr,options=rbind:ro",
    "type=bind,src=/usr/lib,dst=/lib,options=rbind:ro",
    "type=bind,src=/usr/lib64,dst=/lib64,options=rbind:ro",
];

/// A place for files: its name, what a container needs to have it, and the directory.
type Place = (&'static str, &'static [&'static str], &'static str);

const PLACES: [Place; 4] = [
    ("block rootfs", &["--snapshotter", "blockfile"], "/work"),
    ("scratch disk", &["--annotation", "io.bulkhead.scratch_paths=/work"], "/work"),
    ("guest upper", &["--annotation", "io.bulkhead.rootfs_upper=guest"], "/work"),
    ("virtiofs rootfs", &[], "/work"),
];

/// A row: its name, its unit, and how the number is come by.
type Row = (&'static str, &'static str, fn(&Container<'_>, &str) -> Outcome<f64>);

const ROWS: [Row; 6] = [
    ("write", "MiB/s", |container, dir| {
        fio(container, dir, "--rw=write --bs=1m --size=64m --end_fsync=1", "/write/bw_bytes")
            .map(|bytes| bytes / f64::from(1 << 20))
    }),
    ("read", "MiB/s", |container, dir| {
        fio(container, dir, "--rw=read --bs=1m --size=64m", "/read/bw_bytes")
            .map(|bytes| bytes / f64::from(1 << 20))
    }),
    ("random read", "1/s", |container, dir| {
        let job = "--rw=randread --bs=4k --size=64m --time_based --runtime=2";
        fio(container, dir, job, "/read/iops")
    }),
    ("random read by four", "1/s", |container, dir| {
        let job = "--rw=randread --bs=4k --size=16m --numjobs=4 --group_reporting --time_based --runtime=2";
        fio(container, dir, job, "/read/iops")
    }),
    ("write and fsync", "1/s", |container, dir| {
        let job = "--rw=write --bs=4k --size=16m --fsync=1 --time_based --runtime=2";
        fio(container, dir, job, "/write/iops")
    }),
    ("unpack and remove a tree of files", "s", tree),
];

/// Measures all of it.
pub fn measure(t: &Test<'_>, results: &mut Results) -> Outcome {
    let runc = start(t.container_of(Runtime::Runc), &[])?;
    for (place, flags, dir) in PLACES {
        let ours = start(t.container_of(Runtime::Bulkhead), flags)?;
        compare(&ours, &runc, place, dir, results)?;
        ours.remove();
    }
    Ok(())
}

/// How virtiofsd may be set: its name, and the keys.
const SETTINGS: [(&str, &str); 6] = [
    ("auto, no pool", "virtiofsd_cache = \"auto\""),
    ("auto, 2 threads", "virtiofsd_threads = 2"),
    ("auto, 8 threads", "virtiofsd_threads = 8"),
    ("metadata, no pool", "virtiofsd_cache = \"metadata\""),
    ("always, no pool", "virtiofsd_cache = \"always\""),
    ("never, no pool", "virtiofsd_cache = \"never\""),
];

/// Measures a root file system in the share as virtiofsd may be set.
pub fn settings(t: &Test<'_>, results: &mut Results) -> Outcome {
    let runc = start(t.container_of(Runtime::Runc), &[])?;
    for (setting, keys) in SETTINGS {
        let ward = Ward::new(t)?;
        ward.configure(keys)?;
        let ours = start(ward.container(), &[])?;
        compare(&ours, &runc, setting, "/work", results)?;
        ours.remove();
    }
    Ok(())
}

/// Measures all rows in one place of ours, in turns with runc.
fn compare(
    ours: &Container<'_>,
    runc: &Container<'_>,
    place: &str,
    dir: &str,
    results: &mut Results,
) -> Outcome {
    for (name, unit, work) in ROWS {
        let mut values = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (values, container) in values.iter_mut().zip([ours, runc]) {
                let value = work(container, dir)?;
                if round > 0 {
                    values.push(value);
                }
            }
        }
        let [value, peer] = values.map(median);
        results.pair(&format!("{place}: {name}"), unit, value, peer);
    }
    Ok(())
}

/// Runs a container that idles, with what the work needs.
fn start<'t>(container: Container<'t>, flags: &[&str]) -> Outcome<Container<'t>> {
    let mut all = vec!["--null-io", "--env", "PATH=/usr/bin:/bin"];
    all.extend(PROGRAMS.iter().flat_map(|mount| ["--mount", mount]));
    all.extend(flags);
    container.start_with(&all, &["sleep", "100000"])?;
    container.sh("mkdir -p /work /tmp; tar -C /usr/share/perl -cf /tmp/tree.tar .")?;
    Ok(container)
}

/// Runs a job; returns a number of its report.
fn fio(container: &Container<'_>, dir: &str, job: &str, number: &str) -> Outcome<f64> {
    let text = container
        .sh(&format!("fio --name=job --directory={dir} --unlink=1 {job} --output-format=json"))?;
    let report: Value = serde_json::from_str(text.trim_start_matches(|c| c != '{'))?;
    let value = report.pointer(&format!("/jobs/0{number}")).and_then(Value::as_f64);
    value.ok_or_else(|| Failure::new(format!("fio printed {text}")))
}

/// In seconds.
fn tree(container: &Container<'_>, dir: &str) -> Outcome<f64> {
    let text = container.sh(&format!(
        "mkdir {dir}/tree; start=$(date +%s%N); tar -C {dir}/tree -xf /tmp/tree.tar; rm -r {dir}/tree
         echo $(($(date +%s%N) - start))"
    ))?;
    let nanoseconds: f64 = text.trim().parse()?;
    Ok(nanoseconds / 1e9)
}
