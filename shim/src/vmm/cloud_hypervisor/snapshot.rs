//! Keeping a guest, and waking a VM with what was kept: cloud-hypervisor's snapshot and restore.
//!
//! The guest's memory is no part of its snapshots: it lies in a file that is there already. The VM's description is a
//! JSON file that names sockets and files, and each sandbox has its own.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::api::{API_SOCKET, Api};
use super::command::Inherited;
use crate::vmm::template::{Snapshot, TemplateError};
use crate::vmm::{VmSpec, memory};

/// The directory of a snapshot in the sandbox's own.
const DIRECTORY: &str = "snapshot";

/// How long the VMM may take to pause, or to write its state.
const DEADLINE: Duration = Duration::from_secs(30);

/// The longest file of a snapshot that is read, in bytes: one vCPU takes some ten thousand.
const LONGEST: u64 = 8 << 20;

/// Where the description has what is the sandbox's own.
const MEMORY: &str = "/memory/zones/0/file";
const SHARE: &str = "/fs/0/socket";
const SHARE_ID: &str = "/fs/0/id";
const VSOCK: &str = "/vsock/socket";
const CONSOLE: &str = "/serial/file";

/// Where the state has the devices.
const DEVICES: &str = "/snapshots/device-manager/snapshots";

/// Stops the VM of this specification for good. Returns its state, and the file that is its memory.
pub(super) fn take(vmm: u32, spec: &VmSpec) -> Result<(Snapshot, File), TemplateError> {
    let refused = |reason: String| TemplateError::Refused { vmm: super::ROLE, reason };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TemplateError::Io { path, source }
    };
    let directory = spec.dir.join(DIRECTORY);
    DirBuilder::new().mode(0o700).create(&directory).map_err(failed(&directory))?;
    let api = Api::new(&spec.dir.join(API_SOCKET), DEADLINE);
    let url = json!({ "destination_url": url(&directory) });
    api.pause()
        .and_then(|()| api.snapshot(&url))
        .map_err(|e| refused(bulkhead_protocols::chain(&e)))?;

    let read = |name: &str| {
        let path = directory.join(name);
        let mut text = Vec::new();
        let file = File::open(&path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
        file.map_err(failed(&path))?;
        serde_json::from_slice::<Value>(&text)
            .map_err(|source| TemplateError::Malformed { path, source })
    };
    let (config, mut state) = (read("config.json")?, read("state.json")?);
    forget_share(&config, &mut state)
        .map_err(|what| refused(format!("its snapshot has no {what}")))?;
    // The VMM's own descriptor.
    let memory = config.pointer(MEMORY).and_then(Value::as_str).unwrap_or_default();
    let memory = PathBuf::from(memory.replace("/self/", &format!("/{vmm}/")));
    let memory = File::open(&memory).map_err(failed(&memory))?;
    Ok((Snapshot { config, state: state.to_string() }, memory))
}

/// Takes the share's state away, but for what the PCI bus knows of it: its daemon is another one in every sandbox,
/// and starts from nothing, as the guest's driver does. What is missing is the error.
fn forget_share(config: &Value, state: &mut Value) -> Result<(), String> {
    let share = config.pointer(SHARE_ID).and_then(Value::as_str).ok_or(SHARE_ID)?;
    let devices = state.pointer_mut(DEVICES).and_then(Value::as_object_mut).ok_or(DEVICES)?;
    devices.remove(share).map(drop).ok_or_else(|| share.to_owned())
}

