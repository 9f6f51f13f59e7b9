//! What a process holds of the host's memory.

use std::fs;

use serde::Serialize;

/// A process's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All that is resident, shared pages in full.
    pub rss: u64,
    /// All that is resident, shared pages by their share: these can be summed up.
    pub pss: u64,
}

impl Memory {
    /// Of a process, unless it is gone or someone else's.
    pub fn of(pid: u32) -> Option<Memory> {
        parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
    }
}

/// proc_pid_smaps(5).
fn parse(rollup: &str) -> Option<Memory> {
    let bytes = |name: &str| -> Option<u64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    };
    Some(Memory { rss: bytes("Rss:")?, pss: bytes("Pss:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rss_and_pss_are_read() {
        let text = "5581-7ffd ---p 00000000 00:00 0 [rollup]\n\
                    Rss:                2048 kB\nPss:                 512 kB\nPss_Dirty: 4 kB\n";
        assert_eq!(parse(text), Some(Memory { rss: 2 << 20, pss: 512 << 10 }));
        assert_eq!(parse("Rss: 1 kB\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn our_own_memory_is_seen_and_that_of_nobody_is_not() {
        let own = Memory::of(std::process::id()).expect("smaps_rollup");
        assert!(own.rss >= own.pss && own.pss > 0);
        assert_eq!(Memory::of(u32::MAX), None);
    }
}
