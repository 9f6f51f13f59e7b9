//! What a pod has that comes with a VM of its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;

use k8s_cri::v1::{ContainerState, NamespaceMode, NamespaceOption};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tonic::Code;

use crate::bed::Test;
use crate::cri::pod::Pod;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::options::Sandboxer;
use crate::product::process;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "pods.one_vm",
        "a pod has one VM, which is no other pod's and not the host",
        one_vm,
    ),
    Case::bulkhead(
        "pods.sandbox_is_free",
        "the sandbox container has no image mounted, and no program of it",
        sandbox_is_free,
    ),
    Case::bulkhead(
        "pods.vm_lost",
        "a pod whose VM dies is not ready, and its containers have ended",
        vm_lost,
    ),
    Case::bulkhead(
        "pods.host_namespaces",
        "hostNetwork, hostPID and hostIPC are refused, and why",
        host_namespaces,
    ),
    Case::bulkhead("pods.socket", "a socket as hostPath is refused, and why", socket),
    Case::bulkhead(
        "pods.annotations",
        "an annotation out of range is refused with what is allowed",
        annotations,
    ),
];

/// A number that the kernel chooses when it boots.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

fn one_vm(t: &Test<'_>) -> Outcome {
    let (pod, other) = (t.pod().run()?, t.pod().run()?);
    let boot = |pod: &Pod<'_>, name: &str| pod.container(name).start()?.sh(&format!("cat {BOOT}"));
    let one = boot(&pod, "one")?;
    ensure!(one == boot(&pod, "two")?, "two containers of a pod, two kernels");
    ensure!(one != boot(&other, "one")?, "two pods, one kernel");
    ensure!(one != fs::read_to_string(BOOT)?, "the pod runs on the host's kernel");
    Ok(())
}

/// What `bulkhead inspect` says of a pod's sandbox.
fn inspect(pod: &Pod<'_>) -> Outcome<Value> {
    let text = pod.node.containerd.bulkhead(&["inspect", &pod.id, "--json"])?.ok()?.out();
    Ok(serde_json::from_str(&text)?)
}

/// The overlays that a process sees and the host does not: file systems of containers.
fn overlays(pid: i32) -> Outcome<usize> {
    let table = |who: &str| -> Outcome<BTreeSet<String>> {
        let text = fs::read_to_string(format!("/proc/{who}/mountinfo"))?;
        let mounts = text.lines().filter(|line| line.contains(" - overlay "));
        Ok(mounts.filter_map(|line| line.split(' ').nth(2)).map(str::to_owned).collect())
    };
    Ok(table(&pid.to_string())?.difference(&table("self")?).count())
}

fn sandbox_is_free(t: &Test<'_>) -> Outcome {
    let pod = t.pod().namespaces(|all| all.pid = NamespaceMode::Pod.into()).run()?;
    let shim = process(&inspect(&pod)?, "shim")?;
    ensure!(overlays(shim)? == 0, "{} overlays are mounted for the sandbox alone", overlays(shim)?);
    let app = pod.container("app").command(&["sleep", "111111"]).start()?;
    ensure!(overlays(shim)? == 1, "{} overlays are mounted for one container", overlays(shim)?);
    // The pause image's program would be there: the containers see all processes of the pod.
    app.prints("ps -o args | grep '[s]leep'", "sleep 111111\n")
}

fn vm_lost(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let (one, two) = (pod.container("one").start()?, pod.container("two").start()?);
    let vmm = process(&inspect(&pod)?, &t.bed.options.hypervisor)?;
    kill(Pid::from_raw(vmm), Signal::SIGKILL)?;
    for container in [&one, &two] {
        let code = container.ended()?.code;
        // 255 is containerd's own, when the shim was gone before it could tell.
        ensure!([137, 255].contains(&code), "exit code {code}");
        ensure!(container.status()?.state() == ContainerState::ContainerExited, "still running");
    }
    pod.await_not_ready()?;
    pod.remove()?;
    Ok(())
}

fn host_namespaces(t: &Test<'_>) -> Outcome {
    type Change = fn(&mut NamespaceOption);
    let cases: [(&str, Change); 3] = [
        ("hostNetwork", |all| all.network = NamespaceMode::Node.into()),
        ("hostPID", |all| all.pid = NamespaceMode::Node.into()),
        ("hostIPC", |all| all.ipc = NamespaceMode::Node.into()),
    ];
    t.on_own_node(|node| {
        // containerd before 2.3 crashes when a pod without a network namespace is the sandbox API's, and
        // has not asked the shim yet.
        let skipped = usize::from(t.bed.options.sandboxer == Sandboxer::Shim);
        for (name, change) in cases.into_iter().skip(skipped) {
            t.pod_on(node).namespaces(change).refused(&REFUSED, &[name])?;
        }
        ensure!(node.pod_ids()?.is_empty(), "pods: {:?}", node.pod_ids()?);
        Ok(())
    })
}

/// What the shim refuses a request with that it can never fulfil.
const REFUSED: [Code; 2] = [Code::InvalidArgument, Code::Unimplemented];

fn socket(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let path = t.directory()?.join("s.sock");
    let _listener = UnixListener::bind(&path)?;
    pod.container("app").mount(&path, "/run/app.sock").refused(&REFUSED, &["socket"])?;
    // In a directory it is a name without anyone behind it.
    let dir = path.parent().ok_or_else(|| Failure::new("no parent"))?;
    pod.container("next").mount(dir, "/run/dir").start()?.prints("ls /run/dir", "s.sock\n")
}

fn annotations(t: &Test<'_>) -> Outcome {
    t.on_own_node(|node| {
        for (key, value, allowed) in [
            ("io.bulkhead.vcpus", "1000", "64"),
            ("io.bulkhead.vcpus", "many", "64"),
            ("io.bulkhead.memory", "1KiB", "64"),
        ] {
            t.pod_on(node).annotation(key, value).refused(&REFUSED, &[allowed])?;
        }
        ensure!(node.pod_ids()?.is_empty(), "pods: {:?}", node.pod_ids()?);
        let plan = t.pod_on(node).annotation("io.bulkhead.vcpus", "2");
        plan.run()?.container("app").start()?.prints("nproc", "2\n")
    })
}
