//! What the containers of a pod share, and what each has for itself.

use k8s_cri::v1::NamespaceMode;

use crate::bed::Test;
use crate::cri::container::{Container, ContainerPlan};
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "pods.share",
        "a pod's containers share network, IPC and host name, nothing else",
        share,
    ),
    Case::any("pods.loopback", "a pod's containers meet on 127.0.0.1", loopback),
    Case::any("pods.pid_own", "a container sees its own processes alone", pid_own),
    Case::any(
        "pods.pid_shared",
        "shareProcessNamespace: containers see and signal each other",
        pid_shared,
    ),
    Case::any(
        "pods.pid_target",
        "kubectl debug --target: the processes of that container alone",
        pid_target,
    ),
];

fn namespace(container: &Container<'_>, name: &str) -> Outcome<String> {
    container.sh(&format!("readlink /proc/self/ns/{name}"))
}

fn share(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let (one, two) = (pod.container("one").start()?, pod.container("two").start()?);
    for (name, shared) in
        [("net", true), ("ipc", true), ("uts", true), ("pid", false), ("mnt", false)]
    {
        let same = namespace(&one, name)? == namespace(&two, name)?;
        ensure!(same == shared, "namespace {name}: shared is {same}");
    }
    one.sh("echo from one > /dev/shm/file; echo from one > /file")?;
    two.prints("cat /dev/shm/file; ls /file 2> /dev/null || echo absent", "from one\nabsent\n")
}

/// Serves /page on 127.0.0.1:80, and on port 8080 of all addresses.
const SERVER: &str = "echo page > /page; httpd -p 127.0.0.1:80; httpd -p 8080; echo ready; \
                      exec sleep 100000";

fn loopback(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    pod.container("server").script(SERVER).start()?.await_log("ready")?;
    let client = pod.container("client").start()?;
    client.prints("wget -q -O - http://127.0.0.1/page", "page\n")?;
    client.prints("wget -q -O - http://localhost:8080/page", "page\n")
}

/// The programs of this name that a container sees, a line for each, in their arguments' order.
fn seen(container: &Container<'_>, program: &str) -> Outcome<String> {
    container.sh(&format!("ps -o args | grep '^{program}' | sort"))
}

/// Starts a container that sleeps so many seconds, by which it is known, and waits until it does: right
/// after its start, runc's own program may still be in its place.
fn sleeper<'p>(plan: ContainerPlan<'p>, seconds: &str) -> Outcome<Container<'p>> {
    let container = plan.command(&["sleep", seconds]).start()?;
    container
        .sh(&format!("until ps -o args | grep -q '^sleep {seconds}$'; do sleep 0.05; done"))?;
    Ok(container)
}

fn pid_own(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    for number in ["111111", "222222"] {
        let app = sleeper(pod.container(number), number)?;
        let first = app.sh("ps -o pid,args | grep '[s]leep' | sed 's/^ *//'")?;
        ensure!(first == format!("1 sleep {number}\n"), "the container sees {first:?}");
    }
    Ok(())
}

fn pid_shared(t: &Test<'_>) -> Outcome {
    let pod = t.pod().namespaces(|all| all.pid = NamespaceMode::Pod.into()).run()?;
    let one = sleeper(pod.container("one"), "111111")?;
    let script = "echo $$ > /dev/shm/two; echo here > /mark; trap 'echo told; exit 9' USR1; \
                  echo ready; while :; do sleep 0.05; done";
    let two = pod.container("two").script(script).start()?;
    two.await_log("ready")?;
    ensure!(seen(&two, "sleep 1")? == "sleep 111111\n", "two sees {:?}", two.sh("ps")?);
    // Each container's first program is one of many here.
    one.prints("test $(cat /dev/shm/two) != 1 && echo another", "another\n")?;
    // A look into another container's files, as a debugger takes it, and a signal.
    one.prints("cat /proc/$(cat /dev/shm/two)/root/mark", "here\n")?;
    one.sh("kill -USR1 $(cat /dev/shm/two)")?;
    let done = two.ended()?.exits(9)?;
    ensure!(done.out() == "ready\ntold\n", "{:?}", done.lines);
    one.prints("test -e /proc/$(cat /dev/shm/two) || echo gone", "gone\n")
}

fn pid_target(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    sleeper(pod.container("one"), "111111")?;
    let two = sleeper(pod.container("two"), "222222")?;
    sleeper(pod.container("three"), "333333")?;
    let debugger = pod.container("debugger").security(|security| {
        let all = security.namespace_options.get_or_insert_default();
        all.pid = NamespaceMode::Target.into();
        all.target_id.clone_from(&two.id);
    });
    let debugger = sleeper(debugger, "444444")?;
    for container in [&debugger, &two] {
        let seen = seen(container, "sleep")?;
        ensure!(seen == "sleep 222222\nsleep 444444\n", "seen is {seen:?}");
    }
    debugger.prints("tr '\\0' ' ' < /proc/1/cmdline", "sleep 222222 ")?;
    // Its end is not the target's.
    debugger.stop(0)?;
    ensure!(seen(&two, "sleep")? == "sleep 222222\n", "two sees {:?}", two.sh("ps")?);
    Ok(())
}
