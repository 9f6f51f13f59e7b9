//! Volumes, as the kubelet prepares them on the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use k8s_cri::v1::MountPropagation;

use crate::bed::Test;
use crate::cri::container::Container;
use crate::cri::volume::{AtomicVolume, Mounted};
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "pods.host_path",
        "hostPath: a directory and a file, written on both sides",
        host_path,
    ),
    Case::any(
        "pods.host_path_made",
        "a hostPath that is not there becomes a directory",
        host_path_made,
    ),
    Case::any("pods.host_path_link", "a hostPath that is a link leads to its end", host_path_link),
    Case::any(
        "pods.empty_dir",
        "an emptyDir is the pod's: each container writes, and it outlives them",
        empty_dir,
    ),
    Case::any(
        "pods.empty_dir_memory",
        "an emptyDir in memory is full at its sizeLimit",
        empty_dir_memory,
    ),
    Case::any(
        "pods.config_map",
        "a configMap's update comes within two seconds, whole",
        config_map,
    ),
    Case::any(
        "pods.config_map_events",
        "a program that watches a configMap hears of its update",
        config_map_events,
    ),
    Case::any("pods.secret", "a secret: files in memory, with the mode that was asked for", secret),
    Case::any("pods.sub_path", "subPath: one file and one directory of a volume", sub_path),
    Case::any("pods.nested", "volumes inside of volumes, in whatever order they are named", nested),
    Case::any(
        "pods.propagation",
        "mountPropagation: HostToContainer sees new mounts, None does not",
        propagation,
    ),
    Case::any("pods.read_only", "readOnly: what is mounted below stays writable", read_only),
];

fn host_path(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let dir = t.directory()?;
    let file = dir.join("file");
    fs::write(&file, "of the host\n")?;
    let app = pod.container("app").mount(&dir, "/dir").mount(&file, "/etc/single").start()?;
    app.prints("cat /dir/file /etc/single", "of the host\nof the host\n")?;
    app.sh("echo of the pod > /dir/new; echo appended >> /etc/single")?;
    ensure!(fs::read_to_string(dir.join("new"))? == "of the pod\n", "the host sees another file");
    ensure!(fs::read_to_string(&file)? == "of the host\nappended\n", "the host sees another text");
    fs::write(dir.join("later"), "later\n")?;
    app.prints("cat /dir/later", "later\n")
}

fn host_path_made(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let dir = t.directory()?.join("not/there");
    pod.container("app").mount(&dir, "/dir").start()?.sh("touch /dir/file")?;
    ensure!(dir.join("file").is_file(), "{} has no file", dir.display());
    Ok(())
}

fn host_path_link(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let dir = t.directory()?;
    fs::create_dir(dir.join("end"))?;
    symlink("end", dir.join("link"))?;
    pod.container("app").mount(&dir.join("link"), "/dir").start()?.sh("touch /dir/file")?;
    ensure!(dir.join("end/file").is_file(), "the file is elsewhere");
    Ok(())
}

fn empty_dir(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let dir = t.directory()?;
    let script = "echo first > /cache/file";
    pod.container("init").mount(&dir, "/cache").script(script).run()?.exits(0)?;
    let one = pod.container("one").mount(&dir, "/data").start()?;
    let two = pod.container("two").mount(&dir, "/cache").start()?;
    one.sh("echo second >> /data/file; ln -s file /data/link; mkfifo /data/fifo")?;
    two.prints("cat /cache/link; test -p /cache/fifo && echo fifo", "first\nsecond\nfifo\n")
}

fn empty_dir_memory(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let memory = Mounted::memory(t.directory()?.join("memory"), 1 << 20)?;
    let shm = Mounted::memory(t.directory()?.join("shm"), 2 << 20)?;
    let app =
        pod.container("app").mount(&memory.path, "/memory").mount(&shm.path, "/dev/shm").start()?;
    for (dir, size) in [("/memory", 1 << 20), ("/dev/shm", 2 << 20)] {
        let said = app.sh(&format!("dd if=/dev/zero of={dir}/file bs=64k count=64 2>&1; true"))?;
        ensure!(said.contains("No space left on device"), "{dir}: dd says {said:?}");
        app.prints(&format!("stat -c %s {dir}/file; rm {dir}/file"), &format!("{size}\n"))?;
    }
    pod.remove()?;
    Ok(())
}

/// Waits in a container, up to two seconds, until a script succeeds.
fn within_two_seconds(t: &Test<'_>, container: &Container<'_>, script: &str) -> Outcome {
    let tries = t.deadline(2).as_millis() / 100;
    let script = format!("for i in $(seq {tries}); do {script} && exit 0; sleep 0.1; done; exit 1");
    container.sh(&script).map(drop)
}

fn config_map(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let mut volume = AtomicVolume::new(t.directory()?);
    volume.write(&[("key", "old\n"), ("dir/other", "old\n"), ("goes", "away\n")])?;
    let app = pod
        .container("app")
        .mount_with(&volume.dir, "/config", |mount| mount.readonly = true)
        .start()?;
    app.prints("cat /config/key /config/dir/other /config/goes", "old\nold\naway\n")?;
    for version in ["new", "a longer one", "2"] {
        volume.write(&[("key", version), ("dir/other", version), ("comes", version)])?;
        within_two_seconds(t, &app, &format!("test \"$(cat /config/key)\" = '{version}'"))?;
        // One switch for all files; names come and go after it, as they do on the host.
        app.prints("cat /config/dir/other", version)?;
        within_two_seconds(t, &app, "test \"$(ls /config | tr '\\n' ' ')\" = 'comes dir key '")?;
        app.prints("cat /config/comes", version)?;
    }
    app.prints("touch /config/mine 2>&1", "touch: /config/mine: Read-only file system\n")
        .or_else(|_| app.prints("touch /config/mine 2> /dev/null || echo refused", "refused\n"))
}

