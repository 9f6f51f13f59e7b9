//! Root file systems on block devices and in image files, as containerd's snapshotters have them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::api::Mount;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::{Value, json};

use crate::bed::Test;
use crate::command::{self, Input};
use crate::ensure;
use crate::failure::{Context, Failure, Outcome};
use crate::options::Generation;
use crate::runner::Case;
use crate::shim::Shim;
use crate::spec;
use crate::ward::Ward;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "storage.blockfile",
        "containerd's blockfile snapshotter: the guest mounts the image",
        blockfile,
    ),
    Case::bulkhead(
        "storage.block_pod",
        "containers of one sandbox bring their images, and take them along",
        several,
    ),
    Case::bulkhead(
        "storage.image_refused",
        "an image that is none, or somebody else's, is refused",
        image_refused,
    ),
    Case::bulkhead(
        "storage.layers",
        "containerd's erofs snapshotter: the guest has the layers as disks, and its own above them",
        layers,
    ),
    Case::bulkhead(
        "storage.no_places",
        "a machine that takes no disks later has those of its first container, and says so",
        no_places,
    ),
];

/// A containerd whose VMs have places for disks.
pub fn ward<'t, 'b>(t: &'t Test<'b>) -> Outcome<Ward<'t, 'b>> {
    let ward = Ward::new(t)?;
    ward.configure("qemu_machine = \"q35\"")?;
    Ok(ward)
}

/// The same where containerd has snapshotters whose snapshots are images.
fn images<'t, 'b>(t: &'t Test<'b>) -> Outcome<Ward<'t, 'b>> {
    if t.bed.options.generation == Generation::One {
        return Err(Failure::not_here("containerd 1.6 has no such snapshotter"));
    }
    ward(t)
}

const BLOCKFILE: [&str; 2] = ["--snapshotter", "blockfile"];

/// What debugfs answers of an image.
pub fn debugfs(t: &Test<'_>, image: &Path, request: &str) -> Outcome<String> {
    let mut debugfs = Command::new("/usr/sbin/debugfs");
    debugfs.args(["-R", request]).arg(image);
    Ok(command::run(debugfs, Input::Null, t.deadline(10))?.ok()?.out())
}

/// The images of the snapshotter's that hold a file.
fn images_with(t: &Test<'_>, ward: &Ward<'_, '_>, file: &str) -> Outcome<Vec<PathBuf>> {
    let root = ward.node.dir().join("root/io.containerd.snapshotter.v1.blockfile/snapshots");
    let mut found = Vec::new();
    for image in fs::read_dir(&root).context(root.display())? {
        let image = image?.path();
        if !debugfs(t, &image, &format!("cat {file}"))?.is_empty() {
            found.push(image);
        }
    }
    Ok(found)
}

fn blockfile(t: &Test<'_>) -> Outcome {
    let ward = images(t)?;
    let container = ward.container();
    let script =
        "awk '$2 == \"/\" { print $1, $3 }' /proc/mounts; head -c 3000000 /dev/urandom > /large
        sha256sum < /large > /sum; echo of the guest > /new";
    let flags = [&["-d", "--log-uri", "file:///dev/null"], &BLOCKFILE[..]].concat();
    container.run(&flags, &["sh", "-c", &format!("({script}) > /said; sleep 100000")])?.ok()?;
    container.sh("until test -s /new; do sleep 0.1; done")?;
    let said = container.sh("cat /said")?;
    ensure!(said.starts_with("/dev/vd") && said.ends_with(" ext4\n"), "the root is on {said}");
    let devices = container.inspect()?["devices"].to_string();
    ensure!(devices.contains("virtio-blk disk0, /"), "{devices}");
    // Nothing else of the host is to be seen, so nothing serves it.
    let sandbox = container.inspect()?;
    for part in ["devices", "processes", "phases"].map(|part| sandbox[part].to_string()) {
        ensure!(!part.contains("virtiofs"), "there is a share: {part}");
    }
    let loops = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(
        !loops.contains("snapshotter.v1.blockfile/snapshots"),
        "the host has mounted it: {loops}"
    );
    container.kill("SIGKILL")?;
    container.wait_stopped()?;
    // It is on the disk as soon as the end is known.
    let images = images_with(t, &ward, "/new")?;
    ensure!(images.len() == 1, "{images:?} have the file");
    ensure!(
        debugfs(t, &images[0], "cat /new")? == "of the guest\n",
        "the image has something else"
    );
    container.remove();
    let again =
        ward.container().run(&BLOCKFILE, &["sh", "-c", "test ! -e /new; ls /bin | wc -l"])?;
    again.ok()?;
    ward.nothing_left(&container.id)
}

/// Has the host give up the layers that a snapshotter has mounted; an image that is removed does not.
struct Layers(PathBuf);

impl Drop for Layers {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(&self.0)) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

