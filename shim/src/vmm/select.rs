//! Which VMM runs the VMs of this host: the one place that knows them all.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{StartError, Vm, VmSpec, Wires, cloud_hypervisor, processor, qemu};
use crate::config::{AssetError, Config, Hypervisor, QemuMachine};
use crate::version::Version;

/// A VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// cloud-hypervisor, which needs KVM.
    CloudHypervisor,
    /// QEMU.
    Qemu,
}

impl Vmm {
    /// Its name, in records and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Vmm::CloudHypervisor => "cloud-hypervisor",
            Vmm::Qemu => "qemu",
        }
    }

    /// The first version of it that works.
    #[must_use]
    pub fn oldest(self) -> Version {
        match self {
            Vmm::CloudHypervisor => cloud_hypervisor::OLDEST,
            Vmm::Qemu => qemu::OLDEST,
        }
    }

    /// Where it serves an API for the VM in this directory, if it does.
    #[must_use]
    pub fn api_socket(self, directory: &Path) -> Option<PathBuf> {
        match self {
            Vmm::CloudHypervisor => Some(directory.join(cloud_hypervisor::API_SOCKET)),
            Vmm::Qemu => None,
        }
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// Its name, in records and on QEMU's command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// Why hardware KVM is not usable.
#[derive(Debug, Error)]
pub enum KvmProblem {
    /// The processor has no virtualization, or does not show it.
    #[error("the processor shows neither vmx nor svm")]
    NoExtension,
    /// The device does not open.
    #[error("/dev/kvm cannot be opened ({0})")]
    Open(io::Error),
}

/// What was found on this host.
#[derive(Debug)]
pub struct Host {
    /// Whether hardware KVM is usable.
    pub kvm: Result<(), KvmProblem>,
    /// cloud-hypervisor's program.
    pub cloud_hypervisor: Result<PathBuf, AssetError>,
    /// QEMU's program.
    pub qemu: Result<PathBuf, AssetError>,
    /// The vsock daemon that QEMU needs.
    pub vhost_device_vsock: Result<PathBuf, AssetError>,
}

impl Host {
    /// Looks. It runs no program.
    #[must_use]
    pub fn probe(config: &Config) -> Host {
        Host {
            kvm: probe_kvm(),
            cloud_hypervisor: config.files.cloud_hypervisor(),
            qemu: config.files.qemu(),
            vhost_device_vsock: config.files.vhost_device_vsock(),
        }
    }
}

fn probe_kvm() -> Result<(), KvmProblem> {
    // A /dev/kvm that opens without the processor's help is an emulation that no kernel boots on.
    if !processor::has(&["vmx", "svm"]) {
        return Err(KvmProblem::NoExtension);
    }
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opened.map(drop).map_err(KvmProblem::Open)
}

/// A configuration for which no VMM can run here.
#[derive(Debug, Error)]
pub enum SelectError {
    /// cloud-hypervisor is asked for, but KVM is not usable.
    #[error("hypervisor = \"cloud-hypervisor\" cannot run here: it needs hardware KVM, and {0}")]
    NeedsKvm(KvmProblem),
    /// A program that is asked for, or that the chosen VMM needs, is missing.
    #[error("hypervisor = \"{hypervisor}\" cannot run here")]
    Program {
        /// What the configuration asks for.
        hypervisor: &'static str,
        /// What is missing.
        #[source]
        source: AssetError,
    },
    /// Nothing is asked for by name, and nothing can run.
    #[error("no VMM can run here: cloud-hypervisor: {cloud_hypervisor}; qemu: {qemu}")]
    Nothing {
        /// Why not cloud-hypervisor.
        cloud_hypervisor: String,
        /// Why not QEMU.
        qemu: AssetError,
    },
}

/// The VMM that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Which one.
    pub vmm: Vmm,
    /// What executes the guest.
    pub accel: Accel,
    /// Why this one: a sentence for the log.
    pub reason: String,
    /// Its program.
    pub program: PathBuf,
    /// The vsock daemon, where the VMM has no vsock of its own.
    pub vsock_daemon: Option<PathBuf>,
    machine: QemuMachine,
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}: {}", self.vmm.name(), self.accel.name(), self.reason)
    }
}

impl Selection {
    /// Chooses for this host.
    ///
    /// # Errors
    /// [`SelectError`]
    pub fn of(config: &Config) -> Result<Selection, SelectError> {
        Self::choose(config, Host::probe(config))
    }

