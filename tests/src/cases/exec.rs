//! `ctr task exec`: further processes in a running container.

use super::run::two_outputs;
use crate::bed::{Container, Test};
use crate::command::{self, Input};
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;
use crate::session::Session;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "exec.output_and_code",
        "exec gives its own output and exit code, again and again",
        output_and_code,
    ),
    Case::any("exec.input", "exec takes stdin, and sees its end", input),
    Case::any(
        "exec.input_that_is_over",
        "stdin that ends before the exec runs ends it",
        input_that_is_over,
    ),
    Case::any("exec.outputs_apart", "stdout and stderr of an exec arrive apart", outputs_apart),
    Case::any(
        "exec.same_container",
        "an exec sees the container's processes, files and environment",
        same_container,
    ),
    Case::any("exec.user_and_cwd", "--user with its groups, and --cwd", user_and_cwd),
    Case::any(
        "exec.missing_program",
        "exec of a missing program is refused at once",
        missing_program,
    ),
    Case::any("exec.signal_code", "an exec ended by signal n gives 128 + n", signal_code),
    Case::any("exec.at_once", "many execs at once keep their outputs and codes apart", at_once),
    Case::any("exec.name_again", "an exec's name is free again after its end", name_again),
    Case::any(
        "exec.leaves_container",
        "the container goes on when an exec is killed",
        leaves_container,
    ),
    Case::any("exec.after_exit", "exec in a stopped container is refused", after_exit),
];

/// A container that runs until it is killed.
fn idle<'a>(t: &Test<'a>) -> Outcome<Container<'a>> {
    let container = t.container();
    container.start(&["sleep", "100000"])?;
    Ok(container)
}

fn output_and_code(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    for code in [0, 3, 255] {
        let done = container.exec("e", &[], &["sh", "-c", &format!("echo {code}; exit {code}")])?;
        let done = done.exits(code)?;
        ensure!(done.out() == format!("{code}\n"), "printed {:?}", done.out());
    }
    Ok(())
}

fn input(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    let command = container.exec_command("e", &[], &["sh", "-c", "echo ready; cat; echo end"]);
    let mut session = Session::pipes(command, t.deadline(30))?;
    session.read_until("ready\n")?;
    session.write(b"one\ntwo\n")?;
    session.read_until("one\ntwo\n")?;
    session.close_input();
    session.read_until("end\n")?;
    session.finish()?.ok().map(drop)
}

fn input_that_is_over(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    for round in 0..8 {
        let command = container.exec_command(&format!("e{round}"), &[], &["cat"]);
        let out =
            command::run(command, Input::Bytes(b"hi\n".to_vec()), t.deadline(30))?.ok()?.out();
        ensure!(out == "hi\n", "{out:?}");
    }
    Ok(())
}

fn outputs_apart(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    two_outputs(500, |command| container.exec("e", &[], command))
}

fn same_container(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start_with(
        &["--null-io", "--env", "FROM=spec"],
        &["sh", "-c", "echo written > /file; exec sleep 100000"],
    )?;
    let script = "until test -s /file; do sleep 0.1; done; cat /file; echo $FROM; tr '\\0' ' ' < /proc/1/cmdline";
    let done = container.exec("e", &[], &["sh", "-c", script])?.ok()?;
    ensure!(done.out() == "written\nspec\nsleep 100000 ", "printed {:?}", done.out());
    Ok(())
}

fn user_and_cwd(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    let flags = ["--user", "1000:2000", "--cwd", "/home/user"];
    let done = container.exec("e", &flags, &["sh", "-c", "id -u; id -g; pwd"])?.ok()?;
    ensure!(done.out() == "1000\n2000\n/home/user\n", "printed {:?}", done.out());
    Ok(())
}

fn missing_program(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    let done = container.exec("e", &[], &["no-such-program"])?;
    done.refused(&["executable file not found in $PATH"])?;
    // A name that looks like what the agent takes out of errors.
    let odd = container.exec("odd", &[], &["\u{e4} { }"])?;
    odd.refused(&["executable file not found in $PATH", "\u{e4}"])?;
    container.exec("e2", &[], &["true"])?.ok().map(drop)
}

fn signal_code(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    container.exec("e", &[], &["sh", "-c", "kill -USR1 $$"])?.exits(128 + 10)?;
    container.exec("f", &[], &["sh", "-c", "kill -KILL $$"])?.exits(137).map(drop)
}

fn at_once(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    let mut sessions = Vec::new();
    for number in 0..6 {
        let script = format!("for i in $(seq 200); do echo {number}; done; exit {number}");
        let command = container.exec_command(&format!("e{number}"), &[], &["sh", "-c", &script]);
        sessions.push(Session::pipes(command, t.deadline(60))?);
    }
    for (number, session) in sessions.into_iter().enumerate() {
        let done = session.finish()?.exits(i32::try_from(number)?)?;
        ensure!(
            done.out() == format!("{number}\n").repeat(200),
            "exec {number} printed {:?}",
            done.out()
        );
    }
    Ok(())
}

fn name_again(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    for _ in 0..3 {
        container.exec("same", &[], &["true"])?.ok()?;
    }
    Ok(())
}

fn leaves_container(t: &Test<'_>) -> Outcome {
    let container = idle(t)?;
    let command = container.exec_command("e", &[], &["sh", "-c", "echo ready; exec sleep 1000"]);
    let mut session = Session::pipes(command, t.deadline(30))?;
    session.read_until("ready\n")?;
    container.task("kill", &["--signal", "KILL", "--exec-id", "e"])?.ok()?;
    session.finish()?.exits(137)?;
    ensure!(container.state()? == "RUNNING", "the container is {}", container.state()?);
    Ok(())
}

fn after_exit(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start(&["true"])?;
    container.wait_stopped()?;
    let refusals =
        ["not running", "not found", "stopped", "no running task", "process already finished"];
    container.exec("e", &[], &["true"])?.refused(&refusals)?;
    container.delete().map(drop)
}
