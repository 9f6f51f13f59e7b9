//! One configuration file as it is written, before anything is checked but its form.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::number::{Count, Size};
use super::{CacheMode, ConfigError, Filesystem, Hypervisor, LogLevel, QemuMachine, Upper};

/// Every key; all of them may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) hypervisor: Option<Hypervisor>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initramfs: Option<PathBuf>,
    pub(super) cloud_hypervisor: Option<PathBuf>,
    pub(super) qemu: Option<PathBuf>,
    pub(super) virtiofsd: Option<PathBuf>,
    pub(super) vhost_device_vsock: Option<PathBuf>,
    pub(super) qemu_machine: Option<QemuMachine>,
    pub(super) vcpus: Option<Count>,
    pub(super) memory: Option<Size>,
    pub(super) nested: Option<bool>,
    pub(super) kernel_params: Option<Vec<String>>,
    pub(super) spares: Option<Count>,
    pub(super) agent_timeout: Option<Count>,
    pub(super) console_limit: Option<Size>,
    pub(super) virtiofsd_cache: Option<CacheMode>,
    pub(super) virtiofsd_threads: Option<Count>,
    pub(super) scratch_size: Option<Size>,
    pub(super) scratch_filesystem: Option<Filesystem>,
    pub(super) scratch_paths: Option<Vec<PathBuf>>,
    pub(super) scratch_dir: Option<PathBuf>,
    pub(super) rootfs_upper: Option<Upper>,
    pub(super) forward_sockets: Option<Vec<PathBuf>>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) log_level: Option<LogLevel>,
}

/// Reads the keys of one file out of its text.
///
/// # Errors
/// [`ConfigError::Parse`] with the line, the key and what is allowed there.
pub(super) fn parse(file: &Path, text: &str) -> Result<File, ConfigError> {
    let error = |key: &str, error: &toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count();
        // The path is "." where the file as a whole is meant, as for what is no TOML.
        let key = if key == "." { String::new() } else { format!("{key}: ") };
        let message = format!("{key}{}", error.message().replace('\n', ", "));
        ConfigError::Parse { file: file.to_owned(), line, message }
    };
    let document = toml::Deserializer::parse(text).map_err(|e| error(".", &e))?;
    serde_path_to_error::deserialize(document).map_err(|e| error(&e.path().to_string(), e.inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(Path::new("/etc/bulkhead/config.toml"), text).expect_err(text).to_string()
    }

    #[test]
    fn every_key_is_read() {
        let file = parse(
            Path::new("f"),
            r#"
            hypervisor = "qemu"
            kernel = "/k"
            memory = "256MiB"
            vcpus = 2
            kernel_params = ["quiet", "loglevel=7"]
            virtiofsd_cache = "never"
            log_level = "debug"
            qemu_machine = "q35"
            nested = true
            "#,
        )
        .expect("a good file");
        assert_eq!(file.hypervisor, Some(Hypervisor::Qemu));
        assert_eq!(file.kernel.as_deref(), Some(Path::new("/k")));
        assert_eq!(file.memory, Some(Size(256 << 20)));
        assert_eq!(file.vcpus, Some(Count(2)));
        assert_eq!(file.kernel_params.map(|p| p.len()), Some(2));
        assert_eq!(file.virtiofsd_cache, Some(CacheMode::Never));
        assert_eq!(file.log_level, Some(LogLevel::Debug));
        assert_eq!(file.qemu_machine, Some(QemuMachine::Q35));
        assert_eq!(file.nested, Some(true));
        assert_eq!(file.initramfs, None);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file_line_and_the_known_ones() {
        let text = message("vcpus = 1\nmemroy = 1\n");
        assert!(text.starts_with("/etc/bulkhead/config.toml, line 2: "), "{text}");
        assert!(text.contains("unknown field `memroy`"), "{text}");
        assert!(text.contains("`memory`"), "{text}");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_key() {
        let text = message("\n\nvcpus = \"two\"\n");
        assert!(
            text.contains("line 3: vcpus: invalid type: string \"two\", expected a whole number"),
            "{text}"
        );
        assert!(message("vcpus = 1.5").contains("expected a whole number"));
        let text = message("kernel_params = [\n \"a\",\n 1\n]\n");
        assert!(text.contains("line 3: kernel_params[1]: "), "{text}");
    }

    #[test]
    fn a_wrong_choice_lists_the_choices() {
        let text = message("hypervisor = \"kvm\"");
        assert!(text.contains("hypervisor: unknown variant `kvm`"), "{text}");
        assert!(text.contains("`auto`, `cloud-hypervisor`, `qemu`"), "{text}");
    }

    #[test]
    fn a_wrong_size_says_what_a_size_is() {
        let text = message("memory = \"512MB\"");
        assert!(text.contains("memory: "), "{text}");
        assert!(text.contains("units KiB, MiB, GiB"), "{text}");
        assert!(message("memory = -1").contains("units KiB, MiB, GiB"));
    }

    #[test]
    fn what_is_no_toml_is_said_on_one_line() {
        let text = message("vcpus = 1\nvcpus 2\n");
        assert!(text.contains("line 2"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
