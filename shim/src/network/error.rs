//! What can go wrong with a pod's network.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A pod's network namespace, or something in it, that cannot be used.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// It is not there.
    #[error("the pod's network namespace {path}: {source}")]
    Namespace {
        /// Its name on the host.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is something else, or the host's.
    #[error("the pod's network namespace {path}: {reason}")]
    Refused {
        /// Its name on the host.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// An interface cannot be carried into the guest.
    #[error("interface {name} of the pod cannot be carried into the guest: {reason}")]
    Interface {
        /// Its name on the host.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The kernel refuses something.
    #[error("the pod's network: {what}")]
    Kernel {
        /// What it was asked for.
        what: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The thread that looked at it broke off.
    #[error("the pod's network: interrupted")]
    Interrupted,
    /// Connections to its localhost cannot be taken.
    #[error("connections to localhost cannot be taken")]
    Listen(#[source] io::Error),
}

impl NetworkError {
    /// For `map_err`.
    pub(super) fn kernel(what: impl Into<String>) -> impl Fn(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what: what.clone(), source }
    }
}
