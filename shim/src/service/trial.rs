//! A sandbox that is nobody's, to see whether this host can have one.

use slog::{Discard, Logger, o};
use thiserror::Error;

use super::server::{ServeError, prepare, to_the_end};
use crate::config::Config;
use crate::sandbox::{Pod, SandboxError, Spare};

/// Why this host has no sandbox.
#[derive(Debug, Error)]
pub enum TrialError {
    /// This process cannot have any.
    #[error(transparent)]
    Process(#[from] ServeError),
    /// Its start failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Has a guest boot, with all that a pod's has, and gives everything back. The calling process has one thread, and is
/// in a mount namespace of its own afterwards.
///
/// # Errors
/// [`TrialError`].
pub fn trial(config: &Config) -> Result<(), TrialError> {
    to_the_end(prepare()?, async {
        let pod = Pod { in_kubernetes: true, ..Pod::default() };
        drop(Spare::boot(config, &pod, &Logger::root(Discard, o!())).await?);
        Ok(())
    })
}
