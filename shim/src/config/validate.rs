//! The limits of each key, and the merging of files: a later file wins, key by key.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::File;
use super::number::{Count, show};
use super::scratch::is_directory;
use super::{Config, ConfigError, Scratch, Upper};

/// How long the agent may take to dial in, in seconds.
const AGENT_TIMEOUT: (u32, u32) = (1, 600);
/// How much of the console is kept, in bytes.
const CONSOLE_LIMIT: (u64, u64) = (4 << 10, 16 << 20);
/// How many threads virtiofsd may have besides its own.
const VIRTIOFSD_THREADS: (u32, u32) = (0, 64);
/// The largest scratch disk, in bytes: ext4's limit.
const SCRATCH_MOST: u64 = 16 << 40;
/// A disk consists of sectors; file systems take whole mebibytes.
const SCRATCH_STEP: u64 = 1 << 20;
/// Directories of a container on the scratch disk.
const SCRATCH_PATHS: usize = 32;
/// How long the path of the state directory may be, in bytes. A sandbox's sockets lie two names
/// below it, and a Unix socket's path ends at 107 bytes (unix(7)).
const STATE_DIR_LEN: usize = 60;
/// How long all of `kernel_params` may be, in bytes: the kernel takes 2048 (x86
/// `COMMAND_LINE_SIZE`), and the VMM and the shim need their part.
const KERNEL_PARAMS_LEN: usize = 1024;

/// Puts one file's keys into the configuration.
///
/// # Errors
/// [`ConfigError::Value`] for a value out of its limits.
pub(super) fn apply(config: &mut Config, path: &Path, file: File) -> Result<(), ConfigError> {
    let at = At(path);
    set(&mut config.hypervisor, file.hypervisor);
    set(&mut config.qemu_machine, file.qemu_machine);
    set(&mut config.nested, file.nested);
    set(&mut config.virtiofsd_cache, file.virtiofsd_cache);
    set(&mut config.log_level, file.log_level);

    let files = &mut config.files;
    at.path("kernel", &mut files.kernel, file.kernel)?;
    at.path("initramfs", &mut files.initramfs, file.initramfs)?;
    at.path("cloud_hypervisor", &mut files.cloud_hypervisor, file.cloud_hypervisor)?;
    at.path("qemu", &mut files.qemu, file.qemu)?;
    at.path("virtiofsd", &mut files.virtiofsd, file.virtiofsd)?;
    at.path("vhost_device_vsock", &mut files.vhost_device_vsock, file.vhost_device_vsock)?;

    set(&mut config.vcpus, at.count("vcpus", file.vcpus, Config::VCPUS)?);
    set(&mut config.spares, at.count("spares", file.spares, (0, Config::MOST_SPARES))?);
    set(
        &mut config.virtiofsd_threads,
        at.count("virtiofsd_threads", file.virtiofsd_threads, VIRTIOFSD_THREADS)?,
    );
    if let Some(seconds) = at.count("agent_timeout", file.agent_timeout, AGENT_TIMEOUT)? {
        config.agent_timeout = Duration::from_secs(seconds.into());
    }
    if let Some(size) = file.memory {
        at.size("memory", size.0, Config::MEMORY)?;
        if size.0 % Config::MEMORY_STEP != 0 {
            let allowed = format!("a multiple of {}", show(Config::MEMORY_STEP));
            return Err(at.value("memory", show(size.0), allowed));
        }
        config.memory = size.0;
    }
    if let Some(size) = file.console_limit {
        at.size("console_limit", size.0, CONSOLE_LIMIT)?;
        config.console_limit = size.0;
    }
    if let Some(params) = file.kernel_params {
        at.kernel_params(&params)?;
        config.kernel_params = params;
    }
    if let Some(dir) = file.state_dir {
        at.state_dir(&dir)?;
        config.state_dir = dir;
    }
    set(&mut config.rootfs_upper, file.rootfs_upper);
    if let Some(sockets) = file.forward_sockets {
        if let Some(path) = sockets.iter().find(|path| !path.is_absolute()) {
            let allowed = "absolute paths".to_owned();
            return Err(at.value("forward_sockets", format!("{path:?}"), allowed));
        }
        config.forward_sockets = sockets;
    }
    set(&mut config.scratch.filesystem, file.scratch_filesystem);
    set(&mut config.scratch.size, file.scratch_size.map(|size| size.0));
    set(&mut config.scratch.paths, file.scratch_paths);
    let mut dir = None;
    at.path("scratch_dir", &mut dir, file.scratch_dir)?;
    set(&mut config.scratch.dir, dir);
    at.scratch(config)
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// The file whose values are looked at.
struct At<'a>(&'a Path);

