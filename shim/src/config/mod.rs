//! The configuration: one TOML file, and drop-ins beside it. `deploy/config.toml` shows every key.

mod annotations;
mod assets;
mod error;
mod file;
mod number;
mod scratch;
mod validate;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use assets::{Files, mkfs};
pub use error::{AssetError, ConfigError, list};
pub use number::show;
pub use scratch::{Filesystem, Scratch};

/// The file that is read where the environment names no other; it may be missing.
pub const DEFAULT_FILE: &str = "/etc/bulkhead/config.toml";

/// The environment's name for another file, which then must be there.
pub const FILE_VARIABLE: &str = "BULKHEAD_CONFIG";

/// The directory beside the file whose `*.toml` are read after it, in the order of their names.
pub const DROP_INS: &str = "config.d";

/// What a sandbox is made with, unless its pod says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The files that were read, in that order.
    pub read_from: Vec<PathBuf>,
    /// Which VMM runs the VMs.
    pub hypervisor: Hypervisor,
    /// Programs and guest images.
    pub files: Files,
    /// Which machine QEMU builds.
    pub qemu_machine: QemuMachine,
    /// vCPUs of a guest.
    pub vcpus: u32,
    /// Memory of a guest in bytes; a multiple of 2 MiB.
    pub memory: u64,
    /// Whether guests may run VMs of their own.
    pub nested: bool,
    /// Appended to the guest kernel's command line.
    pub kernel_params: Vec<String>,
    /// How many guests wait for a sandbox.
    pub spares: u32,
    /// How long the VMM's start, the agent's call and the guest's set-up may take, each.
    pub agent_timeout: Duration,
    /// How many bytes of a guest's console are kept.
    pub console_limit: u64,
    /// What virtiofsd lets the guest cache.
    pub virtiofsd_cache: CacheMode,
    /// Threads of virtiofsd's pool; none: the queue's own thread does all.
    pub virtiofsd_threads: u32,
    /// The disk that a sandbox has for as long as it lives.
    pub scratch: Scratch,
    /// Where what a container writes to its root file system goes.
    pub rootfs_upper: Upper,
    /// Sockets of the host that containers which mount them may reach.
    pub forward_sockets: Vec<PathBuf>,
    /// Where sandboxes keep their directories.
    pub state_dir: PathBuf,
    /// Which log lines are written.
    pub log_level: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            read_from: Vec::new(),
            hypervisor: Hypervisor::Auto,
            files: Files::default(),
            qemu_machine: QemuMachine::Microvm,
            vcpus: 1,
            memory: 512 << 20,
            nested: false,
            kernel_params: Vec::new(),
            spares: 0,
            agent_timeout: Duration::from_secs(60),
            console_limit: 256 << 10,
            virtiofsd_cache: CacheMode::Auto,
            virtiofsd_threads: 0,
            scratch: Scratch::default(),
            rootfs_upper: Upper::Host,
            forward_sockets: Vec::new(),
            state_dir: PathBuf::from("/run/bulkhead"),
            log_level: LogLevel::Info,
        }
    }
}

/// Which VMM is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// The best one that can run here.
    Auto,
    /// cloud-hypervisor, and no other.
    CloudHypervisor,
    /// QEMU, and no other.
    Qemu,
}

/// A machine type of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QemuMachine {
    /// No PCI, no ACPI: the quickest to boot.
    Microvm,
    /// A PC with PCI Express.
    Q35,
}

/// virtiofsd's cache modes (`virtiofsd --help`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Metadata for a second, file contents between close and the next open where unchanged.
    Auto,
    /// All of it, for good: only where nothing else writes to the tree.
    Always,
    /// None of it.
    Never,
    /// Metadata alone, for good.
    Metadata,
}

impl CacheMode {
    /// The mode's name on virtiofsd's command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CacheMode::Auto => "auto",
            CacheMode::Always => "always",
            CacheMode::Never => "never",
            CacheMode::Metadata => "metadata",
        }
    }
}

/// Where what a container writes to its root file system goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Upper {
    /// To where the snapshotter has it.
    Host,
    /// To the scratch disk: it is gone with the container.
    Guest,
}

/// The least important lines that are still logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what may be wrong.
    Warning,
    /// And what happened.
    Info,
    /// And what helps to find a fault.
    Debug,
}

impl Config {
    /// How many guests may wait for a sandbox.
    pub const MOST_SPARES: u32 = 16;
    /// How many vCPUs a guest may have.
    pub const VCPUS: (u32, u32) = (1, 64);
    /// How much memory a guest may have, in bytes.
    pub const MEMORY: (u64, u64) = (64 << 20, 1 << 40);
    /// Guest memory is a multiple of this, in bytes: a huge page.
    pub const MEMORY_STEP: u64 = 2 << 20;

