//! A template: a guest that has booted as far as sandboxes do not differ, kept in one file. A sandbox that is made from
//! it gets a copy of its memory and goes on from there, which spares it the boot.
//!
//! ```text
//! 0        what the template was made of, and the VMM's own state, as JSON; zeros
//! 2 MiB    the guest's memory, with holes where the guest has touched nothing
//! ```
//! The file appears under its name when it is whole, and is only ever replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bulkhead_protocols::TEMPLATE_PARAM;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::{KERNEL_PARAMS, VmSpec};
use crate::sparse::copy_data;

/// The template's name in the directory of its sandbox, and then in the state directory. Sandboxes are directories
/// there, this is a file.
const FILE: &str = "template";

/// Where the memory starts, in bytes: huge pages of the copy are huge pages here.
const HEADER: u64 = 2 << 20;

/// A template that cannot be used, made or removed.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// Its file, or one that it is made of, cannot be used.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no template.
    #[error("{} is no template", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It was made of other things than the sandbox is to be.
    #[error("{} is of another {what}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What is different.
        what: &'static str,
    },
    /// The VMM has no templates.
    #[error("{vmm} has no templates")]
    Unsupported {
        /// The VMM.
        vmm: &'static str,
    },
    /// The VMM does not keep its guest.
    #[error("{vmm} cannot keep the guest: {reason}")]
    Refused {
        /// The VMM.
        vmm: &'static str,
        /// Why.
        reason: String,
    },
}

/// What a guest is made of. A template serves the sandboxes that are made of the very same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    version: String,
    /// The host's boot: after another one the processor or its kernel may be another, too.
    boot: String,
    vmm: FileId,
    kernel: FileId,
    initramfs: FileId,
    cmdline: Vec<String>,
    vcpus: u32,
    memory: u64,
    nested: bool,
    network_devices: usize,
}