/// Writes a snapshot for this specification, whose memory the VMM inherits. Returns its URL.
///
/// # Errors
/// What the system says, and `InvalidData` for a description of another form.
pub(super) fn place(
    snapshot: &Snapshot,
    spec: &VmSpec,
    inherited: &Inherited,
    landlock: bool,
) -> io::Result<String> {
    let mut config = snapshot.config.clone();
    // A guest that is woken knows the share's device.
    let share = spec.share.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
    let own = [
        (MEMORY, memory::path(inherited.memory)),
        (SHARE, text(&share.socket)?),
        (VSOCK, text(&spec.vsock())?),
        (CONSOLE, text(&spec.console)?),
    ];
    for (place, value) in own {
        let misses = || io::Error::new(io::ErrorKind::InvalidData, format!("no {place}"));
        *config.pointer_mut(place).ok_or_else(misses)? = value.into();
    }
    config["landlock_enable"] = landlock.into();
    // The disks are plugged in later.
    let disks = inherited.disks.iter().map(|fd| Ok(memory::path(*fd)));
    let paths = std::iter::once(text(&spec.dir)).chain(disks);
    let rules = paths.map(|path| Ok(json!({ "path": path?, "access": "rw" })));
    config["landlock_rules"] = rules.collect::<io::Result<Value>>()?;
    let directory = spec.dir.join(DIRECTORY);
    DirBuilder::new().mode(0o700).create(&directory)?;
    fs::write(directory.join("config.json"), config.to_string())?;
    fs::write(directory.join("state.json"), &snapshot.state)?;
    Ok(url(&directory))
}

fn url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}

fn text(path: &Path) -> io::Result<String> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a path that is not UTF-8");
    path.to_str().map(str::to_owned).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        json!({
            "memory": { "zones": [{ "id": "mem0", "file": "/proc/self/fd/5" }] },
            "fs": [{ "id": "_fs0", "tag": "share", "socket": "/old/fs" }],
            "vsock": { "cid": 3, "socket": "/old/vsock" },
            "serial": { "mode": "File", "file": "/old/console" },
        })
    }

    fn inherited() -> Inherited {
        Inherited { api: 7, events: 8, memory: 9, taps: Vec::new(), disks: vec![14] }
    }

    fn snapshot(config: Value) -> Snapshot {
        Snapshot { config, state: "{\"of\": \"the VM\"}".to_owned() }
    }

    #[test]
    fn a_snapshot_that_is_placed_has_nothing_of_another_sandbox() {
        let dir = tempfile::tempdir().expect("tempdir");
        let spec = VmSpec::sample(dir.path());
        let url = place(&snapshot(config()), &spec, &inherited(), true).expect("placed");
        let placed = dir.path().join(DIRECTORY);
        assert_eq!(url, format!("file://{}", placed.display()));
        let text = fs::read_to_string(placed.join("config.json")).expect("config");
        assert!(!text.contains("/old/"), "{text}");
        let config: Value = serde_json::from_str(&text).expect("json");
        assert_eq!(config.pointer(MEMORY), Some(&json!("/proc/self/fd/9")));
        assert_eq!(config.pointer("/landlock_rules/0/access"), Some(&json!("rw")));
        let state = fs::read_to_string(placed.join("state.json")).expect("state");
        assert_eq!(state, "{\"of\": \"the VM\"}");
        assert_eq!(config.pointer("/landlock_rules/1/path"), Some(&json!("/proc/self/fd/14")));
        let again = place(&snapshot(config), &spec, &inherited(), true).expect_err("placed twice");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_description_of_another_form_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let other = snapshot(json!({ "fs": [] }));
        let spec = VmSpec::sample(dir.path());
        let error = place(&other, &spec, &inherited(), false).expect_err("another form");
        assert_eq!(error.to_string(), "no /memory/zones/0/file");
        assert!(!dir.path().join(DIRECTORY).exists());
    }

    #[test]
    fn the_share_starts_from_nothing() {
        let devices = json!({ "_fs0": { "acked": 1 }, "_virtio-pci-_fs0": {}, "_vsock1": {} });
        let mut state = json!({ "snapshots": { "device-manager": { "snapshots": devices } } });
        let config = config();
        forget_share(&config, &mut state).expect("known");
        let devices = state.pointer(DEVICES).and_then(Value::as_object).expect("devices");
        assert_eq!(devices.keys().collect::<Vec<_>>(), ["_virtio-pci-_fs0", "_vsock1"]);
        assert_eq!(forget_share(&config, &mut state), Err("_fs0".to_owned()));
        assert_eq!(forget_share(&json!({}), &mut state), Err(SHARE_ID.to_owned()));
        assert_eq!(forget_share(&config, &mut json!({})), Err(DEVICES.to_owned()));
    }
}
