//! What a cgroup's files say about its use of resources.

use std::fs;
use std::path::Path;

use bulkhead_protocols::agent::{CpuStats, IoStats, MemoryStats, PidsStats, StatsResponse};

use super::{Cgroup, failed};
use crate::error::{Error, Result};

impl Cgroup {
    /// What the container uses. Values of controllers that the kernel lacks are 0.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the container has no cgroup any more.
    pub fn stats(&self) -> Result<StatsResponse> {
        let path = self.0.join("cpu.stat");
        let cpu = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if super::gone(&error) => {
                return Err(Error::NotFound("the container uses nothing any more".to_owned()));
            }
            Err(error) => return Err(failed(&path, &error)),
        };
        Ok(StatsResponse {
            cpu: Some(cpu_stats(&cpu)).into(),
            memory: Some(memory_stats(&self.0)).into(),
            pids: Some(PidsStats {
                current: value(&self.0.join("pids.current")),
                limit: value(&self.0.join("pids.max")),
                ..Default::default()
            })
            .into(),
            io: text(&self.0.join("io.stat")).lines().filter_map(device_stats).collect(),
            ..Default::default()
        })
    }
}

fn cpu_stats(text: &str) -> CpuStats {
    let mut cpu = CpuStats::default();
    for (name, value) in flat(text) {
        match name {
            "usage_usec" => cpu.usage_us = value,
            "user_usec" => cpu.user_us = value,
            "system_usec" => cpu.system_us = value,
            "nr_periods" => cpu.nr_periods = value,
            "nr_throttled" => cpu.nr_throttled = value,
            "throttled_usec" => cpu.throttled_us = value,
            _ => {}
        }
    }
    cpu
}

fn memory_stats(path: &Path) -> MemoryStats {
    let map = |name: &str| {
        flat(&text(&path.join(name))).map(|(name, value)| (name.to_owned(), value)).collect()
    };
    MemoryStats {
        usage: value(&path.join("memory.current")),
        usage_limit: value(&path.join("memory.max")),
        swap_usage: value(&path.join("memory.swap.current")),
        swap_limit: value(&path.join("memory.swap.max")),
        stat: map("memory.stat"),
        events: map("memory.events"),
        ..Default::default()
    }
}

/// Of io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`, a line for each device.
fn device_stats(line: &str) -> Option<IoStats> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut io =
        IoStats { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            continue;
        };
        let Ok(value) = value.parse() else { continue };
        match name {
            "rbytes" => io.rbytes = value,
            "wbytes" => io.wbytes = value,
            "rios" => io.rios = value,
            "wios" => io.wios = value,
            _ => {}
        }
    }
    Some(io)
}

/// The pairs of a flat keyed file, `name value` a line.
fn flat(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, value.trim().parse().ok()?))
    })
}

/// A value of a flat keyed file.
pub fn keyed(text: &str, name: &str) -> Option<u64> {
    flat(text).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// A file with one number in it; `max` is the largest one, and a file that isn't there is 0.
fn value(path: &Path) -> u64 {
    match text(path).trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_read_by_name() {
        let cpu = cpu_stats(
            "usage_usec 5\nuser_usec 3\nsystem_usec 2\ncore_sched.force_idle_usec 0\n\
             nr_periods 7\nnr_throttled 1\nthrottled_usec 9\n",
        );
        assert_eq!((cpu.usage_us, cpu.user_us, cpu.system_us), (5, 3, 2));
        assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_us), (7, 1, 9));
    }

    #[test]
    fn devices_without_numbers_are_left_out() {
        let text = "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n\
             (unknown) rbytes=1\n259:0\n";
        let io: Vec<_> = text.lines().filter_map(device_stats).collect();
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].minor), (8, 16));
        assert_eq!(
            (io[0].rbytes, io[0].wbytes, io[0].rios, io[0].wios),
            (1_459_200, 314_773_504, 192, 353)
        );
        assert_eq!((io[1].major, io[1].rbytes), (259, 0));
    }

    #[test]
    fn lines_that_are_no_pairs_are_skipped() {
        let pairs: Vec<_> = flat("low 0\nmax\noom_kill 2\nodd x\n").collect();
        assert_eq!(pairs, [("low", 0), ("oom_kill", 2)]);
    }

    #[test]
    fn a_missing_limit_is_not_an_unlimited_one() {
        let directory = std::env::temp_dir().join(format!("bulkhead-stats-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("memory.max"), "max\n").unwrap();
        fs::write(directory.join("pids.max"), "100\n").unwrap();
        assert_eq!(value(&directory.join("memory.max")), u64::MAX);
        assert_eq!(value(&directory.join("pids.max")), 100);
        assert_eq!(value(&directory.join("absent")), 0);
        fs::remove_dir_all(&directory).unwrap();
    }
}