impl At<'_> {
    fn value(&self, key: &'static str, value: impl Display, allowed: String) -> ConfigError {
        ConfigError::Value { file: self.0.to_owned(), key, value: value.to_string(), allowed }
    }

    fn path(
        &self,
        key: &'static str,
        target: &mut Option<PathBuf>,
        value: Option<PathBuf>,
    ) -> Result<(), ConfigError> {
        let Some(path) = value else { return Ok(()) };
        if !path.is_absolute() {
            return Err(self.value(key, format!("{path:?}"), "an absolute path".to_owned()));
        }
        *target = Some(path);
        Ok(())
    }

    fn count(
        &self,
        key: &'static str,
        value: Option<Count>,
        (least, most): (u32, u32),
    ) -> Result<Option<u32>, ConfigError> {
        let Some(Count(value)) = value else {
            return Ok(None);
        };
        match u32::try_from(value) {
            Ok(count) if (least..=most).contains(&count) => Ok(Some(count)),
            _ => Err(self.value(key, value, format!("a number from {least} to {most}"))),
        }
    }

    fn size(
        &self,
        key: &'static str,
        value: u64,
        (least, most): (u64, u64),
    ) -> Result<(), ConfigError> {
        if value < least || value > most {
            let allowed = format!("a size from {} to {}", show(least), show(most));
            return Err(self.value(key, show(value), allowed));
        }
        Ok(())
    }

    /// The path becomes part of VMM options in which a comma or a quote has a meaning.
    fn state_dir(&self, dir: &Path) -> Result<(), ConfigError> {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-".contains(b);
        let bytes = dir.as_os_str().as_encoded_bytes();
        if !dir.is_absolute() || bytes.len() > STATE_DIR_LEN || !bytes.iter().all(plain) {
            let allowed = format!(
                "an absolute path of at most {STATE_DIR_LEN} bytes, of letters, digits and . _ - /"
            );
            return Err(self.value("state_dir", format!("{dir:?}"), allowed));
        }
        Ok(())
    }

    /// What is said in one place must fit what was said in another.
    fn scratch(&self, config: &Config) -> Result<(), ConfigError> {
        let Scratch { size, filesystem, paths, .. } = &config.scratch;
        let (size, least) = (*size, filesystem.least());
        if size != 0 && (size < least || size > SCRATCH_MOST || size % SCRATCH_STEP != 0) {
            let allowed = format!(
                "0 for none, or a multiple of {} from {} ({}) to {}",
                show(SCRATCH_STEP),
                show(least),
                filesystem.name(),
                show(SCRATCH_MOST)
            );
            return Err(self.value("scratch_size", show(size), allowed));
        }
        let key = "scratch_paths";
        if let Some(path) = paths.iter().find(|path| !is_directory(path)) {
            let allowed = "absolute paths of directories, none of them /".to_owned();
            return Err(self.value(key, format!("[.. {path:?} ..]"), allowed));
        }
        if paths.len() > SCRATCH_PATHS {
            let found = format!("{} paths", paths.len());
            return Err(self.value(key, found, format!("at most {SCRATCH_PATHS}")));
        }
        let needed = "a disk, and scratch_size is 0".to_owned();
        if size == 0 && !paths.is_empty() {
            return Err(self.value(key, format!("{paths:?}"), needed));
        }
        if size == 0 && config.rootfs_upper == Upper::Guest {
            return Err(self.value("rootfs_upper", "\"guest\"", needed));
        }
        Ok(())
    }

    fn kernel_params(&self, params: &[String]) -> Result<(), ConfigError> {
        let key = "kernel_params";
        for param in params {
            let plain = |c: char| c.is_ascii_graphic();
            if param.is_empty() || !param.chars().all(plain) {
                let allowed = "each is one parameter, printable ASCII without blanks".to_owned();
                return Err(self.value(key, format!("[.. {param:?} ..]"), allowed));
            }
        }
        let len: usize = params.iter().map(|p| p.len() + 1).sum();
        if len > KERNEL_PARAMS_LEN {
            let allowed = format!("at most {KERNEL_PARAMS_LEN} bytes in all");
            return Err(self.value(key, format!("[..] of {len} bytes"), allowed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;
    use super::*;

    fn applied(text: &str) -> Result<Config, ConfigError> {
        let path = Path::new("/c.toml");
        let mut config = Config::default();
        apply(&mut config, path, parse(path, text)?)?;
        Ok(config)
    }

    fn refused(text: &str) -> String {
        applied(text).expect_err(text).to_string()
    }

    #[test]
    fn values_at_their_limits_are_taken() {
        let config =
            applied("vcpus = 64\nmemory = \"64MiB\"\nagent_timeout = 600").expect("limits");
        assert_eq!((config.vcpus, config.memory), (64, 64 << 20));
        assert_eq!(config.agent_timeout, Duration::from_secs(600));
    }

    #[test]
    fn values_past_their_limits_are_refused_with_the_limits() {
        assert_eq!(
            refused("vcpus = 0"),
            "/c.toml: vcpus = 0 is not allowed: a number from 1 to 64"
        );
        assert_eq!(
            refused("memory = \"63MiB\""),
            "/c.toml: memory = 63MiB is not allowed: a size from 64MiB to 1024GiB"
        );
        assert_eq!(
            refused("memory = 134217729"),
            "/c.toml: memory = 134217729 is not allowed: a multiple of 2MiB"
        );
        assert!(refused("agent_timeout = 0").contains("agent_timeout = 0 is not allowed"));
        assert!(refused("virtiofsd_threads = 65").contains("a number from 0 to 64"));
        assert!(refused("console_limit = 1").contains("a size from 4KiB to 16MiB"));
        assert!(refused("vcpus = 4294967297").contains("a number from 1 to 64"));
    }

    #[test]
    fn paths_are_absolute() {
        for key in
            ["kernel", "initramfs", "cloud_hypervisor", "qemu", "virtiofsd", "vhost_device_vsock"]
        {
            let text = refused(&format!("{key} = \"bin/x\""));
            assert_eq!(
                text,
                format!("/c.toml: {key} = \"bin/x\" is not allowed: an absolute path")
            );
        }
        assert!(refused("state_dir = \"run\"").contains("an absolute path of at most 60 bytes"));
        let long = format!("state_dir = \"/{}\"", "d".repeat(STATE_DIR_LEN));
        assert!(refused(&long).contains("at most 60 bytes"));
        assert!(refused("state_dir = \"/run/a,b\"").contains("of letters, digits and"));
    }

    #[test]
    fn a_kernel_parameter_is_one_word() {
        for bad in ["", "a b", "tab\\t", "new\\nline", "\u{e9}"] {
            assert!(refused(&format!("kernel_params = [\"{bad}\"]")).contains("kernel_params = "));
        }
        let many = format!("kernel_params = [\"{}\"]", "k".repeat(KERNEL_PARAMS_LEN));
        assert!(refused(&many).contains("at most 1024 bytes in all"));
    }
}
