//! A layer of Debian's programs: those of this machine, with the libraries that they load.

use std::collections::BTreeSet;
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
    "curl",
    "ethtool",
    "ip",
    "ip6tables",
    "iperf3",
    "iptables",
    "nc.openbsd",
    "nft",
    "ping",
    "tc",
    "webfsd",
    "wg",
    "wrk",
];

/// Debian's shell.
const SHELL: &str = "/usr/bin/dash";

/// Where Debian has programs.
const DIRECTORIES: &[&str] = &["/usr/sbin", "/usr/bin"];

/// What iptables loads by itself.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// The layer.
///
/// # Errors
/// A program is not installed.
pub(super) fn layer() -> Outcome<Vec<u8>> {
    let mut files = BTreeSet::new();
    for name in NAMES {
        let paths = DIRECTORIES.iter().map(|dir| Path::new(dir).join(name));
        let path = paths.into_iter().find(|path| path.exists()).ok_or_else(|| {
            Failure::new(format!("{name} is not installed: was `make setup` run?"))
        })?;
        files.extend(libraries(&path)?);
        files.insert(path);
    }
    for entry in fs::read_dir(EXTENSIONS).context(EXTENSIONS)? {
        files.insert(entry?.path());
    }
    let mut tar = Builder::new(Vec::new());
    // busybox's shell takes its own programs for all that have their names.
    put_file(&mut tar, "bin/sh", 0o755, &fs::read(SHELL).context(SHELL)?)?;
    for path in files {
        let inside = path.strip_prefix("/")?.to_string_lossy().into_owned();
        put_file(&mut tar, &inside, 0o755, &fs::read(&path).context(path.display())?)?;
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
