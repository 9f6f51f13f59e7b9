//! A guest that is root and wants more than its own files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::bed::{Container, Test};
use crate::ensure;
use crate::failure::{Context, Outcome};
use crate::leftovers::{self, Trace};
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "storage.attack_links",
        "links, nodes and handles lead to nothing of the host",
        links,
    ),
    Case::bulkhead(
        "storage.attack_read_only",
        "what is read-only stays so, whatever the guest remounts",
        read_only,
    ),
    Case::bulkhead("storage.daemon", "the file server sees the share and nothing else", daemon),
];

/// What nobody in a guest may read.
const SECRET: &str = "a secret of the host";

/// A container with all rights in its guest, a directory that it may write to and one that it may not.
fn container<'t>(t: &Test<'t>) -> Outcome<(Container<'t>, PathBuf, PathBuf)> {
    let (container, dir) = (t.container(), t.directory()?);
    let (own, other) = (dir.join("own"), dir.join("other"));
    fs::create_dir(&own)?;
    fs::create_dir(&other)?;
    fs::write(other.join("file"), "kept")?;
    fs::write(dir.join("secret"), SECRET)?;
    let probe = t.bed.options.target.join("guest/bulkhead-probe");
    let mounts = [(&own, "/own", "rw"), (&other, "/other", "ro"), (&probe, "/probe", "ro")];
    let mounts = mounts.map(|(source, inside, mode)| {
        format!("type=bind,src={},dst={inside},options=rbind:{mode}", source.display())
    });
    let mut flags = vec!["--null-io", "--privileged"];
    flags.extend(mounts.iter().flat_map(|mount| ["--mount", mount.as_str()]));
    container.start_with(&flags, &["sleep", "100000"])?;
    Ok((container, own, other))
}

/// What there is below a directory, as the host sees it.
fn listing(directory: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).context(directory.display())? {
        found.push(entry?.path());
    }
    found.sort();
    Ok(found)
}

fn links(t: &Test<'_>) -> Outcome {
    let (container, own, _) = container(t)?;
    let secret = own.with_file_name("secret");
    let seen = container.sh(&format!(
        "cd /own; ln -s ../secret up; ln -s {secret} absolute; ln -s /proc/self/root{secret} magic
         ln -s /proc/1/root{secret} first
         for name in up absolute magic first; do cat $name 2>/dev/null || echo none; done
         ln /other/file /own/hard 2>/dev/null || echo none",
        secret = secret.display()
    ))?;
    ensure!(!seen.contains(SECRET), "{seen}");
    ensure!(seen.matches("none").count() == 5, "{seen}");
    // The host's disks, by their numbers.
    let device = fs::metadata(t.bed.containerd.dir())?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let seen = container.sh(&format!(
        "mknod /own/disk b {major} {minor}; dd if=/own/disk count=1 2>&1 | wc -c
         mknod /own/memory c 1 1; (dd if=/own/memory bs=1k count=1 skip=1M 2>&1 || true) | tail -n 1"
    ))?;
    ensure!(!seen.contains(SECRET), "{seen}");
    container.sh("/probe handles /own").map(drop)
}

fn read_only(t: &Test<'_>) -> Outcome {
    let (container, _, other) = container(t)?;
    for attempt in [
        "echo changed > /other/file",
        "mount -o remount,rw,bind /other; echo changed > /other/file",
        "rm /other/file",
        "touch /other/new",
        "chmod 777 /other/file",
        "chown 1 /other/file",
        "mv /other/file /other/moved",
    ] {
        let done =
            container.exec(&format!("try{}", attempt.len()), &[], &["sh", "-ec", attempt])?;
        ensure!(done.code() != 0, "`{attempt}` worked");
    }
    ensure!(fs::read_to_string(other.join("file"))? == "kept", "the host's file has changed");
    ensure!(listing(&other)?.len() == 1, "{:?}", listing(&other)?);
    Ok(())
}

fn daemon(t: &Test<'_>) -> Outcome {
    let (container, ..) = container(t)?;
    let daemons: Vec<i32> = leftovers::processes(&container.id)
        .into_iter()
        .filter_map(|trace| match trace {
            Trace::Process(pid, line) if line.contains("--shared-dir") => Some(pid),
            _ => None,
        })
        .collect();
    // The one that serves is the child of the one that waits for it.
    let serving = daemons.iter().max().copied().unwrap_or_default();
    let proc = PathBuf::from(format!("/proc/{serving}"));
    let root = listing(&proc.join("root"))?;
    let names: Vec<_> = root.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    ensure!(names.contains(&container.id.as_str()), "the daemon's root has {names:?}");
    ensure!(names.iter().all(|name| [".binds", &container.id].contains(name)), "{names:?}");
    let status = fs::read_to_string(proc.join("status"))?;
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim().to_owned()
    };
    ensure!(value("Seccomp:") == "2", "{status}");
    let capabilities = u64::from_str_radix(&value("CapEff:"), 16)?;
    // To open files by their numbers, administer, trace, load modules, use raw devices and networks.
    for (name, number) in [
        ("DAC_READ_SEARCH", 2),
        ("NET_ADMIN", 12),
        ("NET_RAW", 13),
        ("SYS_MODULE", 16),
        ("SYS_RAWIO", 17),
        ("SYS_PTRACE", 19),
        ("SYS_ADMIN", 21),
    ] {
        ensure!(capabilities & 1 << number == 0, "the daemon has CAP_{name}");
    }
    for namespace in ["mnt", "pid", "net"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
        ensure!(
            of(&serving.to_string())? != of("self")?,
            "the daemon is in the host's {namespace} namespace"
        );
    }
    Ok(())
}