/// One content of one file, as far as that can be seen without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileId {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileId {
    fn of(path: &Path) -> Result<FileId, TemplateError> {
        let metadata = fs::metadata(path).map_err(at(path))?;
        Ok(FileId {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Key {
    /// Of the guest that this VMM makes of this specification.
    ///
    /// # Errors
    /// [`TemplateError::Io`]
    fn of(vmm: &Path, spec: &VmSpec) -> Result<Key, TemplateError> {
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let own = spec.cmdline.iter().map(String::as_str).filter(|word| *word != TEMPLATE_PARAM);
        Ok(Key {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: fs::read_to_string(boot).map_err(at(boot))?,
            vmm: FileId::of(vmm)?,
            kernel: FileId::of(&spec.kernel)?,
            initramfs: FileId::of(&spec.initramfs)?,
            cmdline: KERNEL_PARAMS.into_iter().chain(own).map(str::to_owned).collect(),
            vcpus: spec.vcpus,
            memory: spec.memory,
            nested: spec.nested,
            network_devices: spec.network_devices,
        })
    }

    /// What is different in the other one, if anything is.
    fn difference(&self, other: &Key) -> Option<&'static str> {
        let parts = [
            ("version of Bulkhead", self.version == other.version),
            ("boot of the host", self.boot == other.boot),
            ("VMM", self.vmm == other.vmm),
            ("kernel", self.kernel == other.kernel),
            ("initramfs", self.initramfs == other.initramfs),
            ("kernel_params", self.cmdline == other.cmdline),
            ("vcpus", self.vcpus == other.vcpus),
            ("memory", self.memory == other.memory),
            ("nested", self.nested == other.nested),
            ("number of network devices", self.network_devices == other.network_devices),
        ];
        parts.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
    }
}

/// The state of a VM that is not in its memory, in the VMM's own form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What the VM is configured with.
    pub config: Value,
    /// Its processors and devices: JSON too, but nobody looks into it again.
    pub state: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: Key,
    snapshot: Snapshot,
}

/// A template that is open: it can be used even where another one takes its name.
#[derive(Debug)]
pub struct Template {
    /// The state to wake a VM with.
    pub snapshot: Snapshot,
    file: File,
}

impl Template {
    /// Opens the host's template, if it has one.
    ///
    /// # Errors
    /// [`TemplateError::Other`] if it is not of what this VMM makes of this specification, and where it cannot be
    /// read.
    pub fn open(
        state_dir: &Path,
        vmm: &Path,
        spec: &VmSpec,
    ) -> Result<Option<Template>, TemplateError> {
        let path = state_dir.join(FILE);
        match File::open(&path) {
            Ok(file) => Template::read(file, &path, &Key::of(vmm, spec)?).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn read(file: File, path: &Path, key: &Key) -> Result<Template, TemplateError> {
        let text = BufReader::new((&file).take(HEADER));
        let mut values = serde_json::Deserializer::from_reader(text).into_iter::<Header>();
        let header = values.next().unwrap_or_else(|| Err(serde::de::Error::custom("it is empty")));
        let path = path.to_owned();
        match header {
            Ok(Header { key: made_of, snapshot }) => match made_of.difference(key) {
                Some(what) => Err(TemplateError::Other { path, what }),
                None => Ok(Template { snapshot, file }),
            },
            Err(source) => Err(TemplateError::Malformed { path, source }),
        }
    }

    /// Writes the template of a guest into the directory of its sandbox.
    ///
    /// # Errors
    /// [`TemplateError::Io`]
    pub fn write(
        vmm: &Path,
        spec: &VmSpec,
        snapshot: Snapshot,
        memory: &File,
    ) -> Result<Template, TemplateError> {
        let (path, key) = (spec.dir.join(FILE), Key::of(vmm, spec)?);
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            let header = Header { key, snapshot };
            let text = serde_json::to_vec(&header)?;
            if text.len() as u64 > HEADER {
                return Err(io::Error::other("the VMM's state is too large"));
            }
            file.write_all(&text)?;
            file.set_len(HEADER + memory.metadata()?.len())?;
            copy_data(memory, 0, &file, HEADER)?;
            Ok(Template { snapshot: header.snapshot, file })
        };
        write().map_err(at(&path))
    }

    /// Makes the template in the directory of a sandbox the host's.
    ///
    /// # Errors
    /// [`TemplateError::Io`]
    pub fn publish(sandbox: &Path, state_dir: &Path) -> Result<PathBuf, TemplateError> {
        let path = state_dir.join(FILE);
        fs::rename(sandbox.join(FILE), &path).map_err(at(&path))?;
        Ok(path)
    }

    /// Removes the host's template. Sandboxes that were made from it live on. Returns whether there was one.
    ///
    /// # Errors
    /// [`TemplateError::Io`]
    pub fn remove(state_dir: &Path) -> Result<bool, TemplateError> {
        let path = state_dir.join(FILE);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Copies the guest's memory into a new file for it.
    ///
    /// # Errors
    /// What the system says.
    pub fn copy_memory(&self, to: &File) -> io::Result<()> {
        copy_data(&self.file, HEADER, to, 0)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TemplateError + use<> {
    let path = path.to_owned();
    move |source| TemplateError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn spec(dir: &Path) -> VmSpec {
        for name in ["kernel", "initramfs", "vmm"] {
            fs::write(dir.join(name), name).expect("write");
        }
        let (kernel, initramfs) = (dir.join("kernel"), dir.join("initramfs"));
        VmSpec { kernel, initramfs, memory: 16 << 20, ..VmSpec::sample(dir) }
    }

    fn open(spec: &VmSpec) -> Result<Option<Template>, TemplateError> {
        Template::open(&spec.dir, &spec.dir.join("vmm"), spec)
    }

    fn snapshot() -> Snapshot {
        Snapshot { config: serde_json::json!({"memory": 1}), state: "{}".to_owned() }
    }

    /// A template of a memory that holds a word at 4 MiB, and nothing else.
    fn made(spec: &VmSpec) -> File {
        let dir = &spec.dir;
        let sandbox = VmSpec { dir: dir.join("sandbox"), ..spec.clone() };
        fs::create_dir(&sandbox.dir).expect("mkdir");
        let memory = File::create_new(dir.join("memory")).expect("memory");
        memory.set_len(16 << 20).expect("size");
        memory.write_all_at(b"word", 4 << 20).expect("write");
        let memory = File::open(dir.join("memory")).expect("memory");
        Template::write(&dir.join("vmm"), &sandbox, snapshot(), &memory).expect("template");
        Template::publish(&sandbox.dir, dir).expect("publish");
        memory
    }

    #[test]
    fn a_copy_of_the_memory_is_the_memory_and_as_sparse() {
        let dir = tempfile::tempdir().expect("tempdir");
        let spec = spec(dir.path());
        let memory = made(&spec);
        let template = open(&spec).expect("open").expect("a template");
        assert_eq!(template.snapshot, snapshot());
        let copy = dir.path().join("copy");
        let to = File::create_new(&copy).expect("copy");
        to.set_len(16 << 20).expect("size");
        template.copy_memory(&to).expect("copy");
        assert_eq!(
            fs::read(&copy).expect("read"),
            fs::read(dir.path().join("memory")).expect("read")
        );
        assert!(to.metadata().expect("stat").blocks() <= memory.metadata().expect("stat").blocks());
    }

    #[test]
    fn a_template_serves_only_what_is_made_of_the_same() {
        let dir = tempfile::tempdir().expect("tempdir");
        let spec = spec(dir.path());
        assert!(open(&spec).expect("open").is_none());
        made(&spec);
        let marked = VmSpec { cmdline: vec!["a=b".into(), TEMPLATE_PARAM.into()], ..spec.clone() };
        assert!(open(&marked).expect("open").is_some());
        let refused = |spec: &VmSpec| open(spec).expect_err("another").to_string();
        let other = VmSpec { memory: 32 << 20, ..spec.clone() };
        assert!(refused(&other).ends_with("template is of another memory"), "{}", refused(&other));
        let other = VmSpec { cmdline: Vec::new(), ..spec.clone() };
        assert!(refused(&other).ends_with("of another kernel_params"));
        fs::write(dir.path().join("kernel"), "another").expect("write");
        assert!(refused(&spec).ends_with("of another kernel"));
        assert!(Template::remove(dir.path()).expect("remove"));
        assert!(!Template::remove(dir.path()).expect("remove"));
    }

    #[test]
    fn what_is_no_template_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let spec = spec(dir.path());
        for text in ["", "no json", "{}", "\0\0\0"] {
            fs::write(dir.path().join(FILE), text).expect("write");
            let error = open(&spec).expect_err(text);
            assert!(error.to_string().ends_with("template is no template"), "{error}");
        }
    }
}
