//! `bulkhead gc`: ends and removes what a dead shim left over, and waits for the end of spares where there are to be none.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use bulkhead_protocols::chain;
use bulkhead_shim::record::{Entry, ProcessId, Record, RecordError, reap};

/// How old a directory without a record is before it counts as left over: a shim writes the
/// record milliseconds after it has made the directory.
const SETTLED: Duration = Duration::from_secs(60);

/// How long a spare may take to end that has no place any more. One that boots notices when it has.
const SPARES_END: Duration = Duration::from_secs(30);

/// Removes what is left over, or says what it would remove. Fails if something stays. What it does counts, whether
/// somebody reads about it or not.
pub fn run(entries: &[Entry], spares: bool, dry_run: bool, out: &mut impl Write) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for entry in entries.iter().filter(|e| left_over(e, spares, age(e))) {
        let name = name(entry);
        if dry_run {
            let _ = writeln!(out, "would remove {name}");
            continue;
        }
        match remove(entry) {
            Ok(Some(how)) => drop(writeln!(out, "removed {name}{how}")),
            Ok(None) => {}
            Err(why) => {
                let _ = writeln!(io::stderr(), "bulkhead: {name} stays: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Says what was done besides; nothing where it is another sandbox by now.
fn remove(entry: &Entry) -> Result<Option<String>, String> {
    if let Ok(record) = &entry.record
        && record.shim.is_alive()
    {
        // A spare, and its place was removed. It is not killed: a sandbox may be about to take it.
        if !record.shim.wait(SPARES_END) {
            let still = Record::read(&entry.directory).is_ok_and(|record| record.is_spare());
            return if still { Err("it has not ended yet".to_owned()) } else { Ok(None) };
        }
        if !entry.directory.exists() {
            return Ok(Some(String::new()));
        }
    }
    // The one before may have taken its time: what is there by now may be another sandbox.
    if Record::read(&entry.directory).as_ref().ok() != entry.record.as_ref().ok() {
        return Ok(None);
    }
    reap(&entry.directory).map(|killed| Some(told(&killed))).map_err(|error| chain(&error))
}

/// Whether nobody takes care of it, or will ever need it. `spares` says whether the host is to have spares.
fn left_over(entry: &Entry, spares: bool, age: Duration) -> bool {
    match &entry.record {
        Ok(record) => !record.shim.is_alive() || (record.is_spare() && !spares),
        // What is there and cannot be read may be that of a shim which lives.
        Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            age >= SETTLED
        }
        Err(_) => false,
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

fn told(killed: &[ProcessId]) -> String {
    let killed: Vec<String> = killed.iter().map(ToString::to_string).collect();
    if killed.is_empty() { String::new() } else { format!("; killed {}", killed.join(", ")) }
}

#[cfg(test)]
mod tests {
    use bulkhead_shim::record::ProcessId;

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
        run(&[entry], true, true, &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "would remove web (in default)\n");
        assert!(dir.path().exists());
    }

    #[test]
    fn a_spare_is_waited_for_and_not_killed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut shim = std::process::Command::new("sleep").arg("0.2").spawn().expect("sleep");
        let mut spare =
            Entry { directory: dir.path().to_owned(), ..entry(Record::SPARE, "spare-1") };
        let record = spare.record.as_mut().expect("record");
        record.shim = ProcessId::of("shim", shim.id()).expect("stat");
        record.write(dir.path()).expect("write");
        assert_eq!(remove(&spare), Ok(Some(String::new())));
        assert!(shim.wait().expect("wait").success());
        assert!(!dir.path().exists(), "it has left something");
    }

    #[test]
    fn a_sandbox_that_was_made_anew_since_it_was_listed_is_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let stale = Entry { directory: dir.path().to_owned(), ..entry("default", "web") };
        // Meanwhile containerd starts the same container again: same id, same directory.
        let mut shim = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let mut record = stale.record.as_ref().expect("record").clone();
        record.shim = ProcessId::of("shim", shim.id()).expect("stat");
        record.processes.clear();
        record.write(dir.path()).expect("write");
        let mut out = Vec::new();
        run(&[stale], true, false, &mut out);
        let ended = shim.try_wait().expect("wait");
        let there = dir.path().exists();
        let _ = shim.kill();
        let _ = shim.wait();
        assert_eq!(
            (ended, there, String::from_utf8_lossy(&out).into_owned()),
            (None, true, String::new())
        );
    }
}
