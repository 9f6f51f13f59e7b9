//! What a node's kubelet asks beside: lists, statistics, a containerd that restarts, many pods at once.

use std::collections::HashMap;
use std::fs;
use std::thread;

use k8s_cri::v1::{
    ContainerFilter, ContainerState, ContainerStatsRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
    PodSandboxStatsRequest,
};

use crate::bed::Test;
use crate::cri::cgroup::PodCgroup;
use crate::cri::node::Node;
use crate::cri::watch;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("pods.many", "many pods start and stop at once", many).alone(),
    Case::any(
        "pods.containerd_restart",
        "pods outlive containerd: status, exec, logs, exit codes",
        restart,
    ),
    Case::any(
        "pods.exit_while_away",
        "a container that ends while containerd is away has ended",
        away,
    ),
    Case::any("pods.status", "what was asked for is in the status of pod and container", status),
    Case::any("pods.list", "pods and containers are found by their state and labels", list),
    Case::any("pods.container_stats", "a container's processor time and memory", container_stats),
    Case::any(
        "pods.pod_stats",
        "a pod's processor time, memory and traffic, by its cgroup",
        pod_stats,
    ),
    Case::any("pods.cgroup", "what a pod costs the host is in its cgroup", cgroup),
];

fn many(t: &Test<'_>) -> Outcome {
    let count = if t.is_bulkhead() { 20 } else { 6 };
    t.on_own_node(|node| {
        node.configure("memory = \"128MiB\"\n")?;
        let outcomes: Vec<Outcome> = thread::scope(|scope| {
            let one = |number: usize| move || life(t, node, &format!("container {number}"));
            let threads: Vec<_> = (0..count).map(|number| scope.spawn(one(number))).collect();
            let panicked = |_| Err(Failure::new("a thread panicked"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
        });
        outcomes.into_iter().collect()
    })
}

/// A pod from its beginning to its end.
fn life(t: &Test<'_>, node: &Node, text: &str) -> Outcome {
    let pod = t.pod_on(node).run()?;
    let app = pod.container("app").env("TEXT", text).start()?;
    app.prints("echo $TEXT", &format!("{text}\n"))?;
    app.stop(0)?;
    app.ended()?.exits(137)?;
    Ok(pod.remove()?)
}

fn restart(t: &Test<'_>) -> Outcome {
    let dir = t.directory()?;
    t.on_own_node(|node| {
        let pod = t.pod_on(node).run()?;
        // It ends its execs with itself, and so not before they have ended.
        let script = "mkfifo /go; echo before; cat /go; until test -e /dir/end; do sleep 0.1; done
            echo after; exit 6";
        let app = pod.container("app").mount(&dir, "/dir").script(script).start()?;
        app.await_log("before")?;
        node.restart()?;
        ensure!(
            node.pod_ids()? == [pod.id.clone()],
            "pods after the restart: {:?}",
            node.pod_ids()?
        );
        ensure!(pod.is_ready()?, "the pod is not ready");
        ensure!(app.status()?.state() == ContainerState::ContainerRunning, "{:?}", app.status()?);
        app.prints("echo still here", "still here\n")?;
        let next = pod.container("next").start()?;
        app.sh("echo between > /go")?;
        fs::write(dir.join("end"), "")?;
        let done = app.ended()?.exits(6)?;
        ensure!(done.out() == "before\nbetween\nafter\n", "the log: {:?}", done.lines);
        next.prints("echo and I", "and I\n")?;
        Ok(pod.remove()?)
    })
}

fn away(t: &Test<'_>) -> Outcome {
    let dir = t.directory()?;
    t.on_own_node(|node| {
        let pod = t.pod_on(node).run()?;
        let script = "until test -e /dir/go; do sleep 0.1; done; touch /dir/gone; exit 5";
        let app = pod.container("app").mount(&dir, "/dir").script(script).start()?;
        node.containerd.stop()?;
        fs::write(dir.join("go"), "")?;
        watch::until(&dir, t.deadline(30), || Ok(dir.join("gone").exists()))?;
        // Only its parent sees the very end of a process.
        thread::sleep(t.deadline(1));
        node.restart()?;
        let code = app.ended()?.code;
        // containerd 2 forgets what ended without it: 255, and the reason Unknown.
        ensure!(code == 5 || code == 255 && t.forgets_stopped(), "the exit code is {code}");
        ensure!(pod.is_ready()?, "the pod is not ready");
        pod.container("next").start()?.prints("echo hello", "hello\n")
    })
}

fn status(t: &Test<'_>) -> Outcome {
    let plan = t.pod().annotation("example.com/note", "kept");
    let plan = plan.with(|config| drop(config.labels.insert("app".to_owned(), "web".to_owned())));
    let pod = plan.run()?;
    let (asked, status) = (&pod.config, pod.status()?);
    ensure!(status.state() == PodSandboxState::SandboxReady, "{status:?}");
    ensure!(status.metadata == asked.metadata, "{status:?}");
    ensure!(status.labels == asked.labels && status.annotations == asked.annotations, "{status:?}");
    ensure!(status.runtime_handler == t.bed.options.handler(), "{status:?}");
    ensure!(status.created_at > 0 && !pod.address()?.is_empty(), "{status:?}");

    let dir = t.directory()?;
    let plan = pod.container("app").mount(&dir, "/data").script("sleep 0.3; exit 3");
    let app = plan.create()?;
    let status = app.status()?;
    ensure!(status.state() == ContainerState::ContainerCreated, "{status:?}");
    app.start()?;
    app.ended()?;
    let status = app.status()?;
    ensure!(status.metadata == plan.config.metadata, "{status:?}");
    ensure!(status.image.as_ref().is_some_and(|found| found.image == image::NAME), "{status:?}");
    ensure!(status.log_path == app.log.to_string_lossy(), "{status:?}");
    ensure!(status.mounts.len() == 1 && status.mounts[0].container_path == "/data", "{status:?}");
    let times = [status.created_at, status.started_at, status.finished_at];
    ensure!(times[0] > 0 && times.is_sorted(), "times: {times:?}");
    Ok(())
}

fn list(t: &Test<'_>) -> Outcome {
    let label = HashMap::from([("list".to_owned(), t.unique())]);
    let labelled = || t.pod().with(|config| config.labels.extend(label.clone()));
    let (one, two) = (labelled().run()?, labelled().run()?);
    let app = two.container("app").with(|config| config.labels.extend(label.clone())).start()?;
    one.stop()?;
    for (state, pod) in
        [(PodSandboxState::SandboxReady, &two), (PodSandboxState::SandboxNotready, &one)]
    {
        let filter = PodSandboxFilter {
            label_selector: label.clone(),
            state: Some(PodSandboxStateValue { state: state.into() }),
            ..PodSandboxFilter::default()
        };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let found =
            pod.node.client.call(async |mut cri| cri.list_pod_sandbox(request).await)?.items;
        let ids: Vec<&str> = found.iter().map(|item| item.id.as_str()).collect();
        ensure!(ids == [pod.id.as_str()], "{state:?}: {found:?}");
    }
    let filter = ContainerFilter { label_selector: label, ..ContainerFilter::default() };
    let request = ListContainersRequest { filter: Some(filter) };
    let found =
        two.node.client.call(async |mut cri| cri.list_containers(request).await)?.containers;
    ensure!(
        found.len() == 1 && found[0].id == app.id && found[0].pod_sandbox_id == two.id,
        "{found:?}"
    );
    Ok(())
}

/// Keeps a processor busy for a second or two, and 32 MiB of memory for good.
const BUSY: &str = "head -c 33554432 /dev/zero > /dev/shm/memory; end=$(($(date +%s) + 2)); \
                    while [ $(date +%s) -lt $end ]; do :; done; echo done; exec sleep 100000";

fn container_stats(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").script(BUSY).start()?;
    app.await_log("done")?;
    let request = ContainerStatsRequest { container_id: app.id.clone() };
    let answer = pod.node.client.call(async |mut cri| cri.container_stats(request).await)?;
    let stats = answer.stats.unwrap_or_default();
    ensure!(stats.attributes.as_ref().is_some_and(|all| all.id == app.id), "{stats:?}");
    let cpu = stats.cpu.unwrap_or_default().usage_core_nano_seconds.unwrap_or_default().value;
    let memory = stats.memory.unwrap_or_default().working_set_bytes.unwrap_or_default().value;
    ensure!(cpu > 50_000_000, "processor time: {cpu} ns");
    ensure!(memory > 30 << 20, "memory: {memory} bytes");
    Ok(())
}

fn pod_stats(t: &Test<'_>) -> Outcome {
    let parent = PodCgroup::new(&t.unique())?;
    let pod = t.pod().linux(|linux| linux.cgroup_parent.clone_from(&parent.path)).run()?;
    let app = pod.container("app").script(BUSY).start()?;
    app.await_log("done")?;
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let answer = pod.node.client.call(async |mut cri| cri.pod_sandbox_stats(request).await)?;
    let stats = answer.stats.unwrap_or_default().linux.unwrap_or_default();
    let cpu = stats.cpu.unwrap_or_default().usage_core_nano_seconds.unwrap_or_default().value;
    let memory = stats.memory.unwrap_or_default().working_set_bytes.unwrap_or_default().value;
    ensure!(cpu > 50_000_000, "processor time: {cpu} ns");
    ensure!(memory > 32 << 20, "memory: {memory} bytes");
    ensure!(stats.containers.len() == 1, "containers: {:?}", stats.containers);
    let processes = stats.process.unwrap_or_default().process_count.unwrap_or_default().value;
    ensure!(processes >= 1, "{processes} processes");
    ensure!(stats.network.is_some_and(|all| all.default_interface.is_some()), "no network");
    pod.remove()?;
    Ok(())
}

fn cgroup(t: &Test<'_>) -> Outcome {
    let parent = PodCgroup::new(&t.unique())?;
    let pod = t.pod().linux(|linux| linux.cgroup_parent.clone_from(&parent.path)).run()?;
    pod.container("app").script(BUSY).start()?.await_log("done")?;
    let usage = parent.memory()?;
    ensure!(usage > 32 << 20, "{usage} bytes of memory are in the pod's cgroup");
    pod.remove()?;
    Ok(())
}
