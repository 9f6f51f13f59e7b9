//! The agent's log: the kernel's own ring, which reaches the serial console and `Diagnostics`.

use std::fs::{File, OpenOptions};
use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Longest text of a record in bytes; the kernel refuses a record beyond about 1 KiB.
const MAX_TEXT: usize = 900;

/// Writes each record as one line of the kernel's log.
struct Kmsg(File);

/// Sends the agent's log to the kernel's from now on. Without /dev/kmsg the agent stays silent.
pub fn init() {
    let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") else {
        return;
    };
    if log::set_boxed_logger(Box::new(Kmsg(file))).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Kmsg {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc reports what the agent handles itself.
        metadata.level() <= Level::Info && !metadata.target().starts_with("ttrpc")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = one_line(&record.args().to_string());
        let line = format!("<{}>bulkhead-agent: {text}\n", priority(record.level()));
        // A log that cannot be written has no one to be told about.
        let _ = (&self.0).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// The syslog severity with the facility `daemon`, as printk takes it.
fn priority(level: Level) -> u8 {
    const DAEMON: u8 = 3 << 3;
    DAEMON
        | match level {
            // What ends the guest must be seen on the console, which shows no more than this.
            Level::Error => 2,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        }
}

/// The text on one line, cut to what the kernel takes.
fn one_line(text: &str) -> String {
    let mut line = text.replace('\n', " ");
    line.truncate(line.floor_char_boundary(MAX_TEXT));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_that_the_kernel_takes() {
        let long = "ä".repeat(1000);
        let line = one_line(&format!("first\nsecond {long}"));
        assert!(line.starts_with("first second ä"));
        assert!(!line.contains('\n'));
        assert!(line.len() <= MAX_TEXT);
    }

    #[test]
    fn severities_are_those_of_syslog() {
        assert_eq!(priority(Level::Error), 26);
        assert_eq!(priority(Level::Info), 30);
    }
}
