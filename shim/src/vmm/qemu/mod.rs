//! QEMU, 7.2 or later.

mod clock;
mod command;
mod plug;
mod qmp;
mod vsock;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::machine::Machine;
use super::{Accel, StartError, VmExit, VmSpec, Wires, inherit_disks, memory};
use crate::config::QemuMachine;
use crate::process::{Ended, HelperCommand, Status};
use crate::version::Version;

/// The process's name in records and messages.
const ROLE: &str = "qemu";

/// The first version that has every option and device that is used here.
pub const OLDEST: Version = Version { major: 7, minor: 2 };

/// How VMs of this host run under QEMU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings<'a> {
    /// QEMU.
    pub(super) program: &'a Path,
    /// vhost-device-vsock.
    pub(super) vsock_daemon: &'a Path,
    /// The machine that QEMU builds.
    pub(super) machine: QemuMachine,
    /// What executes the guest.
    pub(super) accel: Accel,
}

/// Starts a VM.
pub(super) async fn start(
    settings: &Settings<'_>,
    spec: &VmSpec,
    wires: Wires,
) -> Result<Machine, StartError> {
    // The daemon's start takes long enough to see how fast the host's counter runs.
    let translated = settings.accel == Accel::Tcg;
    let before = translated.then(clock::Moment::now).flatten();
    let (daemon, connection) = vsock::start(settings.vsock_daemon, spec).await?;
    let tsc_khz = before.and_then(|before| before.khz_until(clock::Moment::now()?));
    let failed = |source| {
        let path = spec.dir.clone();
        StartError::Socket { what: "QMP connection", path, source }
    };
    let (ours, theirs) = qmp_connection(qmp::NEGOTIATION).map_err(failed)?;
    // One that tells, and one that is told.
    let has_places = settings.machine == QemuMachine::Q35;
    let places = has_places.then(|| qmp_connection(qmp::NEGOTIATION)).transpose();
    let (monitor, told) = places.map_err(failed)?.unzip();
    let memory = memory::file(spec.memory).map_err(StartError::Memory)?;
    let disk = |error: io::Error| StartError::Disk { role: ROLE, reason: error.to_string() };
    let mut command = HelperCommand::new(ROLE, settings.program);
    let inherited = command::Inherited {
        qmp: command.inherit(theirs),
        monitor: told.map(|socket| command.inherit(socket)),
        vsock: command.inherit(connection),
        memory: command.inherit(memory),
        taps: command.inherit_taps(wires.taps),
        disks: inherit_disks(&mut command, spec).map_err(disk)?,
    };
    command.network(wires.namespace);
    let platform = command::Platform { machine: settings.machine, accel: settings.accel, tsc_khz };
    command.args(command::arguments(spec, platform, &inherited));
    let vmm = command.spawn()?;

    let program = settings.program.to_owned();
    let judge = move |ended| judge(&program, ended);
    let machine = Machine::new(vmm, vec![daemon], spec.vsock(), qmp::first_exit(ours), judge);
    Ok(match monitor {
        Some(monitor) => machine.with(plug::Hotplug::new(monitor)),
        None => machine,
    })
}

/// A connection to QEMU; it hears this first.
fn qmp_connection(first: &[u8]) -> io::Result<(tokio::net::UnixStream, UnixStream)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.write_all(first)?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs))
}

/// What QEMU's end means where QMP says nothing.
fn judge(program: &Path, mut ended: Ended) -> VmExit {
    if let Status::Code(_) = ended.status {
        ended.output += &OLDEST.complaint(program);
    }
    VmExit::Ended { role: ROLE, ended }
}
