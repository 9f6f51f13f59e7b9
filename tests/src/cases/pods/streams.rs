//! What goes in and out of a pod: exec, attach, logs, port-forward.

use std::thread;

use k8s_cri::v1::ReopenContainerLogRequest;
use tonic::Code;

use crate::bed::Test;
use crate::cri::client::refused;
use crate::cri::logs;
use crate::cri::pod::Pod;
use crate::cri::stream::{Done, ERR, OUT, Port, Stream, Terminal};
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "pods.exec_input",
        "kubectl exec -i: input, outputs apart, the exit code",
        exec_input,
    ),
    Case::any("pods.exec_gone", "an exec ends when its client goes away", exec_gone),
    Case::any(
        "pods.exec_terminal",
        "kubectl exec -it: a terminal of the asked size",
        exec_terminal,
    ),
    Case::any(
        "pods.exec_refused",
        "an exec of a missing program is refused, and says so",
        exec_refused,
    ),
    Case::any("pods.exec_timeout", "a probe that takes too long is ended", exec_timeout),
    Case::any("pods.exec_large", "an exec's output of megabytes arrives whole", exec_large),
    Case::any(
        "pods.attach",
        "kubectl attach: the first program's streams, again and again",
        attach,
    ),
    Case::any("pods.stdin_once", "input that is given once ends with its giver", stdin_once),
    Case::any("pods.attach_terminal", "kubectl attach -it", attach_terminal),
    Case::any(
        "pods.log_streams",
        "the log tells stdout from stderr, and part of a line from its end",
        log_streams,
    ),
    Case::any("pods.log_rotation", "the log goes on in a new file after a rotation", log_rotation),
    Case::any("pods.log_terminal", "a terminal's output is in the log", log_terminal),
    Case::any("pods.forward", "port-forward to servers on 0.0.0.0 and on 127.0.0.1", forward),
    Case::any(
        "pods.forward_large",
        "two connections to a port, megabytes through each",
        forward_large,
    ),
    Case::any(
        "pods.forward_nobody",
        "port-forward to a port without a server says so",
        forward_nobody,
    ),
];

fn exec_input(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    let script = "echo ready; read line; echo got $line; echo oops >&2; exit 4";
    let mut exec = Stream::exec(&app, &["sh", "-c", script], Terminal::No)?;
    exec.read_until(OUT, "ready\n")?;
    exec.write("hello\n")?;
    exec.read_until(OUT, "got hello\n")?;
    exec.read_until(ERR, "oops\n")?;
    let done = exec.finish()?;
    ensure!(done == Done { code: 4, out: String::new(), err: String::new() }, "{done:?}");
    Ok(())
}

fn exec_gone(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    let mut exec = Stream::exec(&app, &["cat"], Terminal::No)?;
    exec.write("hello")?;
    exec.read_until(OUT, "hello")?;
    drop(exec);
    // 1.6 ends its input, 2.x kills it.
    app.sh("while pidof cat; do sleep 0.05; done").map(drop)
}

fn stdin_once(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let plan = pod.container("app").script("cat > /got; cat /got; exit 6");
    let app = plan.with(|config| (config.stdin, config.stdin_once) = (true, true)).start()?;
    let mut stream = Stream::attach(&app, Terminal::No)?;
    stream.write("all of it\n")?;
    stream.close()?;
    let done = app.ended()?.exits(6)?;
    ensure!(done.out() == "all of it\n", "{:?}", done.lines);
    Ok(())
}

fn exec_terminal(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    let script = "stty -echo; test -t 0 && test -t 1 && echo terminal $TERM; \
                  read line; stty size; read line; exit 3";
    let mut exec = Stream::exec(&app, &["sh", "-c", script], Terminal::Yes)?;
    exec.read_until(OUT, "terminal xterm\r\n")?;
    exec.resize(33, 111)?;
    // The size takes a way of its own; a line that overtakes it would see the old one.
    app.sh("until stty -F /dev/pts/0 size | grep -q '33 111'; do sleep 0.05; done")?;
    exec.write("go\n")?;
    exec.read_until(OUT, "33 111\r\n")?;
    exec.write("go\n")?;
    ensure!(exec.finish()?.code == 3, "another exit code");
    Ok(())
}

fn exec_refused(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    let texts = ["no such file or directory", "executable file not found in $PATH"];
    let codes = [Code::Unknown, Code::NotFound, Code::InvalidArgument];
    refused(app.exec(&["no-such-program"]), &codes, &texts)?;
    app.stop(0)?;
    refused(app.exec(&["true"]), &[Code::Unknown], &["container is in CONTAINER_EXITED state"])?;
    Ok(())
}

fn exec_timeout(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    let reply = app.exec_within(1, &["sleep", "1000"]);
    refused(reply, &[Code::DeadlineExceeded], &["timeout 1s exceeded"])?;
    app.prints("ps -o args | grep -c '[s]leep 1000$'; true", "0\n")
}

fn exec_large(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").start()?;
    let done = app.exec(&["sh", "-c", "yes 0123456789 | head -n 1000000"])?;
    ensure!(done.stdout.len() == 11_000_000, "{} bytes arrived", done.stdout.len());
    Ok(())
}

