//! What can go wrong with a container.

use thiserror::Error;

use super::spec::SpecError;
use super::stdio::StdioError;
use crate::guest::GuestError;
use crate::storage::share::ShareError;

/// What can go wrong with a container.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// No such exec.
    #[error("no such process: {0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// The process is not in a state for it.
    #[error("{process} {reason}")]
    State {
        /// Which process.
        process: String,
        /// What it is, and what it would have to be.
        reason: &'static str,
    },
    /// It stands for its pod.
    #[error("container {0} is its pod's sandbox, which has no process in the guest")]
    Sandbox(String),
    /// The process is over.
    #[error("{0}: process already finished")]
    Finished(String),
    /// The spec asks for what cannot be done.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its root file system cannot be mounted.
    #[error("the root file system: {0}")]
    Rootfs(#[source] ShareError),
    /// Its stdio cannot be opened.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The agent refused, or does not answer.
    #[error(transparent)]
    Guest(#[from] GuestError),
}
