//! Why the helper could not do its work.

use bulkhead_protocols::chain;
use libcontainer::error::LibcontainerError;

use super::report::{Kind, Report};

/// A reason, as a sentence for the person who started the container.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    text: String,
}

impl Failure {
    /// The spec is at fault.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self { kind: Kind::Invalid, text: text.into() }
    }

    /// The guest is at fault.
    pub fn internal(text: impl Into<String>) -> Self {
        Self { kind: Kind::Internal, text: text.into() }
    }

    /// A file or system call failed; `attempt` says what was to be done.
    pub fn io(attempt: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::internal(format!("{attempt}: {error}"))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        Report::Failed { kind: failure.kind, text: failure.text }
    }
}

impl From<LibcontainerError> for Failure {
    fn from(error: LibcontainerError) -> Self {
        let kind = match &error {
            LibcontainerError::InvalidInput(_)
            | LibcontainerError::InvalidSpec(_)
            | LibcontainerError::MissingSpec(_)
            | LibcontainerError::NetDevicesError(_)
            | LibcontainerError::Spec(_) => Kind::Invalid,
            _ => Kind::Internal,
        };
        Self { kind, text: chain(&error) }
    }
}
