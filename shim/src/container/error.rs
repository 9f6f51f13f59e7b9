//! What can go wrong with a container.

use std::path::PathBuf;

use thiserror::Error;

use super::stdio::StdioError;
use crate::guest::GuestError;
use crate::storage::share::ShareError;

/// How long a spec may be, in bytes: a message of ttrpc has at most 4 MiB, with all that goes along.
pub const DOCUMENT_LIMIT: usize = 3 << 20;

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

/// A spec that cannot be carried out.
#[derive(Debug, Error)]
pub enum SpecError {
    /// The file cannot be read or is no spec.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A field that every container needs.
    #[error("{field} is missing from the OCI spec")]
    Missing {
        /// Its path in the document.
        field: &'static str,
    },
    /// A field asks for what a container in a microVM cannot have.
    #[error("{field} of the OCI spec: {reason}")]
    Refused {
        /// Its path in the document.
        field: String,
        /// Why not.
        reason: String,
    },
    /// A field names something on the host that is not there or cannot be mounted.
    #[error("{field} of the OCI spec: {source}")]
    Source {
        /// Its path in the document.
        field: String,
        /// What happened.
        source: ShareError,
    },
    /// It does not fit into a call to the agent.
    #[error("the OCI spec has {length} bytes, and at most {DOCUMENT_LIMIT} can go to the guest")]
    TooLong {
        /// How long it is.
        length: usize,
    },
    /// The changed spec cannot be written down.
    #[error("the guest's OCI spec cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
}

/// A field that a guest cannot honour.
pub fn refused(field: impl Into<String>, reason: &str) -> SpecError {
    SpecError::Refused { field: field.into(), reason: reason.to_owned() }
}
