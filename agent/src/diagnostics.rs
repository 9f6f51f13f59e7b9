//! The state of the guest, for people.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use bulkhead_protocols::agent::DiagnosticsResponse;

/// How many lines of the kernel's log are told.
const LINES: usize = 200;

/// The longest record of /dev/kmsg, in bytes (`CONSOLE_EXT_LOG_MAX`).
const MAX_RECORD: usize = 8192;

/// Looks around. What can't be read is left out.
pub fn collect() -> DiagnosticsResponse {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    DiagnosticsResponse {
        memory: sizes(&meminfo).map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
        agent_rss: sizes(&status).find(|(name, _)| *name == "VmRSS").map_or(0, |(_, size)| size),
        kernel_log: kernel_log().unwrap_or_default().into(),
        ..Default::default()
    }
}

/// The sizes in a file of `Name:   123 kB` lines, in bytes. Lines without a unit are counts.
fn sizes(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let mut words = rest.split_ascii_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        let unit = if words.next() == Some("kB") { 1024 } else { 1 };
        Some((name, number.saturating_mul(unit)))
    })
}

/// The last lines of the kernel's log.
fn kernel_log() -> io::Result<VecDeque<String>> {
    let mut kmsg =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut lines = VecDeque::with_capacity(LINES);
    let mut record = vec![0; MAX_RECORD];
    loop {
        match kmsg.read(&mut record) {
            Ok(length) => {
                if let Some(line) = line(&String::from_utf8_lossy(&record[..length])) {
                    if lines.len() == LINES {
                        lines.pop_front();
                    }
                    lines.push_back(line);
                }
            }
            // A record was overwritten while we read; the next read goes on after it.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
            Err(error) => return Err(error),
        }
    }
}

/// A record, `priority,sequence,microseconds,flags[,...];text\n[ KEY=value\n...]`, as dmesg(1)
/// prints it.
fn line(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let micros: u64 = head.split(',').nth(2)?.parse().ok()?;
    let text = text.lines().next().unwrap_or_default();
    Some(format!("[{:5}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes() {
        let text = "MemTotal:       16303428 kB\nHugePages_Total:       4\nName:\tagent\n";
        let pairs: Vec<_> = sizes(text).collect();
        assert_eq!(pairs, [("MemTotal", 16_303_428 * 1024), ("HugePages_Total", 4)]);
    }

    #[test]
    fn records_look_as_in_dmesg() {
        let record = "6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n";
        assert_eq!(line(record).unwrap(), "[    5.140900] NET: Registered protocol family 10");
        assert_eq!(line("nonsense"), None);
    }
}
