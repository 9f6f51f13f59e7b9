//! The cgroup v2 tree: a leaf for the agent, and one branch that holds the containers.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use libcgroups::v2::devices::bpf::prog;
use libcgroups::v2::devices::program::Program;
use libcontainer::oci_spec::runtime::{LinuxDeviceCgroupBuilder, LinuxDeviceType};

use crate::cgroup;
use crate::error::{Error, Result};
use crate::jit;
use crate::oci::SERIAL;

/// The agent's own cgroup. A cgroup with processes can't hand controllers to children, so the agent
/// must not stay in the root of its tree.
const AGENT: &str = "agent";

/// How many threads the guest can have, and how many of them are not for containers.
const THREADS: &str = "/proc/sys/kernel/threads-max";
const OWN_THREADS: u64 = 256;

/// The console (`Documentation/admin-guide/devices.txt`).
const CONSOLE: (i64, i64) = (5, 1);

/// Makes both branches, moves the agent into its own, and hands every controller of the kernel to
/// the containers.
///
/// # Errors
/// The file of the cgroup tree that can't be written, and why.
pub fn prepare() -> Result<()> {
    let root = Path::new(cgroup::ROOT);
    let agent = root.join(AGENT);
    make(&agent)?;
    write(&agent.join("cgroup.procs"), "1")?;

    let all = root.join("cgroup.controllers");
    let controllers = fs::read_to_string(&all).map_err(|error| Error::io(all.display(), error))?;
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
    write(&containers.join("cgroup.subtree_control"), &controllers.join(" "))?;
    keep_console(&containers)
}

/// No container has the guest's console, which is the host's to read, by either of its numbers: libcgroups allows the
/// first to each, whatever its rules.
fn keep_console(containers: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::io(format_args!("{}: cannot keep the console", containers.display()), error)
    };
    let rule = |(major, minor)| {
        let rule = LinuxDeviceCgroupBuilder::default().allow(false).typ(LinuxDeviceType::C);
        rule.major(major).minor(minor).access("rw").build().map_err(|error| failed(&error))
    };
    let rules = [CONSOLE, SERIAL].into_iter().map(rule).collect::<Result<Vec<_>>>()?;
    let program = Program::from_rules(&rules, true).map_err(|error| failed(&error))?;
    let cgroup = File::open(containers).map_err(|error| failed(&error))?;
    jit::off(|| {
        let program = prog::load("GPL", program.bytecodes())?;
        let attached = prog::attach(program, cgroup.as_raw_fd());
        // The cgroup holds it from now on.
        let _ = nix::unistd::close(program);
        attached
    })
    .map_err(|error| failed(&error))
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(|error| Error::io(path.display(), error))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| Error::io(path.display(), error))
}
