//! QEMU's command line, for its machines microvm and q35, with KVM or without.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;

use bulkhead_protocols::{SHARE_TAG, address_text, device_address};

use super::plug::PORTS;
use crate::config::QemuMachine;
use crate::vmm::net::list;
use crate::vmm::{Accel, Disk, KERNEL_PARAMS, VmSpec, memory};

/// The descriptors that QEMU inherits.
#[derive(Debug)]
pub(super) struct Inherited {
    /// A connection for QMP.
    pub(super) qmp: RawFd,
    /// A connection to the vsock daemon.
    pub(super) vsock: RawFd,
    /// The guest's memory.
    pub(super) memory: RawFd,
    /// The queues of the tap behind each network device.
    pub(super) taps: Vec<Vec<RawFd>>,
    /// The disks of the specification, in its order.
    pub(super) disks: Vec<RawFd>,
}

/// What the VM runs on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Platform {
    /// The machine that QEMU builds.
    pub(super) machine: QemuMachine,
    /// What executes the guest.
    pub(super) accel: Accel,
    /// The speed of the guest's time stamp counter, where it cannot find out well itself.
    pub(super) tsc_khz: Option<u64>,
}

/// Entries of the virtiofs queue; each request takes a few.
const FS_QUEUE: u32 = 1024;

/// The arguments for a VM. The paths in them are plain: the configuration allows no others.
pub(super) fn arguments(spec: &VmSpec, platform: Platform, inherited: &Inherited) -> Vec<OsString> {
    let Platform { machine, accel, .. } = platform;
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: OsString| {
        args.push(name.into());
        args.push(value);
    };
    // No default devices, no configuration files of the host.
    add("-M", machine_type(machine).into());
    add("-accel", accelerator(accel).into());
    add("-cpu", processor(accel, spec.nested).into());
    add("-smp", processors(accel, spec.vcpus).into());
    add("-m", format!("{}B", spec.memory).into());
    // vhost-user devices need memory that another process can map.
    add(
        "-object",
        format!(
            "memory-backend-file,id=mem,size={},mem-path={},share=on",
            spec.memory,
            memory::path(inherited.memory)
        )
        .into(),
    );
    add("-kernel", spec.kernel.clone().into());
    add("-initrd", spec.initramfs.clone().into());
    add("-append", cmdline(spec, platform).into());

    let console = spec.console.display();
    add("-chardev", format!("file,id=console,append=on,path={console}").into());
    add("-serial", "chardev:console".into());
    add("-chardev", format!("socket,id=qmp,fd={}", inherited.qmp).into());
    add("-mon", "chardev=qmp,mode=control".into());

    let bus = match machine {
        QemuMachine::Microvm => "device",
        QemuMachine::Q35 => "pci",
    };
    if let Some(socket) = &spec.share {
        add("-chardev", format!("socket,id=share,path={}", socket.display()).into());
        let queue = format!("chardev=share,queue-size={FS_QUEUE},tag={SHARE_TAG}");
        add("-device", format!("vhost-user-fs-{bus},{queue}").into());
    }
    add("-chardev", format!("socket,id=vsock,fd={}", inherited.vsock).into());
    add("-device", format!("vhost-user-vsock-{bus},chardev=vsock").into());
    for (disk, fd) in spec.disks.iter().zip(&inherited.disks) {
        add("-blockdev", image(disk, *fd).into());
        // An error of the host's is the guest's: it does not stop for it.
        let errors = "werror=report,rerror=report";
        let serial = &disk.serial;
        let device = format!("virtio-blk-{bus},drive={serial},serial={serial},{errors}");
        add("-device", device.into());
    }
    for (number, queues) in (0..).zip(&inherited.taps) {
        add("-netdev", format!("tap,id=net{number},fds={}", list(queues, ":")).into());
        add("-device", network(machine, number, queues.len()).into());
    }
    if machine == QemuMachine::Q35 {
        add("-device", "pvpanic-pci".into());
        // By it the guest's kernel says which memory is free, and the host has that back. It would cost microvm one of
        // its eight places.
        add("-device", "virtio-balloon-pci,free-page-reporting=on".into());
        for port in 0..PORTS {
            // Each needs a slot number of its own (docs/pcie.txt of QEMU).
            let (chassis, bus) = (port + 1, format!("id=port{port}"));
            add("-device", format!("pcie-root-port,{bus},chassis={chassis},slot={chassis}").into());
        }
    }

    let denied = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    add("-sandbox", denied.into());
    add("-display", "none".into());
    add("-monitor", "none".into());
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.push(flag.into());
    }
    args
}

