//! `bulkhead gc`: ends and removes what a dead shim left over, and spares where there are to be none.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use bulkhead_protocols::chain;
use bulkhead_shim::record::{Entry, Reaped, reap};

/// How old a directory without a record is before it counts as left over: a shim writes the
/// record milliseconds after it has made the directory.
const SETTLED: Duration = Duration::from_secs(60);

/// Removes what is left over, or says what it would remove. Fails if something stays.
///
/// # Errors
/// Those of `out`.
pub fn run(
    entries: &[Entry],
    spares: bool,
    dry_run: bool,
    out: &mut impl Write,
) -> io::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for entry in entries.iter().filter(|e| left_over(e, spares, age(e))) {
        let name = name(entry);
        if dry_run {
            writeln!(out, "would remove {name}")?;
            continue;
        }
        match reap(&entry.directory) {
            Ok(reaped) => writeln!(out, "removed {name}{}", killed(&reaped))?,
            Err(error) => {
                eprintln!("bulkhead: {name} stays: {}", chain(&error));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Whether nobody takes care of it, or will ever need it. `spares` says whether the host is to have spares.
fn left_over(entry: &Entry, spares: bool, age: Duration) -> bool {
    match &entry.record {
        Ok(record) => !record.shim.is_alive() || (record.is_spare() && !spares),
        Err(_) => age >= SETTLED,
    }
}

/// How long nothing has changed in the directory; no time at all where that cannot be seen.
fn age(entry: &Entry) -> Duration {
    let changed = fs::metadata(&entry.directory).and_then(|metadata| metadata.modified());
    let age = changed.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    age.unwrap_or_default()
}

fn name(entry: &Entry) -> String {
    match &entry.record {
        Ok(record) => format!("{} (in {})", record.id, record.namespace),
        Err(_) => entry.directory.display().to_string(),
    }
}

fn killed(reaped: &Reaped) -> String {
    let killed: Vec<String> = reaped.killed.iter().map(ToString::to_string).collect();
    if killed.is_empty() { String::new() } else { format!("; killed {}", killed.join(", ")) }
}

#[cfg(test)]
mod tests {
    use bulkhead_shim::record::{ProcessId, Record};

    use super::*;
    use crate::find::tests::entry;

    #[test]
    fn a_sandbox_is_kept_as_long_as_its_shim_lives() {
        let mut entry = entry("default", "web");
        assert!(left_over(&entry, true, Duration::ZERO));
        if let Ok(record) = &mut entry.record {
            record.shim = ProcessId::own("shim").expect("stat");
        }
        assert!(!left_over(&entry, false, Duration::MAX));
        if let Ok(record) = &mut entry.record {
            record.namespace = Record::SPARE.to_owned();
        }
        assert!(!left_over(&entry, true, Duration::MAX));
        assert!(left_over(&entry, false, Duration::MAX));
    }

    #[test]
    fn a_directory_without_a_record_may_be_a_sandbox_that_is_just_made() {
        let record = Record::read("/nowhere".as_ref());
        let entry = Entry { directory: "/nowhere".into(), record };
        assert!(!left_over(&entry, true, Duration::from_secs(5)));
        assert!(left_over(&entry, true, Duration::from_secs(61)));
        assert_eq!(age(&entry), Duration::ZERO);
    }

    #[test]
    fn a_dry_run_removes_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let entry = Entry { directory: dir.path().to_owned(), ..entry("default", "web") };
        let mut out = Vec::new();
        run(&[entry], true, true, &mut out).expect("write");
        assert_eq!(String::from_utf8_lossy(&out), "would remove web (in default)\n");
        assert!(dir.path().exists());
    }
}
