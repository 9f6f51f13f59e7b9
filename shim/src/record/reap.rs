//! The end of a sandbox whose shim is gone.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{ProcessId, Record, RecordError, remove_directory};
use crate::cgroup;
use crate::network;
use crate::process::{kill, pidfd, wait_until};
use crate::storage::{scratch, virtiofsd};

/// How long all processes together may take to end. A process in the middle of I/O may need it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills every process of the sandbox in this directory, the shim too, waits for their end, and
/// removes the directory. Returns the processes that were still there. Nothing there is fine, and so is a directory
/// without a record: its processes have ended if the shim has, for they ask the kernel for that.
///
/// # Errors
/// [`RecordError::Kill`], [`RecordError::Unkillable`] and [`RecordError::Remove`]. The directory
/// stays then, so that it can be repeated.
pub fn reap(directory: &Path) -> Result<Vec<ProcessId>, RecordError> {
    let record = Record::read(directory);
    let processes = record.iter().flat_map(Record::all_processes).cloned().collect();
    let killed = end(processes)?;
    if let Ok(record) = &record {
        record.share.iter().for_each(|socket| virtiofsd::dismiss(socket));
        record.network.iter().for_each(|network| network::clean(network));
        record.scratch.iter().for_each(|scratch| scratch::remove(scratch));
        record.alias.iter().for_each(|alias| drop(fs::remove_file(alias)));
        record.cgroups.iter().for_each(|dir| cgroup::remove(dir));
        remove_socket(&record.socket);
    }
    remove_directory(directory)?;
    Ok(killed)
}

/// Removes the socket of a shim that is gone. One that answers belongs to a later shim.
pub fn remove_socket(socket: &Path) {
    if UnixStream::connect(socket).is_err() {
        let _ = fs::remove_file(socket);
    }
}

/// Ends the processes; returns those that had not ended yet.
fn end(processes: Vec<ProcessId>) -> Result<Vec<ProcessId>, RecordError> {
    let mut ending = Vec::new();
    for process in processes {
        let failed = |source| RecordError::Kill { process: process.clone(), source };
        // Nobody ends himself here.
        if process.pid == std::process::id() {
            continue;
        }
        let handle = match pidfd(process.pid) {
            Ok(handle) => handle,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(e) => return Err(failed(e)),
        };
        // After the handle was opened, what the id means cannot change any more.
        if process.is_same() {
            let alive = process.is_alive();
            kill(&handle).map_err(failed)?;
            ending.push((process, handle, alive));
        }
    }
    let deadline = Instant::now() + PATIENCE;
    let mut ended = Vec::new();
    for (process, handle, alive) in ending {
        match wait_until(&handle, deadline) {
            Ok(true) => ended.extend(alive.then_some(process)),
            Ok(false) => {
                return Err(RecordError::Unkillable { process, after: PATIENCE });
            }
            Err(source) => return Err(RecordError::Kill { process, source }),
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::super::tests::record;
    use super::*;

    fn sleeper() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("100").spawn().expect("spawn");
        let id = ProcessId::of("sleep", child.id()).expect("stat");
        (child, id)
    }

    #[test]
    fn what_is_left_is_killed_and_removed_and_again() {
        let state = tempfile::tempdir().expect("tempdir");
        let dir = state.path().join("s");
        fs::create_dir(&dir).expect("mkdir");
        let (mut one, one_id) = sleeper();
        let (mut two, two_id) = sleeper();
        let (mut gone, gone_id) = sleeper();
        gone.kill().expect("kill");
        gone.wait().expect("wait");
        let record =
            Record { shim: gone_id, processes: vec![one_id.clone(), two_id.clone()], ..record() };
        record.write(&dir).expect("write");

        assert_eq!(reap(&dir).expect("reap"), [one_id, two_id]);
        for child in [&mut one, &mut two] {
            assert!(child.try_wait().expect("wait").is_some(), "still running");
        }
        assert!(!dir.exists());
        assert!(reap(&dir).expect("again").is_empty());
    }

    #[test]
    fn another_process_with_the_same_id_is_left_alone() {
        let state = tempfile::tempdir().expect("tempdir");
        let (mut child, mut id) = sleeper();
        id.start_time -= 1;
        Record { processes: vec![id], ..record() }.write(state.path()).expect("write");
        assert!(reap(&state.keep()).expect("reap").is_empty());
        assert!(child.try_wait().expect("wait").is_none(), "it was killed");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[test]
    fn a_directory_without_a_record_is_removed() {
        let state = tempfile::tempdir().expect("tempdir").keep();
        fs::write(state.join("record.json"), "half a rec").expect("write");
        assert!(reap(&state).expect("reap").is_empty());
        assert!(!state.exists());
    }
}
