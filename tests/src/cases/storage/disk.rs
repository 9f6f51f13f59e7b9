//! Scratch disks: a disk of its own for each pod, gone with it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::bed::{Container, Test};
use crate::containerd::NAMESPACE;
use crate::cri::container::ContainerPlan;
use crate::cri::volume::Mounted;
use crate::ensure;
use crate::failure::Outcome;
use crate::product;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "storage.empty_dir",
        "an emptyDir has the mode and group that the kubelet gave it, and takes an overlay's layers",
        empty_dir,
    ),
    Case::any("storage.sub_path", "subPath shows a part of an emptyDir", sub_path),
    Case::bulkhead("storage.paths", "directories that an annotation names lie on a disk", paths),
    Case::bulkhead("storage.filesystems", "the disk is ext4, xfs or btrfs", filesystems),
    Case::bulkhead(
        "storage.full",
        "a full disk is full for the guest; what it frees the host has",
        full,
    ),
    Case::bulkhead(
        "storage.upper",
        "what a container writes can lie on the disk, and ends with it",
        upper,
    ),
    Case::bulkhead(
        "storage.promised",
        "a disk that would not fit is refused, and says why",
        promised,
    ),
    Case::bulkhead("storage.refused", "what cannot be is refused with what is allowed", refused),
];

/// Runs a privileged container alone that idles, with annotations and more flags.
pub fn alone<'t>(
    t: &Test<'t>,
    annotations: &[(&str, &str)],
    more: &[&str],
) -> Outcome<Container<'t>> {
    alone_of(t.container(), annotations, more)
}

/// The same with a container that was made for it.
pub fn alone_of<'t>(
    container: Container<'t>,
    annotations: &[(&str, &str)],
    more: &[&str],
) -> Outcome<Container<'t>> {
    let said: Vec<_> =
        annotations.iter().map(|(key, value)| format!("io.bulkhead.{key}={value}")).collect();
    let mut flags = [&["--null-io", "--privileged"], more].concat();
    flags.extend(said.iter().flat_map(|one| ["--annotation", one]));
    container.start_with(&flags, &["sleep", "100000"])?;
    Ok(container)
}

fn disk_of(container: &Container<'_>) -> PathBuf {
    product::disk(container.node().dir(), NAMESPACE, &container.id)
}