fn layers(t: &Test<'_>) -> Outcome {
    let ward = images(t)?;
    if !fs::read_to_string("/proc/filesystems")?.contains("\terofs\n") {
        return Err(Failure::not_here("the host's kernel has no erofs"));
    }
    let root = ward.node.dir().join("root/io.containerd.snapshotter.v1.erofs");
    let _layers = Layers(root);
    let flags = ["--null-io", "--snapshotter", "erofs"];
    let upper = [&flags[..], &["--annotation", "io.bulkhead.rootfs_upper=guest"]].concat();
    let (one, two) = (t.programs_on(&ward.node)?, t.programs_on(&ward.node)?);
    for container in [&one, &two] {
        container.start_with(&upper, &["sleep", "100000"])?;
        let devices = container.inspect()?["devices"].to_string();
        let layers = devices.matches("virtio-blk disk").count();
        ensure!(layers == 2 && !devices.contains("virtiofs"), "{devices}");
        // A file of each layer, one that is changed, one that is new, a directory that is replaced.
        let said = container.sh(
            "awk '$2 == \"/\" { print $1, $3 }' /proc/mounts; test -x /bin/busybox; git --version > /new
             rm /usr/bin/git; test ! -e /usr/bin/git; cd /usr/lib/x86_64-linux-gnu; rm -r xtables; mkdir xtables; ls -A xtables
             grep -c erofs /proc/mounts || true",
        )?;
        ensure!(said == "rootfs overlay\n0\n", "{said}");
    }
    // What the host has above the layers is the container's without it; the share is there then.
    let third = t.programs_on(&ward.node)?;
    third.start_with(&flags, &["sleep", "100000"])?;
    let devices = third.inspect()?["devices"].to_string();
    ensure!(devices.contains("virtiofs") && !devices.contains("blk disk"), "{devices}");
    third.sh("test -x /usr/bin/git; echo kept > /new")?;
    for container in [&one, &two, &third] {
        container.remove();
    }
    ward.nothing_left(&one.id)
}

fn several(t: &Test<'_>) -> Outcome {
    let ward = images(t)?;
    let first = ward.container();
    first.start_with(&[&["--null-io"], &BLOCKFILE[..]].concat(), &["sleep", "100000"])?;
    // More than there are places at once.
    for round in 0..12 {
        let other = ward.container();
        let group = first.group_flags();
        let flags = [&[&*group[0], &*group[1]], &BLOCKFILE[..]].concat();
        let said = other.run(&flags, &["sh", "-c", "echo $(ls /sys/block | grep -c vd)"])?;
        let said = said.ok().context(format!("round {round}"))?.out();
        ensure!(said == "2\n", "round {round}: there are {said} disks");
    }
    let late = ward.container();
    let group = first.group_flags();
    let mount = "--mount=type=bind,src=/etc,dst=/mnt,options=rbind";
    let said = late.run(&[&[&*group[0], &*group[1], mount], &BLOCKFILE[..]].concat(), &["true"])?;
    said.refused(&["the sandbox has no share", &late.id])?;
    first.remove();
    ward.nothing_left(&first.id)
}

/// A shim with a spec like this, on a containerd of the test's own.
pub fn shim(t: &Test<'_>, ward: &Ward<'_, '_>, change: impl FnOnce(&mut Value)) -> Outcome<Shim> {
    let id = ward.container().id;
    let mut spec = spec::plain(Path::new("rootfs"), &["true"]);
    spec["linux"]["cgroupsPath"] = json!(format!("/e2e/{id}"));
    change(&mut spec);
    let bundle = t.directory()?.join(&id);
    Shim::start(&t.bed.options, &ward.node, &id, bundle, &spec)
}

/// Requires that a container on this image is refused with these texts.
fn refused(t: &Test<'_>, ward: &Ward<'_, '_>, image: &Path, parts: &[&str]) -> Outcome {
    let shim = shim(t, ward, |_| ())?;
    let reply = shim.create_with(|request| {
        request.rootfs = vec![Mount {
            type_: "ext4".to_owned(),
            source: image.to_string_lossy().into_owned(),
            options: vec!["loop".to_owned(), "rw".to_owned()],
            ..Default::default()
        }];
    });
    let Err(refusal) = reply else {
        return Err(Failure::new(format!("{} was not refused", image.display())));
    };
    for part in parts {
        ensure!(refusal.message.contains(part), "{part:?} is not in {refusal:?}");
    }
    shim.shutdown()?;
    ward.nothing_left(&shim.id)
}

fn image_refused(t: &Test<'_>) -> Outcome {
    let ward = ward(t)?;
    let file = ward.scratch.join("image");
    fs::write(&file, vec![0x5a; 4 << 20])?;
    refused(t, &ward, &file, &["cannot mount /dev/disk/by-id/virtio-disk0 on "])?;
    refused(t, &ward, Path::new("/no/such/image"), &["/no/such/image", "No such file"])?;
    let held = File::options().read(true).write(true).open(&file)?;
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive)?;
    refused(t, &ward, &file, &["lock", "; disk0 is ", "/image"])
}

fn no_places(t: &Test<'_>) -> Outcome {
    if t.bed.options.hypervisor != "qemu" {
        return Err(Failure::not_here("the VMM takes disks at any time"));
    }
    let ward = images(t)?;
    ward.configure("qemu_machine = \"microvm\"")?;
    // What the first container has is there when the VM starts.
    let first = ward.container();
    first.start_with(&[&["--null-io"], &BLOCKFILE[..]].concat(), &["sleep", "100000"])?;
    let said = first.sh("awk '$2 == \"/\" { print $1 }' /proc/mounts")?;
    ensure!(said.starts_with("/dev/vd"), "the root is on {said}");
    let group = first.group_flags();
    let flags = [&[&*group[0], &*group[1]], &BLOCKFILE[..]].concat();
    let said = ward.container().run(&flags, &["true"])?;
    said.refused(&["no places for them (qemu_machine = \"microvm\")"])?;
    first.remove();
    ward.nothing_left(&first.id)
}
