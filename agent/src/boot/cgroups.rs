//! The cgroup v2 tree: a leaf for the agent, and one branch that holds the containers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup;

/// The agent's own cgroup. A cgroup with processes can't hand controllers to children, so the agent
/// must not stay in the root of its tree.
const AGENT: &str = "agent";

/// How many threads the guest can have, and how many of them are not for containers.
const THREADS: &str = "/proc/sys/kernel/threads-max";
const OWN_THREADS: u64 = 256;

/// The cgroup tree could not be prepared.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct Error {
    path: PathBuf,
    source: std::io::Error,
}

/// Makes both branches, moves the agent into its own, and hands every controller of the kernel to
/// the containers.
///
/// # Errors
/// The file of the cgroup tree that can't be written, and why.
pub fn prepare() -> Result<(), Error> {
    let root = Path::new(cgroup::ROOT);
    let agent = root.join(AGENT);
    make(&agent)?;
    write(&agent.join("cgroup.procs"), "1")?;

    let all = root.join("cgroup.controllers");
    let controllers =
        fs::read_to_string(&all).map_err(|source| Error { path: all.clone(), source })?;
    let controllers: Vec<String> =
        controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    let containers = root.join(cgroup::CONTAINERS);
    write(&root.join("cgroup.subtree_control"), &controllers.join(" "))?;
    make(&containers)?;
    // The agent is PID 1 also for containers that take all threads that there can be.
    let threads = fs::read_to_string(THREADS).ok().and_then(|all| all.trim().parse::<u64>().ok());
    if let Some(all) = threads {
        write(&containers.join("pids.max"), &all.saturating_sub(OWN_THREADS).to_string())?;
    }
    write(&containers.join("cgroup.subtree_control"), &controllers.join(" "))
}

fn make(path: &Path) -> Result<(), Error> {
    fs::create_dir(path).map_err(|source| Error { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error { path: path.to_owned(), source })
}