fn privileged(plan: ContainerPlan<'_>) -> ContainerPlan<'_> {
    plan.security(|security| security.privileged = true)
}

/// Where the kubelet has a pod's volume.
fn volume(t: &Test<'_>) -> Outcome<(PathBuf, PathBuf)> {
    let pod = t.directory()?;
    let volume = pod.join("volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&volume)?;
    chown(&volume, None, Some(2000))?;
    fs::set_permissions(&volume, PermissionsExt::from_mode(0o2775))?;
    Ok((pod, volume))
}

/// Has an overlay lie on a directory, and looks whether it has what docker's overlay2 driver looks for.
const LAYERS: &str = "
    cd $1; mkdir lower upper work merged; echo below > lower/file; mkdir lower/dir
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
    rm merged/file; rmdir merged/dir; mkdir merged/dir; echo above > merged/dir/new
    umount merged
    test -c upper/file; test -f upper/dir/new; test -f lower/file
    rm -r lower upper work merged";

fn empty_dir(t: &Test<'_>) -> Outcome {
    let pod = t.pod().security(|security| security.privileged = true).run()?;
    let (_, volume) = volume(t)?;
    let one = privileged(pod.container("one").mount(&volume, "/cache")).start()?;
    let two = pod.container("two").mount(&volume, "/data").start()?;
    one.prints("stat -c '%a %u %g' /cache", "2775 0 2000\n")?;
    one.sh("echo shared > /cache/file; chown 7:8 /cache/file")?;
    two.prints("cat /data/file; stat -c '%u %g' /data/file", "shared\n7 8\n")?;
    // On this machine the tests' directory may itself be an overlay's, on which none can lie.
    if t.is_bulkhead() {
        one.sh(&format!("set -e; set -- /cache; {LAYERS}"))?;
        two.prints("stat -f -c %T /data", "ext2/ext3\n")?;
        ensure!(fs::read_dir(&volume)?.next().is_none(), "the host has files of the emptyDir");
    }
    Ok(())
}

fn sub_path(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let (dir, volume) = volume(t)?;
    fs::create_dir_all(volume.join("a/b"))?;
    // As in a directory whose group is handed on.
    chown(volume.join("a"), None, Some(2000))?;
    fs::set_permissions(volume.join("a"), PermissionsExt::from_mode(0o2755))?;
    chown(volume.join("a/b"), Some(5), Some(6))?;
    fs::create_dir_all(dir.join("volume-subpaths/cache/part"))?;
    let part = Mounted::bind(&volume.join("a/b"), dir.join("volume-subpaths/cache/part/0"))?;
    let one = pod.container("part").mount(&part.path, "/part").start()?;
    let two = pod.container("whole").mount(&volume, "/whole").start()?;
    one.sh("echo part > /part/file; test $(stat -c %u:%g /part) = 5:6")?;
    two.prints(
        "cat /whole/a/b/file; stat -c '%g %a' /whole /whole/a",
        "part\n2000 2775\n2000 2755\n",
    )?;
    // What a container has written, another mounts by itself. Where the host has no such file, the kubelet makes a
    // directory of that name.
    two.sh("echo text > /whole/conf")?;
    if t.is_bulkhead() {
        fs::create_dir(volume.join("conf"))?;
    }
    let file = dir.join("volume-subpaths/cache/file");
    fs::create_dir(&file)?;
    let file = Mounted::bind(&volume.join("conf"), file.join("0"))?;
    pod.container("file").mount(&file.path, "/conf").start()?.prints("cat /conf", "text\n")
}

fn paths(t: &Test<'_>) -> Outcome {
    let container = alone(t, &[("scratch_paths", "/var/lib/docker,/var/lib/containers")], &[])?;
    container.sh(&format!("set -- /var/lib/docker; {LAYERS}"))?;
    let seen = container
        .sh("stat -f -c %T /var/lib/docker /var/lib/containers; ls /var/lib/docker | wc -l")?;
    ensure!(seen == "ext2/ext3\next2/ext3\n0\n", "{seen}");
    ensure!(disk_of(&container).exists(), "{} is not there", disk_of(&container).display());
    let devices = container.inspect()?["devices"].to_string();
    ensure!(devices.contains("virtio-blk scratch, 512MiB"), "{devices}");
    Ok(())
}

fn filesystems(t: &Test<'_>) -> Outcome {
    for name in ["ext4", "xfs", "btrfs"] {
        let annotations = [("scratch_filesystem", name), ("scratch_paths", "/data")];
        let container = alone(t, &annotations, &[])?;
        container.sh("echo content > /data/file; sync; cat /data/file")?;
        let mounts = container.sh("grep ' /data ' /proc/mounts")?;
        ensure!(mounts.contains(&format!(" {name} ")), "{mounts}");
        container.sh(&format!("set -- /data; {LAYERS}"))?;
        container.remove();
    }
    Ok(())
}

fn held(disk: &Path) -> Outcome<u64> {
    Ok(fs::metadata(disk)?.blocks() * 512)
}

fn full(t: &Test<'_>) -> Outcome {
    let container = alone(t, &[("scratch_paths", "/data"), ("scratch_size", "64MiB")], &[])?;
    let disk = disk_of(&container);
    let before = held(&disk)?;
    let said = container.sh("dd if=/dev/zero of=/data/file bs=1M count=100 2>&1 || true")?;
    ensure!(said.contains("No space left on device"), "{said}");
    container.sh("sync")?;
    let filled = held(&disk)?;
    ensure!(filled > before + (40 << 20), "the disk takes {filled} bytes, {before} before");
    ensure!(filled <= 64 << 20, "the disk takes {filled} bytes of 64 MiB");
    container.sh("rm /data/file; sync")?;
    let limit = Instant::now() + t.deadline(30);
    while held(&disk)? > before + (8 << 20) {
        ensure!(Instant::now() < limit, "the disk still takes {} bytes", held(&disk)?);
        container.sh("sync; sleep 0.2")?;
    }
    container.sh("echo again > /data/file").map(drop)
}

fn upper(t: &Test<'_>) -> Outcome {
    let container = alone(t, &[("rootfs_upper", "guest")], &[])?;
    let seen = container.sh(
        "echo new > /new; echo user2:x:5:5::/:/bin/sh >> /etc/passwd; rm /etc/group; mv /home /homes
         mkdir /home; touch /home/file; ls /homes /home; grep -c : /etc/passwd
         awk '$2 == \"/\" { print $3 }' /proc/mounts",
    )?;
    ensure!(seen == "/home:\nfile\n\n/homes:\nuser\n3\noverlay\n", "{seen}");
    // What the snapshotter has for it stays empty.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&container.id), "the host has a mount of it");
    let root = container.node().dir().join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    for snapshot in fs::read_dir(&root)? {
        let file = snapshot?.path().join("fs/new");
        ensure!(!file.exists(), "{} is on the host", file.display());
    }
    container.remove();
    // A container whose image is read-only needs no upper directory.
    let flags = ["--read-only", "--annotation", "io.bulkhead.rootfs_upper=guest"];
    let said = t.container().run(&flags, &["touch", "/new"])?.err();
    ensure!(said.contains("Read-only file system"), "{said}");
    Ok(())
}

/// The host's free space where the disks are, in bytes.
fn free(t: &Test<'_>) -> Outcome<u64> {
    let status = nix::sys::statvfs::statvfs(t.bed.containerd.dir())?;
    Ok(status.blocks_available() * status.fragment_size())
}

fn promised(t: &Test<'_>) -> Outcome {
    // Two of these do not fit.
    let size = format!("{}MiB", (free(t)? / 100 * 60) >> 20);
    let annotations = [("scratch_paths", "/data"), ("scratch_size", &*size)];
    let first = alone(t, &annotations, &[])?;
    let size_flag = format!("io.bulkhead.scratch_size={size}");
    let flags = ["--annotation", "io.bulkhead.scratch_paths=/data", "--annotation", &size_flag];
    let second = t.container();
    let said = second.run(&flags, &["true"])?.refused(&["a scratch disk of "])?.err();
    for part in [" does not fit: ", "promised to other sandboxes", "scratch_size or scratch_dir"] {
        ensure!(said.contains(part), "{said}");
    }
    first.remove();
    second.remove();
    t.container().run(&flags, &["true"])?.ok().map(drop)
}

fn refused(t: &Test<'_>) -> Outcome {
    for (key, value, part) in [
        (
            "scratch_size",
            "1MiB",
            "scratch_size = 1MiB is not allowed: 0 for none, or a multiple of 1MiB",
        ),
        ("scratch_size", "much", "units KiB, MiB, GiB"),
        ("scratch_filesystem", "vfat", "expected one of `ext4`, `xfs`, `btrfs`"),
        ("scratch_paths", "var", "absolute paths of directories"),
        ("scratch_dir", "/tmp", "annotations: their names"),
        ("rootfs_upper", "nowhere", "expected `host` or `guest`"),
    ] {
        let annotation = format!("io.bulkhead.{key}={value}");
        let container = t.container();
        container.run(&["--annotation", &annotation], &["true"])?.refused(&[part])?;
    }
    Ok(())
}
