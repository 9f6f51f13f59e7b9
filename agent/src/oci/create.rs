//! Making a container, up to the point where its program would be executed.

use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;

use super::program::Program;
use super::report::Report;
use super::reporter::Reporter;
use super::spec::Prepared;
use super::{bundle, keyring, limits, spec, stdio};
use crate::container::STATES;
use crate::error::{Error, Result};
use crate::jit;

/// Makes the container whose spec is in its bundle, and reports its first process. `fd` is the
/// number of the reporter's descriptor, for the helper's own helper. `pid_namespace` is a path, or empty where
/// the spec says what there is to say.
///
/// # Errors
/// What is wrong with the spec, or what the kernel refused.
pub fn run(
    container: &str,
    pid_namespace: &str,
    console: Option<&Path>,
    fd: &str,
    reporter: &Reporter,
) -> Result<()> {
    let bundle = bundle(container);
    let arguments = ["bulkhead-agent", "oci", "finish", container, fd].map(str::to_owned);
    let Prepared { spec, rlimits, late } =
        spec::prepare(&bundle, container, pid_namespace, console.is_some(), arguments.into())?;
    stdio::give_to(user(&spec))?;
    keyring::join(container)?;
    let inherited = limits::locked_memory()?;

    let build = ContainerBuilder::new(container.to_owned(), SyscallType::default())
        .with_root_path(STATES)?
        .with_console_socket(console)
        .with_executor(Program::new(reporter, late))
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true);
    let made = jit::off(|| build.build())?;
    let pid = first_process(&made)?;
    // To load the device cgroup's program, libcgroups has changed this one.
    limits::set(pid, libc::RLIMIT_MEMLOCK, inherited)?;
    limits::set_all(pid, &rlimits)?;
    announce(pid, reporter);
    Ok(())
}

/// The number of a container's first process.
///
/// # Errors
/// [`Error::Internal`] if it has none.
pub fn first_process(container: &Container) -> Result<i32> {
    let missing = || Error::Internal("the container has no process".to_owned());
    Ok(container.pid().ok_or_else(missing)?.as_raw())
}

/// Tells the agent of a process, and waits until it has taken note: only when this helper ends does
/// the process become a child of the agent, which then may be told of its end at any moment.
pub fn announce(pid: i32, reporter: &Reporter) {
    reporter.send(&Report::Pid(pid.unsigned_abs()));
    reporter.wait();
}

/// The user that a container's first process runs as.
fn user(spec: &Spec) -> u32 {
    spec.process().as_ref().map_or(0, |process| process.user().uid())
}
