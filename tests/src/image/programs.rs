//! A layer of Debian's programs: those of this machine, with the libraries that they load.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tar::Builder;

use super::put_file;
use crate::command::{self, Input};
use crate::failure::{Context, Failure, Outcome};

/// The programs.
const NAMES: &[&str] = &[
    "cryptsetup",
    "curl",
    "dmsetup",
    "ethtool",
    "genisoimage",
    "git",
    "ip",
    "ip6tables",
    "iperf3",
    "ipset",
    "iptables",
    "ipvsadm",
    "mkfs.vfat",
    "mksquashfs",
    "nc.openbsd",
    "nft",
    "ping",
    "sqlite3",
    "tar",
    "tc",
    "webfsd",
    "wg",
    "wrk",
];

/// Debian's shell.
const SHELL: &str = "/usr/bin/dash";

/// Where Debian has programs, on this machine or below a directory of unpacked packages.
const DIRECTORIES: &[&str] = &["usr/sbin", "usr/bin"];

/// Those that are unpacked, below the cache.
const UNPACKED: &str = "webfs";

/// What iptables loads by itself.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// The layer.
///
/// # Errors
/// A program is not there.
pub(super) fn layer(cache: &Path) -> Outcome<Vec<u8>> {
    let roots = [PathBuf::from("/"), cache.join(UNPACKED)];
    let mut files = BTreeMap::new();
    for name in NAMES {
        let places = DIRECTORIES.iter().map(|dir| Path::new(dir).join(name));
        let mut places = places
            .flat_map(|inside| roots.each_ref().map(|root| (root.join(&inside), inside.clone())));
        let (path, inside) = places
            .find(|(path, _)| path.exists())
            .ok_or_else(|| Failure::new(format!("{name} is not there: was `make setup` run?")))?;
        for library in libraries(&path)? {
            files.insert(library.strip_prefix("/")?.to_owned(), library);
        }
        files.insert(inside, path);
    }
    for entry in fs::read_dir(EXTENSIONS).context(EXTENSIONS)? {
        let path = entry?.path();
        files.insert(path.strip_prefix("/")?.to_owned(), path);
    }
    // git runs itself by these names.
    for name in ["git-upload-pack", "git-index-pack"] {
        files.insert(Path::new("usr/lib/git-core").join(name), PathBuf::from("/usr/bin/git"));
    }
    let mut tar = Builder::new(Vec::new());
    // busybox's shell takes its own programs for all that have their names.
    put_file(&mut tar, "bin/sh", 0o755, &fs::read(SHELL).context(SHELL)?)?;
    for (inside, path) in files {
        put_file(
            &mut tar,
            &inside.to_string_lossy(),
            0o755,
            &fs::read(&path).context(path.display())?,
        )?;
    }
    Ok(tar.into_inner()?)
}

/// The libraries that a program loads, and what loads them, as ldd(1) tells.
fn libraries(program: &Path) -> Outcome<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    let list = command::run(ldd, Input::Null, Duration::from_secs(10))?.ok()?.out();
    let words =
        list.lines().filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}
