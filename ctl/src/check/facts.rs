//! What is found on this host.

use std::env;
use std::path::{Path, PathBuf};

use bulkhead_shim::config::{AssetError, Config, ConfigError};
use bulkhead_shim::spare::Place;
use bulkhead_shim::version::{Version, VersionError};
use bulkhead_shim::vmm::{Host, KvmProblem, SelectError, Selection};
use nix::sys::utsname::uname;
use nix::unistd::{AccessFlags, Uid, access};

use super::containerd::{CONFIG, Handler, handler};

/// The shim, by the name that containerd makes of the runtime's.
pub const SHIM: &str = "containerd-shim-bulkhead-v2";

/// Where a program is, and the version that it says.
pub type Program = Result<(PathBuf, Result<Version, VersionError>), AssetError>;

fn probe(path: Result<PathBuf, AssetError>) -> Program {
    path.map(|path| {
        let version = Version::of(&path);
        (path, version)
    })
}

/// Where the shim was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Shim {
    /// In a directory of PATH.
    OnPath(PathBuf),
    /// Beside this program, which is not in PATH.
    Beside(PathBuf),
    /// Nowhere.
    Missing,
}

/// A spare that the configuration wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Spare {
    /// It waits for a sandbox.
    Ready,
    /// There is none, as far as is known without a reason.
    None,
    /// There is none, and the last one left word of why.
    Ended(String),
}

impl Spare {
    fn probe(place: &Place) -> Spare {
        match place.last_word() {
            _ if place.is_ready() => Spare::Ready,
            Some(word) => Spare::Ended(word),
            None => Spare::None,
        }
    }
}

/// Everything that matters about a host.
#[derive(Debug)]
pub struct Facts {
    /// Whether this is root.
    pub root: bool,
    /// The host's kernel, as far as it says its version.
    pub linux: Option<Version>,
    /// The configuration.
    pub config: Result<Config, ConfigError>,
    /// Whether hardware KVM is usable.
    pub kvm: Result<(), KvmProblem>,
    /// The first VMM.
    pub cloud_hypervisor: Program,
    /// The second VMM.
    pub qemu: Program,
    /// Its vsock daemon.
    pub vhost_device_vsock: Program,
    /// Which VMM the shim would take.
    pub selection: Result<Selection, SelectError>,
    /// The file-share daemon.
    pub virtiofsd: Program,
    /// The guest's kernel.
    pub kernel: Result<PathBuf, AssetError>,
    /// The guest's initramfs.
    pub initramfs: Result<PathBuf, AssetError>,
    /// The shim.
    pub shim: Shim,
    /// Its spares, those that are wanted.
    pub spares: Vec<Spare>,
    /// containerd's program and version.
    pub containerd: Option<(PathBuf, Result<Version, VersionError>)>,
    /// containerd's configuration.
    pub handler: Handler,
}

impl Facts {
    /// Looks. It runs each program for its version.
    pub fn probe() -> Facts {
        let loaded = Config::load(None);
        // The rest of the answer helps even where the configuration is wrong.
        let config = loaded.as_ref().cloned().unwrap_or_default();
        let host = Host::probe(&config);
        Facts {
            root: Uid::effective().is_root(),
            linux: uname().ok().and_then(|host| Version::in_line(host.release().to_str()?)),
            selection: Selection::of(&config),
            kvm: host.kvm,
            cloud_hypervisor: probe(host.cloud_hypervisor),
            qemu: probe(host.qemu),
            vhost_device_vsock: probe(host.vhost_device_vsock),
            virtiofsd: probe(config.files.virtiofsd()),
            kernel: config.files.kernel(),
            initramfs: config.files.initramfs(),
            shim: shim(),
            spares: Place::all(&config).map(|place| Spare::probe(&place)).collect(),
            containerd: on_path("containerd").map(|path| (path.clone(), Version::of(&path))),
            handler: handler(Path::new(CONFIG)),
            config: loaded,
        }
    }
}

fn shim() -> Shim {
    if let Some(path) = on_path(SHIM) {
        return Shim::OnPath(path);
    }
    let own = env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join(SHIM));
    match beside.filter(|path| access(path, AccessFlags::X_OK).is_ok()) {
        Some(path) => Shim::Beside(path),
        None => Shim::Missing,
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut candidates = env::split_paths(&path).map(|dir| dir.join(name));
    candidates.find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok())
}