fn attach(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let script = "while read line; do echo got $line; test $line = end && exit 8; done; exit 9";
    let app = pod.container("app").script(script).with(|config| config.stdin = true).start()?;
    for line in ["one", "two"] {
        let mut stream = Stream::attach(&app, Terminal::No)?;
        stream.write(&format!("{line}\n"))?;
        stream.read_until(OUT, &format!("got {line}\n"))?;
    }
    let mut stream = Stream::attach(&app, Terminal::No)?;
    // Whether its last words reach a client as well as the log is left to chance by containerd.
    stream.write("end\n")?;
    let done = app.ended()?.exits(8)?;
    ensure!(done.out() == "got one\ngot two\ngot end\n", "the log holds {:?}", done.lines);
    Ok(())
}

fn attach_terminal(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod
        .container("app")
        .script("stty -echo; read line; stty size; echo got $line; read line; exit 2")
        .with(|config| (config.stdin, config.tty) = (true, true))
        .start()?;
    let mut stream = Stream::attach(&app, Terminal::Yes)?;
    stream.resize(20, 70)?;
    app.sh("until stty -F /proc/1/fd/0 size | grep -q '20 70'; do sleep 0.05; done")?;
    stream.write("hello\n")?;
    stream.read_until(OUT, "20 70\r\ngot hello\r\n")?;
    stream.write("bye\n")?;
    app.ended()?.exits(2).map(drop)
}

fn log_streams(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    // containerd cuts a line into pieces of 16 KiB.
    let script = "printf %040000d 7; echo; echo short; printf open; echo error >&2";
    let done = pod.container("app").script(script).run()?.exits(0)?;
    let out: Vec<(bool, usize)> = done
        .lines
        .iter()
        .filter(|line| line.stream == "stdout")
        .map(|line| (line.partial, line.text.len()))
        .collect();
    let pieces = [(true, 16384), (true, 16384), (false, 40000 - 2 * 16384), (false, 5)];
    ensure!(out.starts_with(&pieces) && out.len() == 5, "stdout: {out:?}");
    ensure!(out[4].1 == 4, "the last line: {:?}", out[4]);
    ensure!(logs::text(&done.lines, "stderr") == "error\n", "stderr: {:?}", done.lines);
    Ok(())
}

fn log_rotation(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    // The exec below is to end before the container does, which would end it.
    let script = "mkfifo /next; echo before; cat /next; echo after; sleep 2";
    let app = pod.container("app").script(script).start()?;
    app.await_log("before")?;
    let rotated = app.log.with_extension("log.1");
    std::fs::rename(&app.log, &rotated)?;
    let request = ReopenContainerLogRequest { container_id: app.id.clone() };
    pod.node.client.call(async |mut cri| cri.reopen_container_log(request).await)?;
    app.sh("echo between > /next")?;
    let done = app.ended()?.exits(0)?;
    ensure!(done.out() == "between\nafter\n", "the new log: {:?}", done.lines);
    let old = logs::text(&logs::read(&rotated)?, "stdout");
    ensure!(old == "before\n", "the old log: {old:?}");
    Ok(())
}

fn log_terminal(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app =
        pod.container("app").script("echo out; echo err >&2").with(|config| config.tty = true);
    let done = app.run()?.exits(0)?;
    ensure!(done.out().replace('\r', "") == "out\nerr\n", "{:?}", done.lines);
    Ok(())
}

/// Speaks with a server that answers `answer` on the port.
fn speak(pod: &Pod<'_>, port: u16, answer: &str) -> Outcome {
    let mut stream = Port::forward(pod, port)?;
    stream.write("GET /cgi HTTP/1.0\r\n\r\n")?;
    stream.read_until(answer).map(drop)
}

fn forward(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let script = "mkdir /a /b; echo everywhere > /a/cgi; echo local > /b/cgi; \
                  httpd -p 0.0.0.0:8080 -h /a; httpd -p 127.0.0.1:8081 -h /b; \
                  echo ready; exec sleep 100000";
    let app = pod.container("app").script(script).start()?;
    app.await_log("ready")?;
    for _ in 0..2 {
        speak(&pod, 8080, "everywhere\n")?;
        speak(&pod, 8081, "local\n")?;
    }
    Ok(())
}

fn forward_large(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let script =
        "head -c 5000000 /dev/zero > /file; httpd -p 127.0.0.1:80; echo ready; exec sleep 100000";
    pod.container("app").script(script).start()?.await_log("ready")?;
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let one = || {
            let mut stream = Port::forward(&pod, 80)?;
            stream.write("GET /file HTTP/1.0\r\n\r\n")?;
            stream.read_until("\r\n\r\n")?;
            let count = stream.count_rest()?;
            ensure!(count == 5_000_000, "{count} bytes arrived");
            Ok(())
        };
        let threads = [scope.spawn(one), scope.spawn(one)];
        let panicked = |_| Err(Failure::new("a thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    outcomes.into_iter().collect()
}

fn forward_nobody(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    pod.container("app").start()?;
    let said = Port::forward(&pod, 9)?.refusal()?;
    // From a guest the news comes when the connection stands already.
    let texts = ["connection refused", "connection reset"];
    ensure!(texts.iter().any(|text| said.contains(text)), "it says {said:?}");
    Ok(())
}
