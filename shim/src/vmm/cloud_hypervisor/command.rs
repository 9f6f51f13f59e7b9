//! cloud-hypervisor's command line: the whole VM in one, so that no API call is on the way.

use std::ffi::OsString;
use std::os::fd::RawFd;

use bulkhead_protocols::{SHARE_TAG, address_text, device_address};
use serde::Serialize;

use crate::vmm::net::list;
use crate::vmm::{KERNEL_PARAMS, VmSpec, memory};

/// The guest's context id. It is the VMM's own affair: two VMs may have the same.
const GUEST_CID: u32 = 3;

/// A balloon that takes nothing: by it the guest's kernel says which memory is free, and the host has that back.
const REPORTING: &str = "size=0,free_page_reporting=on";

/// The descriptors that the VMM inherits.
#[derive(Debug)]
pub(super) struct Inherited {
    /// A listening socket for the API.
    pub(super) api: RawFd,
    /// A pipe for events.
    pub(super) events: RawFd,
    /// The guest's memory.
    pub(super) memory: RawFd,
    /// The queues of the tap behind each network device.
    pub(super) taps: Vec<Vec<RawFd>>,
    /// The disks of the specification, in its order.
    pub(super) disks: Vec<RawFd>,
}

/// The arguments for a VM. The paths in them are plain: the configuration allows no others.
pub(super) fn arguments(spec: &VmSpec, inherited: &Inherited, landlock: bool) -> Vec<OsString> {
    let mut cmdline = KERNEL_PARAMS.to_vec();
    cmdline.extend(spec.cmdline.iter().map(String::as_str));
    let nested = if spec.nested { "on" } else { "off" };
    let mut args: Vec<OsString> = vec![
        "--kernel".into(),
        spec.kernel.clone().into(),
        "--initramfs".into(),
        spec.initramfs.clone().into(),
        "--cmdline".into(),
        cmdline.join(" ").into(),
        "--cpus".into(),
        format!("boot={},nested={nested}", spec.vcpus).into(),
        // vhost-user devices need memory that another process can map.
        "--memory".into(),
        "size=0".into(),
        "--memory-zone".into(),
        format!("id=mem0,size={},file={},shared=on", spec.memory, memory::path(inherited.memory))
            .into(),
        "--vsock".into(),
        format!("cid={GUEST_CID},socket={}", spec.vsock().display()).into(),
        "--serial".into(),
        format!("file={}", spec.console.display()).into(),
        "--console".into(),
        "off".into(),
        "--pvpanic".into(),
        "--balloon".into(),
        REPORTING.into(),
    ];
    if let Some(socket) = &spec.share {
        args.push("--fs".into());
        args.push(format!("tag={SHARE_TAG},socket={}", socket.display()).into());
    }
    if !inherited.taps.is_empty() {
        args.push("--net".into());
        args.extend((0..).zip(&inherited.taps).map(|(n, queues)| network(n, queues).into()));
    }
    let disks: Vec<_> = disks(spec, &inherited.disks).map(|disk| disk.argument().into()).collect();
    if !disks.is_empty() {
        args.push("--disk".into());
        args.extend(disks);
    }
    args.extend([
        "--seccomp".into(),
        "true".into(),
        "--api-socket".into(),
        format!("fd={}", inherited.api).into(),
        "--event-monitor".into(),
        format!("fd={}", inherited.events).into(),
    ]);
    if landlock {
        // Its own rules cover every file above but not the directory where it binds the vsock.
        args.push("--landlock".into());
        args.push("--landlock-rules".into());
        args.push(format!("path={},access=rw", spec.dir.display()).into());
    }
    args
}

/// A disk as the VMM's API has it (DiskConfig of its cloud-hypervisor.yaml).
#[derive(Debug, Serialize)]
pub(super) struct Disk {
    id: String,
    serial: String,
    path: String,
    readonly: bool,
    image_type: &'static str,
}

