//! From the kernel's handover to the control connection.

mod cgroups;
mod mounts;

use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tokio::runtime::Builder;

use crate::error::{Error, Result};
use crate::setup::set_sysctl;
use crate::stamps::Stamps;
use crate::{kmsg, network, server};

/// Descriptors that the agent, and a container whose spec does not say, may have open; what
/// container engines give on a plain host.
const MAX_OPEN_FILES: u64 = 1_048_576;

/// Kernel parameters as an init system sets them: who may follow and make links in directories that all may write to, and
/// how much there may be of what the kernel keeps small by itself, and counts for containers and agent as one user's.
const SYSCTLS: [(&str, &str); 8] = [
    ("fs.epoll.max_user_watches", "2147483647"),
    ("fs.protected_hardlinks", "1"),
    ("fs.protected_symlinks", "1"),
    ("fs.nr_open", "1073741816"),
    ("fs.inotify.max_user_instances", "8192"),
    ("fs.inotify.max_user_watches", "524288"),
    ("kernel.pid_max", "4194304"),
    ("vm.max_map_count", "262144"),
];

/// Runs the guest. It returns only when the guest can't go on; the kernel then panics, as it does
/// whenever PID 1 ends, and the VMM sees that.
pub fn main() -> ExitCode {
    let stamps = Arc::new(Stamps::default());
    stamps.mark("kernel");
    match run(&stamps) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            eprintln!("bulkhead-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(stamps: &Arc<Stamps>) -> Result<()> {
    let cannot = |what| move |error| Error::io(format_args!("cannot {what}"), error);
    mounts::prepare().map_err(cannot("set up the guest's file systems"))?;
    kmsg::init();
    cgroups::prepare().map_err(cannot("set up the guest's cgroups"))?;
    if let Err(error) = network::loopback_up() {
        log::warn!("cannot bring the loopback interface up: {error}");
    }
    raise_limits();
    for (name, value) in SYSCTLS {
        if let Err(error) = set_sysctl(name, value) {
            log::warn!("{error}");
        }
    }
    stamps.mark("mounts");

    let runtime = Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|error| Error::io("cannot start the event loop", error))?;
    runtime.block_on(server::run(Arc::clone(stamps))).map_err(cannot("serve the host"))
}

/// The limits that containers inherit where their spec says nothing: those that a container engine
/// has when an init system starts it.
fn raise_limits() {
    for (resource, limit) in
        [(Resource::RLIMIT_NOFILE, MAX_OPEN_FILES), (Resource::RLIMIT_NPROC, RLIM_INFINITY)]
    {
        if let Err(error) = setrlimit(resource, limit, limit) {
            log::warn!("cannot raise {resource:?} to {limit}: {error}");
        }
    }
}