    /// Reads the configuration in this file, or else the one that the environment, or else the default, names.
    ///
    /// # Errors
    /// [`ConfigError`] for a named file that is not there and for any file that cannot be used.
    pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
        let of_all = || env::var_os(FILE_VARIABLE).filter(|file| !file.is_empty());
        match file.map(OsString::from).or_else(of_all) {
            Some(file) => Self::load_from(Path::new(&file), true),
            None => Self::load_from(Path::new(DEFAULT_FILE), false),
        }
    }

    /// Reads one file and the drop-ins beside it. A missing file is an error if it is `required`.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load_from(file: &Path, required: bool) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        match fs::read_to_string(file) {
            Ok(text) => config.merge(file, &text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !required => {}
            Err(source) => {
                return Err(ConfigError::Read { file: file.to_owned(), source });
            }
        }
        for drop_in in drop_ins(file)? {
            match fs::read_to_string(&drop_in) {
                Ok(text) => config.merge(&drop_in, &text)?,
                Err(source) => {
                    return Err(ConfigError::Read { file: drop_in, source });
                }
            }
        }
        Ok(config)
    }

    fn merge(&mut self, file: &Path, text: &str) -> Result<(), ConfigError> {
        validate::apply(self, file, file::parse(file, text)?)?;
        self.read_from.push(file.to_owned());
        Ok(())
    }
}

/// The drop-ins beside a file, in the order of their names. Hidden files are an editor's.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = file.parent().unwrap_or(Path::new("/")).join(DROP_INS);
    let unreadable = |source| ConfigError::Read { file: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn a_missing_default_file_leaves_the_defaults() {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = Config::load_from(&dir.path().join("none.toml"), false).expect("defaults");
        assert_eq!(config, Config::default());
    }

    #[test]
    fn a_missing_named_file_is_an_error_that_names_it() {
        let error = Config::load_from(Path::new("/nowhere/b.toml"), true).expect_err("missing");
        assert_eq!(error.to_string(), "configuration file /nowhere/b.toml cannot be read");
        assert!(error.source().is_some_and(|s| s.to_string().contains("No such file")));
    }

    #[test]
    fn an_unreadable_default_file_is_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("config.toml");
        fs::create_dir(&file).expect("mkdir");
        Config::load_from(&file, false).expect_err("a directory is no file");
    }

    #[test]
    fn drop_ins_win_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("config.toml");
        let drop_in = dir.path().join(DROP_INS);
        fs::create_dir(&drop_in).expect("mkdir");
        fs::write(&file, "vcpus = 2\nnested = true\n").expect("write");
        fs::write(drop_in.join("20-b.toml"), "vcpus = 4\n").expect("write");
        fs::write(drop_in.join("10-a.toml"), "vcpus = 3\nmemory = \"128MiB\"\n").expect("write");
        fs::write(drop_in.join(".30.toml"), "vcpus = 5\n").expect("write");
        fs::write(drop_in.join("40.toml~"), "vcpus = 6\n").expect("write");
        let config = Config::load_from(&file, true).expect("good files");
        assert_eq!((config.vcpus, config.memory, config.nested), (4, 128 << 20, true));
        assert_eq!(config.read_from.len(), 3);
    }

    #[test]
    fn an_error_in_a_drop_in_names_the_drop_in() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join(DROP_INS)).expect("mkdir");
        fs::write(dir.path().join("config.d/x.toml"), "vcpus = 99\n").expect("write");
        let error = Config::load_from(&dir.path().join("config.toml"), false).expect_err("99");
        assert!(error.to_string().contains("config.d/x.toml: vcpus = 99"), "{error}");
    }

    #[test]
    fn the_manual_has_a_line_for_every_key_of_the_shipped_file() {
        let manual = include_str!("../../../docs/configuration.md");
        let shipped = include_str!("../../../deploy/config.toml");
        let keys = shipped.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = "));
        for (key, default) in keys.filter(|(key, _)| !key.contains(' ')) {
            let row = format!("| `{key}` | ");
            let row = manual.lines().find_map(|line| line.strip_prefix(&row)).expect(key);
            let looked_for = default.starts_with("\"/") && row.starts_with("looked for");
            assert!(looked_for || row.starts_with(&format!("`{default}`")), "{key}: {row}");
        }
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        let text = include_str!("../../../deploy/config.toml");
        let set: String = text
            .lines()
            .filter_map(|line| line.strip_prefix("#"))
            .filter(|line| !line.starts_with(' ') && line.contains(" = "))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut config = Config::default();
        config.merge(Path::new("shipped"), &set).expect("the shipped keys");
        config.read_from.clear();
        let files = std::mem::take(&mut config.files);
        assert_eq!(config, Config::default());
        // Paths have no fixed default, but an example each.
        assert!(files.kernel.is_some() && files.initramfs.is_some());
        assert!(files.qemu.is_some() && files.cloud_hypervisor.is_some());
        assert!(files.virtiofsd.is_some() && files.vhost_device_vsock.is_some());
        let keys = text.lines().filter(|line| line.starts_with('#') && line.contains(" = "));
        assert_eq!(keys.filter(|line| !line.starts_with("# ")).count(), 25);
    }
}
