//! cloud-hypervisor, v52 or later.

mod api;
mod command;
mod events;
mod landlock;
mod plug;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use api::Api;
pub use api::{API_SOCKET, ApiError, VmInfo, vm_info};

use super::machine::Machine;
use super::{StartError, VmExit, VmSpec, Wires, inherit_disks, memory};
use crate::helper::{Ended, HelperCommand, Status};
use crate::version::Version;
use events::Events;
use plug::Hotplug;

/// The process's name in records and messages.
const ROLE: &str = "cloud-hypervisor";

/// The first version that has every option that is used here, and takes the descriptor of a tap that is in another
/// network namespace.
pub const OLDEST: Version = Version { major: 52, minor: 0 };

/// How long the VMM may take to plug in a disk.
const PLUG: Duration = Duration::from_secs(30);

/// Starts a VM.
pub(super) fn start(program: &Path, spec: &VmSpec, wires: Wires) -> Result<Machine, StartError> {
    let socket = |what, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StartError::Socket { what, path, source }
    };
    // Bound here and inherited: on a path of its own the VMM would leave a lock file behind.
    let api_path = spec.dir.join(API_SOCKET);
    let api = UnixListener::bind(&api_path).map_err(socket("API socket", &api_path))?;
    let event_pipe = || -> io::Result<_> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
    };
    let (events, event_writer) = event_pipe().map_err(socket("event pipe", &spec.dir))?;

    let memory = memory::file(spec.memory).map_err(StartError::Memory)?;
    let disk = |error: io::Error| StartError::Disk { role: ROLE, reason: error.to_string() };
    let mut command = HelperCommand::new(ROLE, program);
    let inherited = command::Inherited {
        api: command.inherit(api),
        events: command.inherit(event_writer),
        memory: command.inherit(memory),
        taps: command.inherit_taps(wires.taps),
        disks: inherit_disks(&mut command, spec).map_err(disk)?,
    };
    command.network(wires.namespace);
    command.args(command::arguments(spec, &inherited, landlock::usable()));
    let vmm = command.spawn()?;

    let program = program.to_owned();
    let judge = move |ended| judge(&program, ended);
    let removed = watch::Sender::default();
    let hotplug = Hotplug::new(Api::new(&api_path, PLUG), removed.subscribe());
    let events = Events::new(events).first_exit(removed);
    Ok(Machine::new(vmm, Vec::new(), spec.vsock(), events, judge).with(hotplug))
}

/// What the VMM's end means where its events say nothing.
fn judge(program: &Path, mut ended: Ended) -> VmExit {
    if ended.status == Status::Code(0) {
        return VmExit::GuestPowerOff;
    }
    if let Status::Code(_) = ended.status {
        ended.output += &OLDEST.complaint(program);
    }
    VmExit::Ended { role: ROLE, ended }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_old_version_is_named_as_the_likely_cause() {
        let dir = tempfile::tempdir().expect("tempdir");
        let program = dir.path().join("old");
        fs::write(&program, "#!/bin/sh\necho cloud-hypervisor v40.0\n").expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        let ended = Ended { status: Status::Code(2), output: "unexpected argument".to_owned() };
        assert_eq!(
            judge(&program, ended).to_string(),
            "cloud-hypervisor ended with exit code 2: unexpected argument \
             (this is version 40.0; 52.0 is the oldest that works)"
        );
    }

    #[test]
    fn a_silent_clean_end_is_a_power_off() {
        let ended = Ended { status: Status::Code(0), output: String::new() };
        assert_eq!(judge(Path::new("/nowhere"), ended), VmExit::GuestPowerOff);
    }
}
