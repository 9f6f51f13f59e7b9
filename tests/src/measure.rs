//! What the benchmarks measure: times of `ctr`, and memory of a sandbox's processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::command;
use crate::failure::{Failure, Outcome};
use crate::leftovers;
use crate::session::Session;

/// The times of one program.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From its start to its first byte of output.
    pub first_byte: Duration,
    /// From its start to its end.
    pub end: Duration,
}

/// Runs a program that prints something, and takes its times.
///
/// # Errors
/// It fails, or prints nothing.
pub fn times(command: Command, deadline: Duration) -> Outcome<Times> {
    let started = Instant::now();
    let mut session = Session::pipes(command, deadline)?;
    let first = session.read()?;
    let first_byte = started.elapsed();
    let done = session.finish()?.ok()?;
    crate::ensure!(
        first.is_some(),
        "`{}` printed nothing: {}",
        done.line,
        command::tail(&done.err())
    );
    Ok(Times { first_byte, end: started.elapsed() })
}

/// The middle of some values; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The phases of a sandbox's cold start, from the shim's line in containerd's log: their names and
/// milliseconds.
pub fn phases(log: &str, sandbox: &str) -> Vec<(String, u64)> {
    let line = log.lines().find(|line| line.contains("cold start") && line.contains(sandbox));
    let list = line.and_then(|line| line.split_once("phases=")).map_or("", |(_, rest)| rest);
    let list = list.trim_start_matches(['\\', '"']);
    let end = list.find(['"', '\\']).unwrap_or(list.len());
    list[..end]
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

/// A process of a sandbox, and its memory in KiB.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its program's name.
    pub program: String,
    /// Its proportional set size: shared pages count by the number of those who share them.
    pub pss: u64,
    /// Its resident set.
    pub rss: u64,
    /// The guest's memory, if it maps that.
    pub guest: GuestMemory,
}

/// The file that is a guest's memory, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuestMemory {
    /// What of it the host holds.
    pub held: u64,
    /// What of that the process has resident.
    pub resident: u64,
}

/// A shim and everything that it has started, the shim first.
///
/// # Errors
/// It is gone, or memory can't be read.
pub fn processes(shim: i32) -> Outcome<Vec<Process>> {
    let mut family = vec![shim];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        // A process whose threads have children has a list for each of them.
        for thread in leftovers::entries(&Path::new("/proc").join(parent.to_string()).join("task"))
        {
            let children = fs::read_to_string(thread.join("children"))?;
            family.extend(children.split_whitespace().flat_map(str::parse::<i32>));
        }
        next += 1;
    }
    family.into_iter().map(process).collect()
}

fn process(pid: i32) -> Outcome<Process> {
    let dir = Path::new("/proc").join(pid.to_string());
    let program = fs::read_link(dir.join("exe"))?;
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let rollup = fs::read_to_string(dir.join("smaps_rollup"))?;
    let mut guest = GuestMemory::default();
    for (range, resident) in large_files(&fs::read_to_string(dir.join("smaps"))?) {
        guest.held += fs::metadata(dir.join("map_files").join(range))?.blocks() / 2;
        guest.resident += resident;
    }
    Ok(Process { program, pss: field(&rollup, "Pss:")?, rss: field(&rollup, "Rss:")?, guest })
}

/// Each file of at least 64 MiB that is mapped shared, by its range of addresses, and what of it is resident, in
/// KiB: the guest's memory is one.
fn large_files(smaps: &str) -> Vec<(String, u64)> {
    let mut files: Vec<(String, u64)> = Vec::new();
    let mut inside = false;
    for line in smaps.lines() {
        // A mapping starts with its addresses and its permissions, all else with a name and a colon.
        let mut words = line.split(' ');
        let range = words.next().filter(|word| word.contains('-'));
        if let Some(range) = range {
            inside = words.next() == Some("rw-s") && size_of(line) >= 64 << 20;
            if inside {
                files.push((range.to_owned(), 0));
            }
        } else if let (true, Some((_, resident))) = (inside, files.last_mut())
            && line.starts_with("Rss:")
        {
            *resident = field(line, "Rss:").unwrap_or(0);
        }
    }
    files
}

/// The size of a mapping, from the first line of its entry in smaps.
fn size_of(line: &str) -> u64 {
    let range = line.split(' ').next().unwrap_or_default();
    let bounds = range
        .split_once('-')
        .map(|(from, to)| (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)));
    match bounds {
        Some((Ok(from), Ok(to))) => to - from,
        _ => 0,
    }
}

/// The number of this line in one of the kernel's lists, in KiB.
pub fn field(text: &str, name: &str) -> Outcome<u64> {
    let line = text.lines().find(|line| line.starts_with(name));
    let number =
        line.and_then(|line| line.split_whitespace().nth(1)).and_then(|word| word.parse().ok());
    number.ok_or_else(|| Failure::new(format!("{name} is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(Vec::new()).abs() < f64::EPSILON);
    }

    #[test]
    fn phases_are_found_in_a_log_line() {
        let log =
            "x\ntime=1 level=info msg=\"cold start\" sandbox=one phases=\"vmm=12 agent=345\"\n";
        assert_eq!(phases(log, "one"), [("vmm".to_owned(), 12), ("agent".to_owned(), 345)]);
        assert_eq!(phases(log, "two"), []);
    }

    #[test]
    fn only_large_files_that_are_shared_may_be_a_guests_memory() {
        let smaps = "7f0000000000-7f0010000000 rw-s 00000000 00:01 1 /#1 (deleted)\n\
                     Size:             262144 kB\nRss:               40000 kB\nVmFlags: rd wr\n\
                     7f1000000000-7f1000001000 rw-s 00000000 00:01 2 /memfd:small (deleted)\n\
                     Size:                  4 kB\nRss:                   4 kB\n\
                     7f2000000000-7f2000001000 rw-p 00000000 00:00 0\n\
                     Rss:                   8 kB\n";
        let files = large_files(smaps);
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(files[0].1, 40000);
    }
}
