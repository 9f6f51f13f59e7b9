//! The record of a sandbox: one JSON file in its directory, with all that must be known to end
//! the sandbox when its shim is gone, and to show it while it runs.

mod reap;
mod remove;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::vmm::{Selection, VmSpec};

pub use crate::process::ProcessId;
pub use reap::{reap, remove_socket};
pub use remove::remove_directory;

/// The record's name in the sandbox's directory.
const FILE: &str = "record.json";

/// The longest record that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// What can go wrong with a record, and with what it names.
#[derive(Debug, Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("the sandbox's record {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no record.
    #[error("the sandbox's record {} is not understood", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A process of the sandbox cannot be ended.
    #[error("{process} cannot be killed")]
    Kill {
        /// Which one.
        process: ProcessId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A process of the sandbox was killed and is still there.
    #[error("{process} is still there {} s after SIGKILL", after.as_secs())]
    Unkillable {
        /// Which one.
        process: ProcessId,
        /// How long was waited.
        after: Duration,
    },
    /// The sandbox's directory cannot be removed.
    #[error("the sandbox's directory {} cannot be removed", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The state directory cannot be listed.
    #[error("the state directory {} cannot be listed", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// containerd's namespace.
    pub namespace: String,
    /// The id of the sandbox, that is of its first container.
    pub id: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The shim that serves it.
    pub shim: ProcessId,
    /// The socket on which the shim listens.
    pub socket: PathBuf,
    /// Its other processes, the VMM first.
    pub processes: Vec<ProcessId>,
    /// The VMM.
    pub hypervisor: String,
    /// What executes the guest: `kvm` or `tcg`.
    pub accel: String,
    /// Why this VMM was chosen.
    pub reason: String,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Memory of the guest in bytes.
    pub memory: u64,
    /// The socket of the file-share daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<PathBuf>,
    /// The VMM's API socket, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<PathBuf>,
    /// What is plugged into the VM.
    #[serde(default)]
    pub devices: Vec<String>,
    /// The network namespace on the host whose interfaces the guest has; none for its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PathBuf>,
    /// Its scratch disk, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// Where its directory was while it was a spare, and can still be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<PathBuf>,
    /// The directories of its control group on the host.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// When the start reached each of its phases.
    #[serde(default)]
    pub phases: Vec<Phase>,
}

/// A phase of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name; those of the guest's own clock start with `guest.`.
    pub name: String,
    /// Microseconds since the shim began to make the sandbox, or since the guest's kernel did.
    pub micros: u64,
}

impl Phase {
    /// A phase that was reached `since` its clock's start.
    #[must_use]
    pub fn new(name: &str, since: Duration) -> Phase {
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        Phase { name: name.to_owned(), micros }
    }
}

/// The current time, as records have it.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Record {
    /// The namespace of sandboxes that wait for one: none of containerd's is called like that.
    pub const SPARE: &'static str = "-";

    /// Whether it waits for a sandbox that it is to become.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        self.namespace == Self::SPARE
    }

    /// The record of a sandbox that this process is about to make. Its processes and phases are
    /// added as they come.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn new(
        namespace: &str,
        id: &str,
        socket: &Path,
        spec: &VmSpec,
        selection: &Selection,
    ) -> io::Result<Record> {
        Ok(Record {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            created_ms: now_ms(),
            shim: ProcessId::own("shim")?,
            socket: socket.to_owned(),
            processes: Vec::new(),
            hypervisor: selection.vmm.name().to_owned(),
            accel: selection.accel.name().to_owned(),
            reason: selection.reason.clone(),
            kernel: spec.kernel.clone(),
            initramfs: spec.initramfs.clone(),
            vcpus: spec.vcpus,
            memory: spec.memory,
            share: spec.share.clone(),
            api: selection.vmm.api_socket(&spec.dir),
            devices: spec.devices(),
            network: None,
            scratch: None,
            alias: None,
            cgroups: Vec::new(),
            phases: Vec::new(),
        })
    }

    /// Writes the record into the sandbox's directory. Whoever reads it sees the old one or the
    /// new one, never a part.
    ///
    /// # Errors
    /// [`RecordError::Io`]
    pub fn write(&self, directory: &Path) -> Result<(), RecordError> {
        let path = directory.join(FILE);
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec_pretty(self)?;
            let new = directory.join(format!(".{FILE}"));
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| RecordError::Io { path: path.clone(), source })
    }

    /// Reads the record of the sandbox in this directory.
    ///
    /// # Errors
    /// [`RecordError::Io`] and [`RecordError::Malformed`].
    pub fn read(directory: &Path) -> Result<Record, RecordError> {
        let path = directory.join(FILE);
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
        if let Err(source) = read {
            return Err(RecordError::Io { path, source });
        }
        serde_json::from_slice(&text).map_err(|source| RecordError::Malformed { path, source })
    }

    /// Every process, the shim first.
    pub fn all_processes(&self) -> impl Iterator<Item = &ProcessId> {
        std::iter::once(&self.shim).chain(&self.processes)
    }
}