/// Prints the names in /config that inotify speaks of. busybox has nothing of the kind, Debian has Perl.
const WATCH: &str = r#"
$| = 1;
my $directory = "/config";
my $fd = syscall(294, 0);                           # inotify_init1
syscall(254, $fd, $directory, 0xfce) >= 0 or die;   # inotify_add_watch: all but reading and opening
open(my $events, "<&=", $fd) or die;
print "watching\n";
while (sysread($events, my $bytes, 4096)) {
    while (length $bytes) {
        my ($mask, $size) = unpack("x4 I x4 I", $bytes);
        printf "%x %s\n", $mask, unpack("Z*", substr($bytes, 16, $size));
        substr($bytes, 0, 16 + $size) = "";
    }
}
"#;

fn config_map_events(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let mut volume = AtomicVolume::new(t.directory()?);
    volume.write(&[("key", "old\n")])?;
    let mut plan =
        pod.container("app").command(&["perl", "-e", WATCH]).env("PATH", "/usr/bin:/bin");
    let tools = ["/usr", "/lib", "/lib64"].map(|dir| (Path::new(dir), dir));
    for (host, inside) in tools.into_iter().chain([(volume.dir.as_path(), "/config")]) {
        plan = plan.mount_with(host, inside, |mount| mount.readonly = true);
    }
    let app = plan.start()?;
    app.await_log("watching")?;
    volume.write(&[("key", "new\n")])?;
    // IN_MOVED_TO
    app.await_log("80 ..data\n")?;
    app.prints("cat /config/key", "new\n")
}

fn secret(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let memory = Mounted::memory(t.directory()?.join("secret"), 1 << 20)?;
    let mut volume = AtomicVolume::new(memory.path.clone());
    volume.write(&[("token", "secret")])?;
    let file = memory.path.join("token").canonicalize()?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400))?;
    let app = pod
        .container("app")
        .mount_with(&memory.path, "/secret", |mount| mount.readonly = true)
        .start()?;
    app.prints("cat /secret/token; stat -L -c ' %a %u' /secret/token", "secret 400 0\n")?;
    volume.write(&[("token", "renewed")])?;
    within_two_seconds(t, &app, "test $(cat /secret/token) = renewed")?;
    pod.remove()?;
    Ok(())
}

fn sub_path(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let (volume, places) = (t.directory()?, t.directory()?);
    fs::create_dir(volume.join("dir"))?;
    fs::write(volume.join("dir/inner"), "inner\n")?;
    fs::write(volume.join("file"), "file\n")?;
    // The kubelet binds what it has checked to a place of its own.
    let dir = Mounted::bind(&volume.join("dir"), places.join("0"))?;
    let file = Mounted::bind(&volume.join("file"), places.join("1"))?;
    let app =
        pod.container("app").mount(&dir.path, "/dir").mount(&file.path, "/etc/file").start()?;
    app.prints("cat /dir/inner /etc/file; ls /dir", "inner\nfile\ninner\n")?;
    app.sh("echo more >> /etc/file")?;
    ensure!(fs::read_to_string(volume.join("file"))? == "file\nmore\n", "the volume's file is old");
    pod.remove()?;
    Ok(())
}

fn nested(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let (outer, inner) = (t.directory()?, t.directory()?);
    fs::write(outer.join("name"), "outer\n")?;
    fs::write(inner.join("name"), "inner\n")?;
    let app = pod.container("app").mount(&inner, "/outer/a/b").mount(&outer, "/outer").start()?;
    app.prints("cat /outer/name /outer/a/b/name", "outer\ninner\n")
}

fn propagation(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let shared = Mounted::shared(t.directory()?)?;
    let before = Mounted::memory(shared.path.join("before"), 1 << 20)?;
    fs::write(before.path.join("file"), "before\n")?;
    let none = pod.container("none").mount(&shared.path, "/volume").start()?;
    let host = pod
        .container("host")
        .mount_with(&shared.path, "/volume", |mount| {
            mount.propagation = MountPropagation::PropagationHostToContainer.into();
        })
        .start()?;
    let after = Mounted::memory(shared.path.join("after"), 1 << 20)?;
    fs::write(after.path.join("file"), "after\n")?;
    none.prints("cat /volume/before/file; ls /volume/after", "before\n")?;
    host.prints("cat /volume/before/file", "before\n")?;
    within_two_seconds(t, &host, "test \"$(cat /volume/after/file)\" = after")?;
    drop(after);
    within_two_seconds(t, &host, "test ! -e /volume/after/file")?;
    pod.remove()?;
    Ok(())
}

fn read_only(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let dir = t.directory()?;
    let below = Mounted::memory(dir.join("below"), 1 << 20)?;
    let app = pod.container("app").mount_with(&dir, "/volume", |mount| mount.readonly = true);
    app.start()?.prints(
        "touch /volume/file 2>&1; touch /volume/below/file && echo written",
        "touch: /volume/file: Read-only file system\nwritten\n",
    )?;
    pod.remove()?;
    drop(below);
    Ok(())
}
