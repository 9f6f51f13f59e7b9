//! QEMU, 7.2 or later.

mod clock;
mod command;
mod plug;
mod qmp;
mod vsock;

use std::collections::HashSet;
use std::io;
use std::path::Path;

use tokio::sync::{mpsc, watch};

use super::machine::Machine;
use super::{Accel, StartError, VmExit, VmSpec, Wires, inherit_disks, memory};
use crate::config::QemuMachine;
use crate::helper::{Ended, HelperCommand, Status};
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
    let (ours, theirs) = qmp::connection().map_err(failed)?;
    let memory = memory::file(spec.memory).map_err(StartError::Memory)?;
    let disk = |error: io::Error| StartError::Disk { role: ROLE, reason: error.to_string() };
    let mut command = HelperCommand::new(ROLE, settings.program);
    let inherited = command::Inherited {
        qmp: command.inherit(theirs),
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
    let (reader, writer) = ours.into_split();
    let (answered, answers) = mpsc::unbounded_channel();
    let (deleted, told) = watch::channel(HashSet::new());
    let events = qmp::first_exit(reader, answered, deleted);
    let machine = Machine::new(vmm, vec![daemon], spec.vsock(), events, judge);
    Ok(match settings.machine {
        QemuMachine::Q35 => machine.with(plug::Hotplug::new(writer, answers, told)),
        QemuMachine::Microvm => {
            // Shut down with it, the connection would bring no events either.
            writer.forget();
            machine
        }
    })
}

/// What QEMU's end means where QMP says nothing.
fn judge(program: &Path, mut ended: Ended) -> VmExit {
    if let Status::Code(_) = ended.status {
        ended.output += &OLDEST.complaint(program);
    }
    VmExit::Ended { role: ROLE, ended }
}
