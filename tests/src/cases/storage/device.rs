//! Block devices of the host, as containers' own devices.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use containerd_shim_protos::api::Mount;
use k8s_cri::v1::Device;
use serde_json::json;

use super::block;
use crate::bed::Test;
use crate::command::{self, Input};
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead("storage.device", "a block device is the container's, byte for byte", device),
    Case::any(
        "storage.device_pod",
        "containers of a pod have a block volume one after the other (volumeDevices)",
        pod,
    ),
    Case::bulkhead(
        "storage.device_refused",
        "a device that is not there, or for which there is no place, is refused",
        device_refused,
    ),
    Case::bulkhead(
        "storage.device_root",
        "a root file system on a block device, as devmapper has it, is the guest's to mount",
        root,
    ),
    Case::bulkhead("storage.others", "the host's other disks are not the guest's", others),
];

/// A file of the test's as a block device of the host. Dropping it takes the device away.
struct Loop {
    file: PathBuf,
    node: String,
}

impl Loop {
    fn new(t: &Test<'_>, size: u64) -> Outcome<Loop> {
        let file = t.directory()?.join(t.unique());
        File::create(&file)?.set_len(size)?;
        let mut losetup = Command::new("/usr/sbin/losetup");
        losetup.args(["--find", "--show"]).arg(&file);
        let node = command::run(losetup, Input::Null, t.deadline(10))?.ok()?.out();
        Ok(Loop { file, node: node.trim().to_owned() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").args(["-d", &self.node]).status();
    }
}

const SIZE: u64 = 64 << 20;

fn device(t: &Test<'_>) -> Outcome {
    let ward = block::ward(t)?;
    let disk = Loop::new(t, SIZE)?;
    File::options().write(true).open(&disk.file)?.write_all_at(b"of the host", 4096)?;
    let container = ward.container();
    let flags = ["--null-io", "--device", &disk.node, "--cap-add", "CAP_SYS_ADMIN"];
    container.start_with(&flags, &["sleep", "100000"])?;
    let node = &disk.node;
    let said = container.sh(&format!(
        "blockdev --getsize64 {node}; dd if={node} bs=1 skip=4096 count=11 2>&-
         cat /sys/dev/block/$(printf '%d:%d' $(stat -c '0x%t 0x%T' {node}))/serial"
    ))?;
    ensure!(said == format!("{SIZE}\nof the hostdisk0"), "{said:?}");
    // A file system of the job's own, and bytes that nobody has synced when it is killed.
    container.sh(&format!(
        "set -e; mke2fs -q {node}; mkdir /mnt; mount -t ext4 {node} /mnt; echo kept > /mnt/file
         umount /mnt; printf 'of the guest' | dd of={node} bs=1 seek=60000000 conv=notrunc 2>&-"
    ))?;
    container.kill("SIGKILL")?;
    container.wait_stopped()?;
    let mut found = [0; 12];
    File::open(&disk.file)?.read_exact_at(&mut found, 60_000_000)?;
    ensure!(&found == b"of the guest", "the host's file has {found:?}");
    let kept = block::debugfs(t, &disk.file, "cat file")?;
    ensure!(kept == "kept\n", "the file system has {kept:?}");
    container.remove();
    ward.nothing_left(&container.id)
}

fn pod(t: &Test<'_>) -> Outcome {
    let disk = Loop::new(t, SIZE)?;
    let volume = |permissions: &str| Device {
        container_path: "/dev/xvda".to_owned(),
        host_path: disk.node.clone(),
        permissions: permissions.to_owned(),
    };
    t.on_own_node(|node| {
        node.configure("qemu_machine = \"q35\"")?;
        let pod = t.pod_on(node).run()?;
        let with = |name, permissions| {
            pod.container(name).with(|config| config.devices.push(volume(permissions))).start()
        };
        let one = with("one", "mrw")?;
        one.sh("printf 'of the first' | dd of=/dev/xvda bs=1 seek=40000000 conv=notrunc 2>&-")?;
        one.stop(0)?;
        one.remove()?;
        let two = with("two", "r")?;
        two.prints("dd if=/dev/xvda bs=1 skip=40000000 count=12 2>&-", "of the first")?;
        two.sh("! dd if=/dev/zero of=/dev/xvda count=1 2>&-").map(drop)
    })
}

fn device_refused(t: &Test<'_>) -> Outcome {
    let ward = block::ward(t)?;
    let shim = block::shim(t, &ward, |spec| {
        let device = json!({"path": "/dev/sdx", "type": "b", "major": 7, "minor": 1_000_000});
        let rule =
            json!({"allow": true, "type": "b", "major": 7, "minor": 1_000_000, "access": "rwm"});
        spec["linux"]["devices"] = json!([device]);
        spec["linux"]["resources"]["devices"] = json!([rule]);
    })?;
    let Err(refusal) = shim.create() else {
        return Err(Failure::new("a device that is not there was not refused"));
    };
    for part in ["linux.devices[0]", "/sys/dev/block/7:1000000: No such file"] {
        ensure!(refusal.message.contains(part), "{part:?} is not in {refusal:?}");
    }
    shim.shutdown()?;
    ward.nothing_left(&shim.id)?;
    if t.bed.options.hypervisor == "qemu" {
        ward.configure("qemu_machine = \"microvm\"")?;
        let disk = Loop::new(t, SIZE)?;
        let first = ward.container();
        let idle = ["--null-io", "--device", &*disk.node];
        first.start_with(&idle, &["sleep", "100000"])?;
        first.sh(&format!("test -b {}", disk.node))?;
        let group = first.group_flags();
        let other = Loop::new(t, SIZE)?;
        let flags = [&*group[0], &*group[1], "--device", &*other.node];
        let said = ward.container().run(&flags, &["true"])?;
        said.refused(&["takes no disk while it runs", "no places for them"])?;
        first.remove();
    }
    Ok(())
}

fn root(t: &Test<'_>) -> Outcome {
    let ward = block::ward(t)?;
    let disk = Loop::new(t, SIZE)?;
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    mkfs.args(["-q", "-F", "-d"]).arg(t.root_file_system()?).arg(&disk.node);
    command::run(mkfs, Input::Null, t.deadline(20))?.ok()?;
    let script = "grep -q '^/dev/vd[a-z] / ext4 rw' /proc/mounts && echo seen > /new";
    let shim = block::shim(t, &ward, |spec| spec["process"]["args"] = json!(["sh", "-c", script]))?;
    shim.create_with(|request| {
        request.rootfs = vec![Mount {
            type_: "ext4".to_owned(),
            source: disk.node.clone(),
            ..Default::default()
        }];
    })?;
    shim.start_process("")?;
    let status = shim.wait("")?.exit_status;
    ensure!(status == 0, "the script says {status}");
    shim.delete("")?;
    shim.shutdown()?;
    // Where it lies by then: until it is unmounted, the journal has it.
    let kept = block::debugfs(t, &disk.file, "cat new")?;
    ensure!(kept == "seen\n", "the device has {kept:?}");
    ward.nothing_left(&shim.id)
}

fn others(t: &Test<'_>) -> Outcome {
    let _disk = Loop::new(t, SIZE)?;
    // The guest's own loop devices have nothing in them.
    let script = "find /dev -type b ! -name 'loop[0-7]' || exit
        for loop in /dev/loop[0-7]; do test -b $loop || exit; head -c 1 $loop 2> /dev/null; done
        echo end";
    let said = t.container().run(&["--privileged"], &["sh", "-c", script])?.ok()?.out();
    ensure!(said == "end\n", "a privileged container has {said}");
    Ok(())
}
