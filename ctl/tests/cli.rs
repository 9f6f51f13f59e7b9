//! The program as an operator runs it.

// The helpers of tests are tests too.
#![allow(clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use bulkhead_shim::record::{ProcessId, Record, now_ms};
use serde_json::Value;
use tempfile::TempDir;

/// A host with a state directory and a configuration of its own.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Host {
        let host = Host { dir: tempfile::tempdir().expect("tempdir") };
        fs::create_dir(host.state()).expect("mkdir");
        host.configure("");
        host
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn configure(&self, more: &str) {
        let text = format!("state_dir = \"{}\"\n{more}", self.state().display());
        fs::write(self.dir.path().join("config.toml"), text).expect("configuration");
    }

    fn bulkhead(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_bulkhead"))
            .args(args)
            .env("BULKHEAD_CONFIG", self.dir.path().join("config.toml"))
            .output()
            .expect("bulkhead runs")
    }

    fn sandbox(&self, id: &str, shim: ProcessId, vmm: ProcessId) -> PathBuf {
        let directory = self.state().join(id);
        fs::create_dir(&directory).expect("mkdir");
        let record = Record {
            namespace: "default".to_owned(),
            id: id.to_owned(),
            created_ms: now_ms(),
            shim,
            socket: PathBuf::from("/nowhere/shim"),
            processes: vec![vmm],
            hypervisor: "qemu".to_owned(),
            accel: "tcg".to_owned(),
            reason: "no other is installed".to_owned(),
            kernel: PathBuf::from("/k"),
            initramfs: PathBuf::from("/i"),
            vcpus: 1,
            memory: 128 << 20,
            share: None,
            api: None,
            devices: Vec::new(),
            network: None,
            scratch: None,
            alias: None,
            cgroups: Vec::new(),
            phases: Vec::new(),
        };
        record.write(&directory).expect("record");
        directory
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn process() -> (Child, ProcessId) {
    let child = Command::new("sleep").arg("100").spawn().expect("sleep");
    let pid = child.id();
    let start_time = bulkhead_shim::process::start_time(pid).expect("stat");
    (child, ProcessId { role: "qemu".to_owned(), pid, start_time })
}

fn gone() -> ProcessId {
    ProcessId { role: "shim".to_owned(), pid: u32::MAX, start_time: 1 }
}

#[test]
fn a_wrong_command_line_is_2_and_shows_the_usage() {
    let output = Host::new().bulkhead(&["destroy"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("\"destroy\" is no command"));
    assert!(text(&output.stderr).contains("Usage: bulkhead"));
}

#[test]
fn help_and_version_are_0() {
    for flag in ["--help", "--version"] {
        let output = Host::new().bulkhead(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_configuration_is_named_by_every_command() {
    let host = Host::new();
    host.configure("vcpus = 1000\n");
    for args in [&["list"][..], &["gc"], &["inspect", "x"]] {
        let output = host.bulkhead(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("vcpus = 1000 is not allowed"), "{output:?}");
    }
    let output = host.bulkhead(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("vcpus = 1000 is not allowed"), "{output:?}");
}

#[test]
fn check_fails_with_a_line_for_what_is_missing() {
    let host = Host::new();
    host.configure("virtiofsd = \"/nowhere/virtiofsd\"\nkernel = \"/nowhere/vmlinux\"\n");
    let output = host.bulkhead(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    assert!(lines.contains("FAIL  virtiofsd "), "{lines}");
    assert!(lines.contains("virtiofsd = /nowhere/virtiofsd cannot be used"), "{lines}");
    assert!(lines.contains("FAIL  guest kernel "), "{lines}");
    assert!(lines.ends_with("this host cannot run sandboxes yet\n"), "{lines}");
}

#[test]
fn list_and_inspect_show_a_running_sandbox() {
    let host = Host::new();
    let (mut vmm, vmm_id) = process();
    let own = ProcessId::own("shim").expect("stat");
    host.sandbox("web-1", own, vmm_id.clone());

    let list = host.bulkhead(&["list"]);
    assert!(text(&list.stdout).contains("web-1"), "{list:?}");
    let list: Value =
        serde_json::from_slice(&host.bulkhead(&["list", "--json"]).stdout).expect("json");
    assert_eq!(list[0]["state"], "running");

    let shown = host.bulkhead(&["inspect", "web"]);
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    assert!(text(&shown.stdout).contains("qemu with tcg: no other is installed"), "{shown:?}");
    let shown: Value =
        serde_json::from_slice(&host.bulkhead(&["inspect", "web", "--json"]).stdout).expect("json");
    assert_eq!(shown["processes"][1]["pid"], vmm_id.pid);
    assert!(shown["processes"][1]["memory"]["rss"].as_u64() > Some(0));

    let none = host.bulkhead(&["inspect", "other"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("no sandbox \"other\" on this host"), "{none:?}");
    vmm.kill().expect("kill");
    vmm.wait().expect("wait");
}

#[test]
fn gc_ends_what_a_dead_shim_left_and_nothing_else() {
    let host = Host::new();
    let (mut left, left_id) = process();
    let (mut served, served_id) = process();
    let left_dir = host.sandbox("left", gone(), left_id);
    let own = ProcessId::own("shim").expect("stat");
    let served_dir = host.sandbox("served", own, served_id);
    let being_made = host.state().join("being-made");
    fs::create_dir(&being_made).expect("mkdir");

    let output = host.bulkhead(&["gc", "--dry-run"]);
    assert_eq!(text(&output.stdout), "would remove left (in default)\n");
    assert!(left_dir.exists());

    let output = host.bulkhead(&["gc"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        text(&output.stdout).starts_with("removed left (in default); killed qemu"),
        "{output:?}"
    );
    assert!(left.try_wait().expect("wait").is_some(), "it still runs");
    assert!(!left_dir.exists());
    assert!(served.try_wait().expect("wait").is_none(), "it was killed");
    assert!(served_dir.exists() && being_made.exists());

    let again = host.bulkhead(&["gc"]);
    assert_eq!((again.status.code(), again.stdout.len()), (Some(0), 0), "{again:?}");
    served.kill().expect("kill");
    served.wait().expect("wait");
}

#[test]
fn a_host_without_sandboxes_is_no_error() {
    let host = Host::new();
    fs::remove_dir(host.state()).expect("rmdir");
    assert!(!Path::new(&host.state()).exists());
    assert_eq!(host.bulkhead(&["list"]).status.code(), Some(0));
    assert_eq!(host.bulkhead(&["gc"]).status.code(), Some(0));
}
