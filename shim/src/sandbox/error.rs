//! What can go wrong with a sandbox.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::PodError;
use crate::config::{AssetError, ConfigError};
use crate::container::ContainerError;
use crate::guest::GuestError;
use crate::network::NetworkError;
use crate::storage::scratch::ScratchError;
use crate::storage::share::ShareError;
use crate::storage::virtiofsd::VirtiofsdError;
use crate::vmm::{PlugError, SelectError, StartError};

/// What can go wrong with a sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// No such sandbox.
    #[error("no such sandbox: {0}")]
    NoSandbox(String),
    /// No such container.
    #[error("no such container: {0}")]
    NoContainer(String),
    /// The id is taken.
    #[error("container {0} exists already")]
    Exists(String),
    /// The id cannot be a directory's name.
    #[error(
        "container id {0:?} is not valid: allowed are letters, digits, '.', '_' and '-', and it starts with a letter or digit"
    )]
    BadId(String),
    /// The pod's configuration cannot be honoured.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The sandbox was created already.
    #[error("sandbox {0} exists already")]
    Configured(String),
    /// Its network namespace cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Nobody has said what the sandbox is for.
    #[error("the sandbox has not been created")]
    NotCreated,
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An annotation asks for what is not allowed.
    #[error(transparent)]
    Annotation(ConfigError),
    /// A program or an image that is needed cannot be used.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// No VMM can run here, or not the one that is asked for.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The VMM cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The share cannot be made.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// There is none.
    #[error(
        "the sandbox has no share for container {0}: its first one came by disks alone, and needed none"
    )]
    NoShare(String),
    /// The scratch disk cannot be made.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// An image cannot be plugged in.
    #[error("{}: {source}", path.display())]
    Plug {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: PlugError,
    },
    /// The share's daemon cannot run.
    #[error(transparent)]
    Virtiofsd(#[from] VirtiofsdError),
    /// A file of the sandbox cannot be made.
    #[error("the sandbox's directory: {path}: {source}")]
    Directory {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The agent did not dial in time.
    #[error("the guest's agent did not come within {seconds} s; the console ends with: {console}")]
    Silent {
        /// How long it had (`agent_timeout`).
        seconds: u64,
        /// The console's last lines.
        console: String,
    },
    /// The VM ended while it was started.
    #[error("the VM did not start: {reason}; the console ends with: {console}")]
    Died {
        /// How it ended.
        reason: String,
        /// The console's last lines.
        console: String,
    },
    /// The VM has ended.
    #[error("the sandbox has ended: {reason}")]
    Ended {
        /// How it ended.
        reason: String,
    },
    /// The task that carried out a call broke off.
    #[error("the call was interrupted")]
    Interrupted,
    /// The start failed, as an earlier caller was told too.
    #[error(transparent)]
    Launch(Arc<SandboxError>),
    /// A call to the agent failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A container's own error.
    #[error(transparent)]
    Container(#[from] ContainerError),
}