/// How many processors there are. A guest that can have but one is executed without KVM as if nothing else saw its
/// memory: a locked instruction orders nothing then, so that now and then the guest or a device misses the other's
/// notice, and both wait for ever. A place for a second processor is enough to have it executed as it is written.
fn processors(accel: Accel, vcpus: u32) -> String {
    match accel {
        Accel::Kvm => vcpus.to_string(),
        Accel::Tcg => format!("{vcpus},maxcpus={}", vcpus.max(2)),
    }
}

/// What a disk's bytes are. QEMU locks them.
fn image(disk: &Disk, fd: RawFd) -> String {
    let is_block = disk.file.metadata().is_ok_and(|found| found.file_type().is_block_device());
    let driver = if is_block { "host_device" } else { "file" };
    let readonly = if disk.readonly { "on" } else { "off" };
    format!(
        "driver=raw,node-name={},read-only={readonly},discard=unmap,file.driver={driver},file.filename={},file.discard=unmap",
        disk.serial,
        memory::path(fd)
    )
}

/// A network device. It brings no program for its own boot.
fn network(machine: QemuMachine, number: u8, queues: usize) -> String {
    let address = address_text(device_address(number));
    let (device, rom) = match machine {
        QemuMachine::Microvm => ("virtio-net-device", ""),
        QemuMachine::Q35 => ("virtio-net-pci", ",romfile="),
    };
    let many = if queues > 1 { ",mq=on" } else { "" };
    format!("{device},netdev=net{number},mac={address}{rom}{many}")
}

/// microvm's interrupt controller and timer stay on: a guest without KVM's clock calibrates
/// its own with them.
fn machine_type(machine: QemuMachine) -> &'static str {
    match machine {
        QemuMachine::Microvm => "microvm,acpi=off,rtc=on,pic=on,pit=on,memory-backend=mem",
        QemuMachine::Q35 => "q35,usb=off,sata=off,smbus=off,vmport=off,hpet=off,memory-backend=mem",
    }
}

/// Translated code has 128 MiB, where QEMU by itself would take an eighth of the host's memory.
fn accelerator(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg,thread=multi,tb-size=128",
    }
}

/// All that the accelerator can give, but virtualization only where it is asked for. A translated string instruction goes
/// byte by byte: a kernel and a libc that are told of fast ones clear and copy with them, five to ten times slower.
fn processor(accel: Accel, nested: bool) -> String {
    let model = match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max,-erms,-fsrm",
    };
    if nested { model.to_owned() } else { format!("{model},-vmx,-svm") }
}

