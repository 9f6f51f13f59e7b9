//! A pod's life, and the lives of its containers.

use k8s_cri::v1::ContainerState;

use crate::bed::Test;
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("pods.run", "a pod with a container runs, is asked, and goes", run),
    Case::any("pods.exec_sync", "a probe's output, its errors and its exit code", exec_sync),
    Case::any("pods.log", "what a container prints is in the pod's log directory", log),
    Case::any("pods.exit_code", "a container's exit code and why it ended", exit_code),
    Case::any(
        "pods.stop_grace",
        "a container gets SIGTERM first, SIGKILL when its time is over",
        stop_grace,
    ),
    Case::any(
        "pods.restart",
        "a container that ended is removed and made again in its pod",
        restart,
    ),
    Case::any(
        "pods.again",
        "what the kubelet stops or removes again is stopped and removed",
        again,
    ),
    Case::any("pods.oom_killed", "a container over its memory limit was OOMKilled", oom_killed),
];

fn run(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    app.prints("echo hello", "hello\n")?;
    ensure!(pod.is_ready()?, "the pod is not ready");
    ensure!(app.status()?.state() == ContainerState::ContainerRunning, "{:?}", app.status()?);
    app.stop(0)?;
    app.remove()?;
    pod.stop()?;
    ensure!(!pod.is_ready()?, "the pod is still ready after its stop");
    pod.remove()?;
    ensure!(pod.status().is_err(), "the pod is still there: {:?}", pod.status());
    Ok(())
}

fn exec_sync(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    for code in [0, 3, 255] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let done = app.exec(&["sh", "-c", &script])?;
        ensure!(
            (done.exit_code, done.stdout.as_slice(), done.stderr.as_slice())
                == (code, b"out\n", b"err\n"),
            "{done:?}"
        );
    }
    Ok(())
}

fn log(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let done = pod.container("app").script("echo one; sleep 0.1; echo two >&2").run()?.exits(0)?;
    let lines: Vec<(&str, bool, &str)> = done
        .lines
        .iter()
        .map(|line| (line.stream.as_str(), line.partial, line.text.as_str()))
        .collect();
    ensure!(lines == [("stdout", false, "one"), ("stderr", false, "two")], "{lines:?}");
    Ok(())
}

fn exit_code(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    for (script, code, reason) in [("exit 0", 0, "Completed"), ("exit 7", 7, "Error")] {
        let app = pod.container("app").script(script).start()?;
        let done = app.ended()?.exits(code)?;
        ensure!(done.reason == reason, "{done:?}");
        app.remove()?;
    }
    Ok(())
}

fn stop_grace(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let polite = pod
        .container("polite")
        .script("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
        .start()?;
    polite.await_log("ready")?;
    polite.stop(60)?;
    ensure!(polite.ended()?.exits(5)?.out() == "ready\nbye\n", "{:?}", polite.lines()?);
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let deaf = pod.container("deaf").script(script).start()?;
    deaf.await_log("ready")?;
    deaf.stop(1)?;
    deaf.ended()?.exits(137).map(drop)
}

fn restart(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    for attempt in 0..3 {
        let plan = pod.container("app").script("test ! -e /mark && touch /mark && exit 4");
        let app = plan
            .with(|config| {
                config.metadata.get_or_insert_default().attempt = attempt;
                config.log_path = format!("app.{attempt}.log");
            })
            .start()?;
        app.ended()?.exits(4)?;
        app.remove()?;
    }
    Ok(())
}

fn again(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    for _ in 0..2 {
        app.stop(0)?;
    }
    for _ in 0..2 {
        app.remove()?;
    }
    // One that runs goes with its pod.
    pod.container("other").start()?;
    for _ in 0..2 {
        pod.stop()?;
    }
    for _ in 0..2 {
        pod.remove()?;
    }
    Ok(())
}

fn oom_killed(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let plan = pod.container("app").command(&["tail", "/dev/zero"]).with(|config| {
        let resources = config.linux.get_or_insert_default().resources.get_or_insert_default();
        (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes) =
            (32 << 20, 32 << 20);
    });
    let done = plan.run()?.exits(137)?;
    ensure!(done.reason == "OOMKilled", "{done:?}");
    pod.container("next").start()?.prints("echo here", "here\n")
}
