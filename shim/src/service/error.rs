//! The one place where errors become RPC codes. containerd and the kubelet decide by the code,
//! people by the text.

use bulkhead_protocols::chain;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use protobuf::Message;
use ttrpc::{Code, get_status};

use crate::container::{ContainerError, SpecError};
use crate::events;
use crate::guest::GuestError;
use crate::sandbox::{PodError, SandboxError};

/// The status that containerd gets.
pub fn status(error: &SandboxError) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code(error), chain(error)))
}

/// A status for what is wrong with a request by itself.
pub fn invalid(text: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(Code::INVALID_ARGUMENT, text.into()))
}

/// A part of an answer in the shape in which it travels, by its full name.
pub fn packed(name: &str, message: &impl Message) -> ttrpc::Result<Any> {
    let failed = |error| get_status(Code::INTERNAL, format!("{name} cannot be encoded: {error}"));
    events::packed(name, message).map_err(|error| ttrpc::Error::RpcStatus(failed(error)))
}

fn code(error: &SandboxError) -> Code {
    match error {
        SandboxError::NoContainer(_) | SandboxError::NoSandbox(_) => Code::NOT_FOUND,
        SandboxError::Exists(_) | SandboxError::Configured(_) => Code::ALREADY_EXISTS,
        SandboxError::BadId(_) => Code::INVALID_ARGUMENT,
        SandboxError::Pod(PodError::File { .. }) => Code::UNKNOWN,
        SandboxError::Pod(_) | SandboxError::Annotation(_) => Code::INVALID_ARGUMENT,
        SandboxError::Ended { .. } | SandboxError::NotCreated => Code::FAILED_PRECONDITION,
        SandboxError::Silent { .. } => Code::DEADLINE_EXCEEDED,
        SandboxError::Container(error) => container(error),
        SandboxError::Guest(error) => guest(error),
        SandboxError::Launch(launch) => code(launch),
        // What the node's operator has to mend.
        SandboxError::Config(_)
        | SandboxError::Asset(_)
        | SandboxError::Select(_)
        | SandboxError::Scratch(_)
        | SandboxError::Plug { .. }
        | SandboxError::NoShare(_)
        | SandboxError::Network(_) => Code::FAILED_PRECONDITION,
        SandboxError::Start(_)
        | SandboxError::Share(_)
        | SandboxError::Virtiofsd(_)
        | SandboxError::Directory { .. }
        | SandboxError::Died { .. }
        | SandboxError::Interrupted => Code::UNKNOWN,
    }
}

fn container(error: &ContainerError) -> Code {
    match error {
        ContainerError::NotFound(_) | ContainerError::Finished(_) => Code::NOT_FOUND,
        ContainerError::Exists(_) => Code::ALREADY_EXISTS,
        ContainerError::State { .. } | ContainerError::Sandbox(_) => Code::FAILED_PRECONDITION,
        ContainerError::Stdio(_) => Code::INVALID_ARGUMENT,
        ContainerError::Spec(SpecError::Encode(_)) | ContainerError::Rootfs(_) => Code::UNKNOWN,
        ContainerError::Spec(_) => Code::INVALID_ARGUMENT,
        ContainerError::Guest(error) => guest(error),
    }
}

fn guest(error: &GuestError) -> Code {
    match error {
        GuestError::Refused { code: Code::INTERNAL, .. } | GuestError::Stream(_) => Code::UNKNOWN,
        GuestError::Refused { code, .. } => *code,
        GuestError::Deadline(_) => Code::DEADLINE_EXCEEDED,
        GuestError::Lost(_) => Code::UNAVAILABLE,
    }
}
