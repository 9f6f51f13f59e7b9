//! cloud-hypervisor, v52 or later.

mod api;
mod command;
mod events;
mod landlock;
mod plug;
mod snapshot;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;

pub use api::{API_SOCKET, Api, ApiError, VmInfo};

use super::machine::Machine;
use super::template::{Snapshot, Template, TemplateError};
use super::{StartError, Vm, VmExit, VmSpec, Wires, inherit_disks, memory};
use crate::process::{Ended, HelperCommand, Status};
use crate::version::Version;
use events::{Events, Told};
use plug::Hotplug;

/// The process's name in records and messages.
const ROLE: &str = "cloud-hypervisor";

/// The first version that has every option that is used here, and takes the descriptor of a tap that is in another
/// network namespace.
pub const OLDEST: Version = Version { major: 52, minor: 0 };

/// How long the VMM may take to plug in a disk.
const PLUG: Duration = Duration::from_secs(30);

/// Starts a VM. One that is woken from a template runs when this returns, or has ended.
pub(super) async fn start(
    program: &Path,
    spec: &VmSpec,
    wires: Wires,
    template: Option<Template>,
) -> Result<Machine, StartError> {
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

    let (memory, snapshot) = guest(spec, template).await.map_err(StartError::Memory)?;
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
    let landlock = landlock::usable();
    command.args(match &snapshot {
        None => command::arguments(spec, &inherited, landlock),
        Some(snapshot) => {
            let placed = snapshot::place(snapshot, spec, &inherited, landlock);
            let url = placed.map_err(StartError::Template)?;
            command::waking(&url, &inherited, landlock)
        }
    });
    let vmm = command.spawn()?;

    let program = program.to_owned();
    let judge = move |ended| judge(&program, ended);
    let (running, runs) = oneshot::channel();
    let removed = watch::Sender::default();
    let hotplug = Hotplug::new(Api::new(&api_path, PLUG), removed.subscribe());
    let events = Events::new(events).first_exit(Told { running, removed });
    let machine = Machine::new(vmm, Vec::new(), spec.vsock(), events, judge);
    if snapshot.is_some() {
        // An error means that there will be no more events: the VM has ended, or soon will.
        let _ = runs.await;
        // A template has no disk.
        for disk in command::disks(spec, &inherited.disks) {
            let plugged = hotplug.call(move |api| api.add_disk(&disk)).await;
            plugged.map_err(|error| StartError::Disk { role: ROLE, reason: error.to_string() })?;
        }
    }
    Ok(machine.with(hotplug))
}

/// A file for the guest's memory, and the state that goes with what is in it, if a template is.
async fn guest(
    spec: &VmSpec,
    template: Option<Template>,
) -> io::Result<(OwnedFd, Option<Snapshot>)> {
    let memory = memory::file(spec.memory)?;
    let Some(template) = template else { return Ok((memory, None)) };
    let memory = File::from(memory);
    // Tens of megabytes: a thread of its own, so that calls are answered meanwhile.
    let copy = move || template.copy_memory(&memory).map(|()| (memory, template.snapshot));
    let (memory, snapshot) = spawn_blocking(copy).await.map_err(io::Error::other)??;
    Ok((memory.into(), Some(snapshot)))
}

/// Stops a VM for good. Returns its state, and the file that is its guest's memory.
pub(super) fn take(vm: &dyn Vm, spec: &VmSpec) -> Result<(Snapshot, File), TemplateError> {
    snapshot::take(vm.pid(), spec)
}

/// What the VMM's end means where its events say nothing.
fn judge(program: &Path, mut ended: Ended) -> VmExit {
    if ended.status == Status::Code(0) {
        return VmExit::GuestPowerOff;
    }
    if let (Status::Code(_), Ok(version)) = (ended.status, Version::of(program))
        && version < OLDEST
    {
        ended.output += &format!(" (this is version {version}; {OLDEST} is the oldest that works)");
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