/// A directory below the state directory.
#[derive(Debug)]
pub struct Entry {
    /// The directory.
    pub directory: PathBuf,
    /// The record in it. A sandbox that is just being made has none yet.
    pub record: Result<Record, RecordError>,
}

/// Every sandbox of this host, running or left over, in the order of their directories' names.
///
/// # Errors
/// [`RecordError::List`]; a state directory that is not there holds no sandbox.
pub fn list(state_dir: &Path) -> Result<Vec<Entry>, RecordError> {
    let failed = |source| RecordError::List { path: state_dir.to_owned(), source };
    let names = match fs::read_dir(state_dir) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut directories = Vec::new();
    for name in names {
        let name = name.map_err(failed)?;
        if name.file_type().map_err(failed)?.is_dir() {
            directories.push(name.path());
        }
    }
    directories.sort();
    let entry = |directory: PathBuf| Entry { record: Record::read(&directory), directory };
    Ok(directories.into_iter().map(entry).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    pub(crate) fn record() -> Record {
        let process = |role: &str, pid| ProcessId { role: role.to_owned(), pid, start_time: 1 };
        Record {
            namespace: "default".to_owned(),
            id: "web".to_owned(),
            created_ms: now_ms(),
            shim: process("shim", u32::MAX),
            socket: PathBuf::from("/s"),
            processes: vec![process("qemu", u32::MAX)],
            hypervisor: "qemu".to_owned(),
            accel: "tcg".to_owned(),
            reason: "why".to_owned(),
            kernel: PathBuf::from("/k"),
            initramfs: PathBuf::from("/i"),
            vcpus: 1,
            memory: 64 << 20,
            share: None,
            api: None,
            devices: Vec::new(),
            network: None,
            scratch: None,
            alias: None,
            cgroups: Vec::new(),
            phases: vec![Phase::new("vmm", Duration::from_millis(5))],
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_by_root_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut record = record();
        record.write(dir.path()).expect("write");
        record.phases.push(Phase::new("agent", Duration::from_secs(1)));
        record.write(dir.path()).expect("write again");
        assert_eq!(Record::read(dir.path()).expect("read"), record);
        let files: Vec<_> = fs::read_dir(dir.path()).expect("dir").collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let mode = fs::metadata(dir.path().join(FILE)).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_record_of_a_later_version_is_still_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut value = serde_json::to_value(record()).expect("json");
        value["something_new"] = 1.into();
        fs::write(dir.path().join(FILE), value.to_string()).expect("write");
        assert_eq!(Record::read(dir.path()).expect("read").id, "web");
    }

    #[test]
    fn what_is_no_record_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = Record::read(dir.path()).expect_err("nothing");
        assert!(error.to_string().ends_with("record.json cannot be used"), "{error}");
        fs::write(dir.path().join(FILE), "{\"id\": 7}").expect("write");
        let error = Record::read(dir.path()).expect_err("no record");
        assert!(error.to_string().ends_with("record.json is not understood"), "{error}");
    }

    #[test]
    fn every_directory_is_listed_whatever_is_in_it() {
        let state = tempfile::tempdir().expect("tempdir");
        for name in ["b", "a", "c"] {
            fs::create_dir(state.path().join(name)).expect("mkdir");
        }
        fs::write(state.path().join("file"), "").expect("write");
        record().write(&state.path().join("a")).expect("write");
        fs::write(state.path().join("b").join(FILE), "x").expect("write");
        let entries = list(state.path()).expect("list");
        let found: Vec<_> = entries.iter().map(|e| e.record.as_ref().map(|r| &r.id).ok()).collect();
        assert_eq!(found, [Some(&"web".to_owned()), None, None]);
        assert!(list(&state.path().join("none")).expect("no directory").is_empty());
    }
}