impl Disk {
    /// A device of which the guest sees the bytes as they are.
    pub(super) fn new(serial: &str, path: String, readonly: bool) -> Disk {
        let (id, serial) = (serial.to_owned(), serial.to_owned());
        Disk { id, serial, path, readonly, image_type: "Raw" }
    }

    /// The same on the command line. Without its type the VMM would look for one in what the guest has written there,
    /// and refuse to write to the first sector.
    fn argument(&self) -> String {
        let Disk { id, serial, path, readonly, image_type } = self;
        let (readonly, kind) = (if *readonly { "on" } else { "off" }, image_type.to_lowercase());
        format!("id={id},serial={serial},path={path},readonly={readonly},image_type={kind}")
    }
}

/// The disks of a VM, which the VMM inherits under these numbers.
fn disks(spec: &VmSpec, inherited: &[RawFd]) -> impl Iterator<Item = Disk> {
    let pairs = spec.disks.iter().zip(inherited);
    pairs.map(|(disk, fd)| Disk::new(&disk.serial, memory::path(*fd), disk.readonly))
}

/// A network device. A queue is one way.
fn network(number: u8, queues: &[RawFd]) -> String {
    let address = address_text(device_address(number));
    let (fds, ways) = (list(queues, ","), 2 * queues.len());
    format!("id=net{number},mac={address},num_queues={ways},fd=[{fds}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm;

    fn inherited() -> Inherited {
        let taps = vec![vec![10, 11], vec![12, 13]];
        Inherited { api: 7, events: 8, memory: 9, taps, disks: vec![14, 16] }
    }

    fn spec() -> VmSpec {
        let cmdline = vec!["a=b".to_owned(), "c".to_owned()];
        let disks = vec![vmm::Disk::sample("scratch", false), vmm::Disk::sample("disk0", true)];
        VmSpec { cmdline, disks, ..VmSpec::sample("/run/b/1".as_ref()) }
    }

    fn value(args: &[OsString], name: &str) -> Option<String> {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)?.to_str().map(str::to_owned)
    }

    #[test]
    fn the_specification_stands_on_the_command_line() {
        let args = arguments(&spec(), &inherited(), false);
        let is = |name, expected: &str| assert_eq!(value(&args, name).as_deref(), Some(expected));
        is("--kernel", "/k");
        is("--initramfs", "/i");
        is("--cmdline", &format!("{} a=b c", KERNEL_PARAMS.join(" ")));
        is("--cpus", "boot=2,nested=off");
        is("--memory-zone", "id=mem0,size=268435456,file=/proc/self/fd/9,shared=on");
        is("--fs", "tag=share,socket=/run/b/1/fs");
        is("--vsock", "cid=3,socket=/run/b/1/vsock");
        is("--serial", "file=/run/b/1/console");
        is("--net", "id=net0,mac=02:62:75:6c:6b:00,num_queues=4,fd=[10,11]");
        is("--disk", "id=scratch,serial=scratch,path=/proc/self/fd/14,readonly=off,image_type=raw");
        let last = "id=disk0,serial=disk0,path=/proc/self/fd/16,readonly=on,image_type=raw";
        assert!(args.iter().any(|arg| arg == last));
        is("--balloon", "size=0,free_page_reporting=on");
        is("--api-socket", "fd=7");
        is("--event-monitor", "fd=8");
        assert!(!args.iter().any(|arg| arg == "--landlock"));
    }

    #[test]
    fn nested_virtualization_is_on_only_when_asked_for() {
        let spec = VmSpec { nested: true, ..spec() };
        let args = arguments(&spec, &inherited(), false);
        assert_eq!(value(&args, "--cpus").as_deref(), Some("boot=2,nested=on"));
    }

    #[test]
    fn landlock_is_told_of_the_sandboxs_directory() {
        let args = arguments(&spec(), &inherited(), true);
        assert_eq!(value(&args, "--landlock-rules").as_deref(), Some("path=/run/b/1,access=rw"));
    }
}
