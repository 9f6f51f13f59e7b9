//! The helper: `bulkhead-agent oci create|exec|update|finish <container> ... <fd>`.
//!
//! libcontainer forks and then goes on in Rust, which is sound in a process with one thread only,
//! and it changes its caller's directory, limits and attributes. So the agent executes itself for
//! each such piece of work, and the helper's stdio is the stdio of the process that it makes.

mod causes;
mod create;
mod devices;
mod exec;
mod finish;
mod keyring;
mod limits;
mod lookup;
mod mounts;
mod program;
pub mod report;
mod reporter;
mod rootfs;
mod seccomp;
mod signals;
mod spec;
mod stdio;
mod update;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use self::devices::SERIAL;
use self::report::Report;
use self::reporter::Reporter;
use crate::container::BUNDLES;
use crate::error::Error;

/// The spec as the host gave it, in a container's bundle.
pub const SPEC: &str = "spec.json";

/// Resource limits to change to, in a container's bundle.
pub const RESOURCES: &str = "resources.json";

/// The directory of execs in a container's bundle.
pub const EXECS: &str = "execs";

/// The OCI process as the host gave it, in the directory of an exec.
pub const PROCESS: &str = "spec.json";

/// Where a created container waits for its start, in libcontainer's state of it.
pub const START_SOCKET: &str = libcontainer::notify_socket::NOTIFY_FILE;

/// Does one piece of work and ends.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let arguments: Vec<String> = arguments.collect();
    let Some((fd, arguments)) = arguments.split_last() else {
        return ExitCode::FAILURE;
    };
    let Some(reporter) = Reporter::inherited(fd) else {
        return ExitCode::FAILURE;
    };
    reporter.take_panics();
    causes::collect(&reporter);
    signals::reset();

    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["create", container, pid_namespace, console] => {
            create::run(container, pid_namespace, console_path(console), fd, &reporter)
        }
        ["exec", container, exec, console] => {
            exec::run(container, exec, console_path(console), &reporter)
        }
        ["update", container] => update::run(container).map(|()| reporter.send(&Report::Done)),
        ["finish", container] => finish::run(&bundle(container)),
        _ => Err(Error::Internal("the container helper does not know what to do".to_owned())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            reporter.send(&Report::Failed(error));
            ExitCode::FAILURE
        }
    }
}

/// The socket that takes a terminal's master side; an empty name means no terminal.
fn console_path(argument: &str) -> Option<&Path> {
    (!argument.is_empty()).then(|| Path::new(argument))
}

/// The bundle of a container.
fn bundle(container: &str) -> PathBuf {
    Path::new(BUNDLES).join(container)
}
