//! `ctr run`: a program runs, and its end is told exactly.

use std::fs;

use crate::bed::Test;
use crate::command::{Finished, Input};
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("run.hello", "a program runs and its output arrives", hello),
    Case::any("run.exit_codes", "the exit code is the program's, whichever it is", exit_codes),
    Case::any("run.signal_codes", "a program ended by signal n gives 128 + n", signal_codes),
    Case::any("run.outputs_apart", "stdout and stderr arrive apart, each complete", outputs_apart),
    Case::any("run.input", "stdin reaches the program as it is written", input),
    Case::any("run.no_streams", "a program without streams may write to them", no_streams),
    Case::any(
        "run.no_input",
        "a program that reads nothing and prints nothing just ends",
        no_input,
    ),
    Case::any("run.binary_safe", "every byte value passes unchanged", binary_safe),
    Case::any(
        "run.environment",
        "env, working directory and arguments arrive as given",
        environment,
    ),
    Case::any(
        "run.bind_mounts",
        "bind mounts of files and directories, read-only and read-write",
        bind_mounts,
    ),
    Case::any(
        "run.read_only_root",
        "--read-only makes the root file system read-only",
        read_only_root,
    ),
    Case::any(
        "run.root_is_writable",
        "the container writes to its root, and the image stays as it was",
        writable,
    ),
    Case::any(
        "run.missing_program",
        "a command that is not in the image is refused as by runc",
        missing_program,
    ),
    Case::any(
        "run.not_executable",
        "a file without the x bit is refused as by runc",
        not_executable,
    ),
    Case::any("run.same_name_again", "a name is free again after --rm", same_name_again),
    Case::any(
        "run.two_at_once",
        "two containers at once keep their outputs and codes apart",
        two_at_once,
    ),
    Case::bulkhead(
        "run.kernel_of_its_own",
        "the container's kernel is not the host's",
        kernel_of_its_own,
    ),
];

fn hello(t: &Test<'_>) -> Outcome {
    let done = t.container().run(&[], &["echo", "hello"])?.ok()?;
    ensure!(done.out() == "hello\n", "printed {:?}", done.out());
    ensure!(done.err().is_empty(), "stderr: {:?}", done.err());
    Ok(())
}

fn exit_codes(t: &Test<'_>) -> Outcome {
    for code in [0, 1, 7, 127, 255] {
        t.container().run(&[], &["sh", "-c", &format!("exit {code}")])?.exits(code)?;
    }
    Ok(())
}

fn signal_codes(t: &Test<'_>) -> Outcome {
    // The first process of a PID namespace is spared most signals from inside; its child is not.
    t.container().run(&[], &["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"])?.exits(143)?;
    let container = t.container();
    container.start(&["sleep", "1000"])?;
    container.kill("KILL")?;
    container.wait_stopped()?;
    let code = container.delete()?;
    ensure!(code == 137, "SIGKILL gave {code}");
    Ok(())
}

fn outputs_apart(t: &Test<'_>) -> Outcome {
    two_outputs(2000, |command| t.container().run(&[], command))
}

/// Gives `run` a command that writes so many lines to each output by turns; all are to arrive.
pub(super) fn two_outputs(count: u32, run: impl FnOnce(&[&str]) -> Outcome<Finished>) -> Outcome {
    let script = format!("for i in $(seq {count}); do echo out $i; echo err $i >&2; done");
    let done = run(&["sh", "-c", &script])?.ok()?;
    let lines = |word: &str| (1..=count).map(|i| format!("{word} {i}\n")).collect::<String>();
    ensure!(done.out() == lines("out"), "stdout lost or mixed: {} bytes", done.stdout.len());
    ensure!(done.err() == lines("err"), "stderr lost or mixed: {} bytes", done.stderr.len());
    Ok(())
}

fn input(t: &Test<'_>) -> Outcome {
    let mut session =
        t.container().converse(&[], &["sh", "-c", "echo ready; head -n 2; echo end"])?;
    session.read_until("ready\n")?;
    session.write(b"first\nsecond\n")?;
    session.read_until("first\nsecond\nend\n")?;
    session.finish()?.ok().map(drop)
}

fn no_input(t: &Test<'_>) -> Outcome {
    let done = t.container().run(&[], &["true"])?.ok()?;
    ensure!(
        done.stdout.is_empty() && done.stderr.is_empty(),
        "printed {:?} {:?}",
        done.out(),
        done.err()
    );
    Ok(())
}

fn no_streams(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start(&["sh", "-c", "echo x && echo y >&2 && exit 7; exit 8"])?;
    container.wait_stopped()?;
    let status = container.delete()?;
    ensure!(status == 7, "writing to nobody gave {status}");
    Ok(())
}