    /// Chooses among what was found.
    ///
    /// # Errors
    /// [`SelectError`]
    pub fn choose(config: &Config, host: Host) -> Result<Selection, SelectError> {
        let named = "the configuration names it".to_owned();
        let Host { kvm, cloud_hypervisor, qemu, vhost_device_vsock: daemon } = host;
        match config.hypervisor {
            Hypervisor::CloudHypervisor => {
                kvm.map_err(SelectError::NeedsKvm)?;
                let program = needed("cloud-hypervisor", cloud_hypervisor)?;
                Ok(Self::cloud_hypervisor(program, named))
            }
            Hypervisor::Qemu => {
                let program = needed("qemu", qemu)?;
                Self::qemu(config, kvm, program, daemon, named)
            }
            Hypervisor::Auto => {
                let obstacle = match (&kvm, cloud_hypervisor) {
                    (Ok(()), Ok(program)) => {
                        let reason = "it is installed, and KVM is usable".to_owned();
                        return Ok(Self::cloud_hypervisor(program, reason));
                    }
                    // Named and unusable: the operator means that one.
                    (Ok(()), Err(source @ AssetError::Unusable { .. })) => {
                        return Err(SelectError::Program { hypervisor: "auto", source });
                    }
                    (Ok(()), Err(missing)) => missing.to_string(),
                    (Err(problem), _) => problem.to_string(),
                };
                let program = match qemu {
                    Err(qemu @ AssetError::NotFound { .. }) => {
                        return Err(SelectError::Nothing { cloud_hypervisor: obstacle, qemu });
                    }
                    other => needed("auto", other)?,
                };
                let reason = format!("cloud-hypervisor cannot run here: {obstacle}");
                Self::qemu(config, kvm, program, daemon, reason)
            }
        }
    }

    fn cloud_hypervisor(program: PathBuf, reason: String) -> Selection {
        Selection {
            vmm: Vmm::CloudHypervisor,
            accel: Accel::Kvm,
            reason,
            program,
            vsock_daemon: None,
            machine: QemuMachine::Microvm,
        }
    }

    fn qemu(
        config: &Config,
        kvm: Result<(), KvmProblem>,
        program: PathBuf,
        daemon: Result<PathBuf, AssetError>,
        mut reason: String,
    ) -> Result<Selection, SelectError> {
        let daemon = needed("qemu", daemon)?;
        let accel = match kvm {
            Ok(()) => Accel::Kvm,
            Err(problem) => {
                let problem = problem.to_string();
                if !reason.contains(&problem) {
                    reason += &format!("; no KVM: {problem}");
                }
                Accel::Tcg
            }
        };
        Ok(Selection {
            vmm: Vmm::Qemu,
            accel,
            reason,
            program,
            vsock_daemon: Some(daemon),
            machine: config.qemu_machine,
        })
    }

    /// Starts a VM. It returns once the VMM's process runs; whether the guest comes up shows when its agent dials in,
    /// or when the VM ends.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(&self, spec: &VmSpec, wires: Wires) -> Result<Box<dyn Vm>, StartError> {
        match &self.vsock_daemon {
            None => Ok(Box::new(cloud_hypervisor::start(&self.program, spec, wires)?)),
            Some(daemon) => {
                let settings = qemu::Settings {
                    program: &self.program,
                    vsock_daemon: daemon,
                    machine: self.machine,
                    accel: self.accel,
                };
                Ok(Box::new(qemu::start(&settings, spec, wires).await?))
            }
        }
    }

    /// How many disks its VMs may have when they start, scratch disk included.
    #[must_use]
    pub fn disks(&self) -> usize {
        match (self.vmm, self.machine) {
            // Two of its places are left for networks.
            (Vmm::Qemu, QemuMachine::Microvm) => 4,
            (Vmm::Qemu, QemuMachine::Q35) => 8,
            (Vmm::CloudHypervisor, _) => 16,
        }
    }

    /// Whether its VMs take disks while they run.
    #[must_use]
    pub fn takes_disks(&self) -> bool {
        (self.vmm, self.machine) != (Vmm::Qemu, QemuMachine::Microvm)
    }

    /// How many network devices a VM has at most.
    #[must_use]
    pub fn network_devices(&self, disks: usize) -> usize {
        match (self.vmm, self.machine) {
            // It has eight places for virtio devices, and the share and vsock are two.
            (Vmm::Qemu, QemuMachine::Microvm) => 6usize.saturating_sub(disks),
            // A bus has 32 places, of which other devices and root ports take some.
            (Vmm::Qemu, QemuMachine::Q35) => 16.min(17usize.saturating_sub(disks)),
            (Vmm::CloudHypervisor, _) => 16.min(25usize.saturating_sub(disks)),
        }
    }
}

