//! What can go wrong in a call, and the ttrpc code that it becomes.

use bulkhead_protocols::chain;
use libcontainer::error::LibcontainerError;
use serde::{Deserialize, Serialize};
use ttrpc::{Code, get_status};

/// The outcome of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed, or the work of the helper. The texts are for the person who started the
/// container.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// No such container or process.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request is wrong by itself.
    #[error("{0}")]
    InvalidArgument(String),
    /// The request is wrong in this state.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The guest failed.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// A failed system call or file operation, named by what was attempted.
    pub fn io(attempt: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::Internal(format!("{attempt}: {error}"))
    }
}

impl From<LibcontainerError> for Error {
    fn from(error: LibcontainerError) -> Self {
        let text = chain(&error);
        match error {
            LibcontainerError::InvalidInput(_)
            | LibcontainerError::InvalidSpec(_)
            | LibcontainerError::MissingSpec(_)
            | LibcontainerError::NetDevicesError(_)
            | LibcontainerError::Spec(_) => Self::InvalidArgument(text),
            _ => Self::Internal(text),
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotFound(_) => Code::NOT_FOUND,
            Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Error::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Error::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Error::Internal(_) => Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(get_status(code, error.to_string()))
    }
}