fn binary_safe(t: &Test<'_>) -> Outcome {
    let bytes: Vec<u8> = (0..=255).cycle().take(256 * 257).collect();
    let count = bytes.len().to_string();
    let done =
        t.container().run_with(&[], &["head", "-c", &count], Input::Bytes(bytes.clone()))?.ok()?;
    ensure!(
        done.stdout == bytes,
        "{} bytes of {} came back, or changed",
        done.stdout.len(),
        bytes.len()
    );
    Ok(())
}

fn environment(t: &Test<'_>) -> Outcome {
    let flags = ["--env", "GREETING=two words", "--env", "EMPTY=", "--cwd", "/home/user"];
    let script = "printf '%s|' \"$GREETING\" \"${EMPTY-unset}\" \"$PWD\" \"$@\"";
    let done =
        t.container().run(&flags, &["sh", "-c", script, "name", "a b", "", "ä$'\""])?.ok()?;
    ensure!(done.out() == "two words||/home/user|a b||ä$'\"|", "arrived: {:?}", done.out());
    Ok(())
}

fn bind_mounts(t: &Test<'_>) -> Outcome {
    let dir = t.directory()?;
    fs::write(dir.join("file"), "from the host\n")?;
    let mount = |source: &str, target: &str, options: &str| {
        format!("type=bind,src={source},dst={target},options=rbind:{options}")
    };
    let path = dir.to_string_lossy();
    let flags = [
        "--mount",
        &mount(&path, "/rw", "rw"),
        "--mount",
        &mount(&path, "/ro", "ro"),
        "--mount",
        &mount(&format!("{path}/file"), "/etc/one-file", "ro"),
    ];
    let script = "cat /rw/file /ro/file /etc/one-file; echo new > /rw/new; \
                  for f in /ro/new2 /etc/one-file; do ( : > $f ) 2>/dev/null && echo wrote $f; done; true";
    let done = t.container().run(&flags, &["sh", "-c", script])?.ok()?;
    ensure!(done.out() == "from the host\n".repeat(3), "printed {:?}", done.out());
    let new = fs::read_to_string(dir.join("new"))?;
    ensure!(new == "new\n", "the host reads {new:?}");
    Ok(())
}

fn read_only_root(t: &Test<'_>) -> Outcome {
    let done = t.container().run(&["--read-only"], &["sh", "-c", "echo x > /file"])?;
    ensure!(
        done.code() != 0 && done.err().contains("Read-only file system"),
        "stderr: {}",
        done.err()
    );
    Ok(())
}

fn writable(t: &Test<'_>) -> Outcome {
    let script = "test ! -e /file && echo x > /file && chmod 600 /file && chown 1000:1000 /file && \
                  mkdir -p /a/b && mv /file /a/b/c && ln -s c /a/b/d && cat /a/b/d && rm /bin/vi";
    for _ in 0..2 {
        let done = t.container().run(&[], &["sh", "-c", script])?.ok()?;
        ensure!(done.out() == "x\n", "printed {:?}", done.out());
    }
    Ok(())
}

fn missing_program(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let done = container.run(&[], &["no-such-program"])?;
    done.refused(&["executable file not found in $PATH"])?;
    t.container().run(&[], &["/no/such/program"])?.refused(&["no such file or directory"])?;
    Ok(())
}

fn not_executable(t: &Test<'_>) -> Outcome {
    t.container().run(&[], &["/etc/passwd"])?.refused(&["permission denied"])?;
    Ok(())
}

fn same_name_again(t: &Test<'_>) -> Outcome {
    let container = t.container();
    for word in ["one", "two"] {
        let done = container.run(&[], &["echo", word])?.ok()?;
        ensure!(done.out().trim() == word, "printed {:?}", done.out());
    }
    Ok(())
}

fn two_at_once(t: &Test<'_>) -> Outcome {
    let (first, second) = (t.container(), t.container());
    first.start(&["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1 & wait; done"])?;
    let done = second.run(&[], &["sh", "-c", "echo second; exit 4"])?.exits(4)?;
    ensure!(done.out() == "second\n", "printed {:?}", done.out());
    ensure!(first.state()? == "RUNNING", "the first is {}", first.state()?);
    first.kill("TERM")?;
    first.wait_stopped()?;
    let code = first.delete()?;
    ensure!(code == 3, "the first gave {code}");
    Ok(())
}

fn kernel_of_its_own(t: &Test<'_>) -> Outcome {
    let guest = t.container().run(&[], &["uname", "-r"])?.ok()?.out();
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(guest != host, "both kernels are {host}");
    Ok(())
}
