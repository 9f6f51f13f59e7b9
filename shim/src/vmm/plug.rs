//! Disks that come and go while the VM runs.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

/// How long a guest may take to let go of a disk: a busy one under software emulation needs it.
pub(super) const EJECTION: Duration = Duration::from_secs(10);

/// A disk to plug in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// The name by which the guest knows it, at most 20 bytes, new in the life of the VM.
    pub serial: String,
    /// A block device or a file; the VMM opens it.
    pub path: PathBuf,
    /// Whether the guest can only read it.
    pub readonly: bool,
}

/// A disk that cannot be plugged in, or not be taken out again.
#[derive(Debug, Error)]
pub enum PlugError {
    /// The VM has no place for it.
    #[error("the VM takes no disk while it runs: {0}")]
    NoPlace(&'static str),
    /// The VMM refuses.
    #[error("{vmm} refuses the disk: {reason}")]
    Refused {
        /// The VMM.
        vmm: &'static str,
        /// What it says.
        reason: String,
    },
    /// The VMM cannot be talked to.
    #[error("the VMM cannot be asked: {0}")]
    Io(#[from] io::Error),
    /// The guest still has it.
    #[error("the guest does not let go of the disk")]
    Held,
}

/// What a VMM does about such disks.
#[async_trait]
pub(super) trait Plugs: Send + Sync {
    async fn plug(&self, disk: &Plug) -> Result<(), PlugError>;
    async fn unplug(&self, serial: &str) -> Result<(), PlugError>;
}