/// Without ACPI and keyboard controller the kernel resets by a triple fault, which `-no-reboot`
/// turns into QEMU's end; and it need not search for ACPI's tables.
///
/// After a `cmpxchg16b` that is translated, QEMU before 8.0 has nonsense in the flags: an interrupt at that moment saves
/// and restores it, and the kernel goes on with its string instructions running backwards, or worse. So the kernel,
/// which allocates memory by it, takes the processor for one without. Programs still see it: images whose glibc is
/// built for x86-64-v2 don't start where it is missing.
///
/// What virtiofsd writes into the guest's memory a translator does not see: where code lay before, it would go on with that.
/// So the kernel clears each page before it is used, which is seen.
fn cmdline(spec: &VmSpec, platform: Platform) -> String {
    let Platform { machine, accel, tsc_khz } = platform;
    let mut words = KERNEL_PARAMS.to_vec();
    if accel == Accel::Tcg {
        words.extend(["clearcpuid=cx16", "init_on_alloc=1"]);
    }
    if machine == QemuMachine::Microvm {
        words.extend(["acpi=off", "reboot=t"]);
    }
    let speed = tsc_khz.map(|khz| format!("tsc_early_khz={khz}"));
    if let Some(speed) = &speed {
        words.extend(["tsc=reliable", speed]);
    }
    words.extend(spec.cmdline.iter().map(String::as_str));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        let disks = vec![Disk::sample("scratch", false), Disk::sample("disk0", true)];
        VmSpec { disks, ..VmSpec::sample("/run/b/1".as_ref()) }
    }

    fn line(spec: &VmSpec, machine: QemuMachine, accel: Accel) -> String {
        let tsc_khz = (accel == Accel::Tcg).then_some(2_500_000);
        let platform = Platform { machine, accel, tsc_khz };
        let taps = vec![vec![10, 11], vec![12, 13]];
        let inherited = Inherited { qmp: 7, vsock: 8, memory: 9, taps, disks: vec![14, 16] };
        let args = arguments(spec, platform, &inherited);
        let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        words.join(" ") + " "
    }

    fn has(line: &str, part: &str) {
        assert!(line.contains(&format!("{part} ")), "{part:?} not in {line}");
    }

    #[test]
    fn microvm_takes_devices_without_a_bus() {
        let line = line(&spec(), QemuMachine::Microvm, Accel::Tcg);
        let base = KERNEL_PARAMS.join(" ");
        has(&line, "-smp 2,maxcpus=2");
        has(&line, "-m 268435456B");
        has(
            &line,
            &format!(
                "-append {base} clearcpuid=cx16 init_on_alloc=1 acpi=off reboot=t tsc=reliable tsc_early_khz=2500000 a=b"
            ),
        );
        has(&line, "-accel tcg,thread=multi,tb-size=128");
        has(&line, "-cpu max,-erms,-fsrm,-vmx,-svm");
        has(&line, "vhost-user-fs-device,chardev=share,queue-size=1024,tag=share");
        has(&line, "vhost-user-vsock-device,chardev=vsock");
        has(&line, "tap,id=net1,fds=12:13");
        has(&line, "virtio-net-device,netdev=net1,mac=02:62:75:6c:6b:01,mq=on");
        has(&line, "virtio-blk-device,drive=scratch,serial=scratch,werror=report,rerror=report");
        assert!(line.contains(
            "node-name=scratch,read-only=off,discard=unmap,file.driver=file,file.filename=/proc/self/fd/14,"
        ));
        assert!(line.contains("node-name=disk0,read-only=on,discard=unmap,file.driver=file,"));
        has(&line, "socket,id=qmp,fd=7");
        has(&line, "socket,id=vsock,fd=8");
        has(&line, "-no-reboot");
        assert!(!line.contains("-pci"), "{line}");
    }

    #[test]
    fn q35_takes_them_on_its_bus_and_a_panic_device() {
        let line = line(&spec(), QemuMachine::Q35, Accel::Kvm);
        has(&line, &format!("-append {} a=b", KERNEL_PARAMS.join(" ")));
        has(&line, "-accel kvm");
        has(&line, "-smp 2");
        has(&line, "-cpu host,-vmx,-svm");
        has(&line, "virtio-blk-pci,drive=scratch,serial=scratch,werror=report,rerror=report");
        has(&line, "vhost-user-vsock-pci,chardev=vsock");
        has(&line, "virtio-net-pci,netdev=net0,mac=02:62:75:6c:6b:00,romfile=,mq=on");
        has(&line, "pvpanic-pci");
        has(&line, "virtio-balloon-pci,free-page-reporting=on");
        has(&line, "pcie-root-port,id=port7,chassis=8,slot=8");
    }

    #[test]
    fn a_processor_that_is_translated_is_never_the_only_possible_one() {
        let spec = VmSpec { vcpus: 1, ..spec() };
        has(&line(&spec, QemuMachine::Microvm, Accel::Tcg), "-smp 1,maxcpus=2");
        has(&line(&spec, QemuMachine::Microvm, Accel::Kvm), "-smp 1");
    }

    #[test]
    fn nested_virtualization_is_on_only_when_asked_for() {
        let spec = VmSpec { nested: true, ..spec() };
        has(&line(&spec, QemuMachine::Microvm, Accel::Kvm), "-cpu host");
    }
}
