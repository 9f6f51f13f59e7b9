//! Another process in a running container.

use std::fs;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::syscall::syscall::SyscallType;

use super::create::{announce, first_process};
use super::program::{Late, Program};
use super::reporter::Reporter;
use super::{EXECS, PROCESS, SPEC, bundle, keyring, limits, spec, stdio};
use crate::cgroup::{CONTAINERS, ROOT};
use crate::container::STATES;
use crate::error::{Error, Result};

/// The process that libcontainer reads, in the directory of an exec.
const ADAPTED: &str = "process.json";

/// libcontainer's state for one exec, in its directory: libcontainer leaves sockets there that it
/// never removes.
const STATE: &str = "state";

/// Runs a process in the container, and reports it.
///
/// # Errors
/// What is wrong with the process's spec, or what the kernel refused.
pub fn run(container: &str, exec: &str, console: Option<&Path>, reporter: &Reporter) -> Result<()> {
    let bundle = bundle(container);
    let directory = bundle.join(EXECS).join(exec);
    let mut process: Process = spec::read("the process's spec", &directory.join(PROCESS))?;
    spec::adapt_process(&mut process, console.is_some());
    let first: Spec = spec::read("config.json", &bundle.join(SPEC))?;
    let late = complete(&mut process, &first);
    let adapted = directory.join(ADAPTED);
    spec::write(&process, &adapted)?;
    stdio::give_to(process.user().uid())?;
    keyring::join(container)?;

    let states = directory.join(STATE);
    let init = running_state(container, &states)?;
    let pid = ContainerBuilder::new(container.to_owned(), SyscallType::default())
        .with_root_path(states)?
        .with_console_socket(console)
        .with_executor(Program::new(reporter, late))
        .as_tenant()
        .with_process(Some(adapted))
        .with_sub_cgroup(sub_cgroup(container, init))
        .with_detach(true)
        .build()?;
    announce(pid.as_raw(), reporter);
    Ok(())
}

/// Takes over from the container what runc takes over where the process says nothing, and keeps back
/// what libcontainer forgets or does too early.
fn complete(process: &mut Process, first: &Spec) -> Late {
    if let Some(first) = first.process() {
        process.set_oom_score_adj(process.oom_score_adj().or(first.oom_score_adj()));
        process.set_capabilities(or(process.capabilities(), first.capabilities()));
        process.set_scheduler(or(process.scheduler(), first.scheduler()));
        process.set_io_priority(or(process.io_priority(), first.io_priority()));
        let mut user = process.user().clone();
        user.set_umask(user.umask().or(first.user().umask()));
        process.set_user(user);
        let rlimits = process.rlimits().clone().filter(|own| !own.is_empty());
        process.set_rlimits(or(&rlimits, first.rlimits()));
    }
    process.set_capabilities(Some(spec::complete_capabilities(process.capabilities())));
    let rlimits = process.rlimits().clone().unwrap_or_default();
    let (early, rlimits): (Vec<_>, Vec<_>) = rlimits.into_iter().partition(limits::is_harmless);
    process.set_rlimits(Some(early));

    let mut late = Late { rlimits, ..Late::default() };
    let seccomp = first.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    late.take_seccomp(seccomp, process);
    late
}

fn or<T: Clone>(own: &Option<T>, first: &Option<T>) -> Option<T> {
    own.clone().or_else(|| first.clone())
}

/// A record of the container in which libcontainer sees it run: the agent starts containers without
/// telling libcontainer. Returns the container's first process.
fn running_state(container: &str, states: &Path) -> Result<i32> {
    let mut state = Container::load(Path::new(STATES).join(container))?;
    let init = first_process(&state)?;
    state.root = states.join(container);
    fs::create_dir_all(&state.root)
        .map_err(|error| Error::io("cannot make the exec's directory", error))?;
    state.set_status(ContainerStatus::Running).save()?;
    Ok(init)
}

/// The cgroup that the process joins, below the container's: where the container has made cgroups of
/// its own (docker in it, or systemd), its own one takes no processes any more, and the first
/// process has moved on.
fn sub_cgroup(container: &str, init: i32) -> Option<String> {
    let own: PathBuf = [ROOT, CONTAINERS, container].iter().collect();
    let handed_on = fs::read_to_string(own.join("cgroup.subtree_control")).ok()?;
    if handed_on.trim().is_empty() {
        return None;
    }
    let membership = fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?;
    below(&membership, &Path::new("/").join(CONTAINERS).join(container))
}

/// The part of a process's cgroup (v2) that is below `own`.
fn below(membership: &str, own: &Path) -> Option<String> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
    let rest = Path::new(path).strip_prefix(own).ok()?.to_str()?;
    (!rest.is_empty()).then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::LinuxCapabilities;

    use super::*;

    #[test]
    fn an_exec_follows_the_first_process_into_its_cgroup() {
        let own = Path::new("/containers/c");
        assert_eq!(below("0::/containers/c/init.scope\n", own).as_deref(), Some("init.scope"));
        assert_eq!(below("0::/containers/c\n", own), None);
        assert_eq!(below("0::/containers/cc/x\n", own), None);
        assert_eq!(below("1:cpu:/containers/c/x\n", own), None);
    }

    #[test]
    fn an_exec_takes_over_what_it_does_not_say() {
        let first: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0,"umask":63},"args":["a"],"cwd":"/",
                "oomScoreAdj":7,"scheduler":{"policy":"SCHED_BATCH"},
                "ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":0},"capabilities":{"bounding":["CAP_KILL"]},
                "rlimits":[{"type":"RLIMIT_NOFILE","soft":6,"hard":6},
                    {"type":"RLIMIT_NICE","soft":1,"hard":1}]},
                "linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}}}"#,
        )
        .unwrap();
        let mut process: Process =
            serde_json::from_str(r#"{"user":{"uid":0,"gid":0},"args":["b"],"cwd":"/"}"#).unwrap();
        let late = complete(&mut process, &first);
        assert_eq!(process.oom_score_adj(), Some(7));
        assert_eq!(process.user().umask(), Some(0o77));
        assert_eq!(process.scheduler(), first.process().as_ref().unwrap().scheduler());
        assert!(process.io_priority().is_some());
        assert_eq!(process.rlimits().as_ref().unwrap().len(), 1);
        assert_eq!(late.rlimits.len(), 1);
        assert!(late.seccomp.is_some());
        let bounding = |set: &Option<LinuxCapabilities>| {
            set.as_ref().unwrap().bounding().as_ref().unwrap().len()
        };
        assert_eq!(bounding(process.capabilities()), 3);
        assert_eq!(bounding(&late.capabilities), 1);

        process.set_no_new_privileges(Some(true)).set_capabilities(late.capabilities);
        let late = complete(&mut process, &first);
        assert!(late.capabilities.is_none());
        assert_eq!(bounding(process.capabilities()), 1);
    }
}
