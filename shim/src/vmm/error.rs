//! Why a VM could not be started.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::helper::{Ended, SpawnError};

/// A VM that could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// A program cannot be run.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A socket or pipe of the VM cannot be made.
    #[error("{what} {} cannot be set up", path.display())]
    Socket {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A disk cannot be handed over to the VMM.
    #[error("{role} does not take the VM's disks: {reason}")]
    Disk {
        /// The VMM.
        role: &'static str,
        /// What it says.
        reason: String,
    },
    /// There is no file for the guest's memory.
    #[error("the guest's memory cannot be set up")]
    Memory(#[source] io::Error),
    /// A device process ended before the VM could start.
    #[error("{role} {} before the VM started: {}", ended.status, ended.output)]
    Ended {
        /// Which process it was.
        role: &'static str,
        /// How it ended, and what it printed.
        ended: Ended,
    },
    /// A device process is not ready in time.
    #[error("{role} was not ready after {} s", after.as_secs())]
    NotReady {
        /// Which process it was.
        role: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
}