fn needed(
    hypervisor: &'static str,
    program: Result<PathBuf, AssetError>,
) -> Result<PathBuf, SelectError> {
    program.map_err(|source| SelectError::Program { hypervisor, source })
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn missing(name: &'static str) -> AssetError {
        AssetError::NotFound { name, key: "key", looked_in: vec![PathBuf::from("/bin")] }
    }

    fn unusable() -> AssetError {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        AssetError::Unusable { key: "cloud_hypervisor", path: PathBuf::from("/x"), source }
    }

    fn host() -> Host {
        Host {
            kvm: Ok(()),
            cloud_hypervisor: Ok(PathBuf::from("/bin/ch")),
            qemu: Ok(PathBuf::from("/bin/qemu")),
            vhost_device_vsock: Ok(PathBuf::from("/bin/vdv")),
        }
    }

    fn choose(hypervisor: Hypervisor, host: Host) -> Result<Selection, SelectError> {
        Selection::choose(&Config { hypervisor, ..Config::default() }, host)
    }

    #[test]
    fn auto_takes_cloud_hypervisor_where_it_can_run() {
        let selection = choose(Hypervisor::Auto, host()).expect("all there");
        assert_eq!((selection.vmm, selection.accel), (Vmm::CloudHypervisor, Accel::Kvm));
        assert_eq!(
            selection.to_string(),
            "cloud-hypervisor with kvm: it is installed, and KVM is usable"
        );
    }

    #[test]
    fn auto_takes_qemu_with_kvm_where_cloud_hypervisor_is_missing() {
        let host = Host { cloud_hypervisor: Err(missing("cloud-hypervisor")), ..host() };
        let selection = choose(Hypervisor::Auto, host).expect("QEMU");
        assert_eq!((selection.vmm, selection.accel), (Vmm::Qemu, Accel::Kvm));
        assert!(selection.reason.contains("cloud-hypervisor is not installed"));
    }

    #[test]
    fn auto_takes_qemu_without_kvm_where_the_processor_has_none() {
        let host = Host { kvm: Err(KvmProblem::NoExtension), ..host() };
        let selection = choose(Hypervisor::Auto, host).expect("QEMU");
        assert_eq!((selection.vmm, selection.accel), (Vmm::Qemu, Accel::Tcg));
        assert_eq!(
            selection.to_string(),
            "qemu with tcg: cloud-hypervisor cannot run here: the processor shows neither vmx nor svm"
        );
    }

    #[test]
    fn auto_says_what_both_lack() {
        let host = Host {
            kvm: Err(KvmProblem::Open(io::Error::from(io::ErrorKind::PermissionDenied))),
            qemu: Err(missing("qemu-system-x86_64")),
            ..host()
        };
        let text = choose(Hypervisor::Auto, host).expect_err("nothing").to_string();
        assert!(text.contains("cloud-hypervisor: /dev/kvm cannot be opened"), "{text}");
        assert!(text.contains("qemu: qemu-system-x86_64 is not installed"), "{text}");
    }

    #[test]
    fn auto_replaces_no_program_that_the_operator_named() {
        let host = Host { cloud_hypervisor: Err(unusable()), ..host() };
        let error = choose(Hypervisor::Auto, host).expect_err("named and broken");
        let source = error.source().map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("cloud_hypervisor = /x cannot be used"));
    }

    #[test]
    fn a_named_vmm_is_never_replaced() {
        let no_kvm = Host { kvm: Err(KvmProblem::NoExtension), ..host() };
        let error = choose(Hypervisor::CloudHypervisor, no_kvm).expect_err("no KVM");
        assert!(error.to_string().ends_with("the processor shows neither vmx nor svm"), "{error}");

        let none = Host { cloud_hypervisor: Err(missing("cloud-hypervisor")), ..host() };
        choose(Hypervisor::CloudHypervisor, none).expect_err("not installed");
        let none = Host { qemu: Err(missing("qemu-system-x86_64")), ..host() };
        choose(Hypervisor::Qemu, none).expect_err("not installed");
    }

    #[test]
    fn qemu_needs_its_vsock_daemon() {
        let host = Host { vhost_device_vsock: Err(missing("vhost-device-vsock")), ..host() };
        let error = choose(Hypervisor::Qemu, host).expect_err("no daemon");
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(source.starts_with("vhost-device-vsock is not installed"), "{source}");
    }

    #[test]
    fn a_named_qemu_says_when_it_has_no_kvm() {
        let host = Host { kvm: Err(KvmProblem::NoExtension), ..host() };
        let selection = choose(Hypervisor::Qemu, host).expect("TCG");
        assert_eq!(
            selection.reason,
            "the configuration names it; no KVM: the processor shows neither vmx nor svm"
        );
    }
}
