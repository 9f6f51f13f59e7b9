//! Terminals: `-t` for containers and execs.

use crate::bed::Test;
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;
use crate::session::Session;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("terminal.is_one", "with -t all three streams are one terminal", is_one),
    Case::any(
        "terminal.echo_and_interrupt",
        "the terminal echoes, and Ctrl-C interrupts",
        echo_and_interrupt,
    ),
    Case::any("terminal.size", "the program sees the terminal's size, and each change of it", size),
    Case::any(
        "terminal.last_lines",
        "what a program prints right before its end arrives",
        last_lines,
    ),
    Case::any(
        "terminal.exec",
        "exec -t gets a terminal of its own, with its size and exit code",
        exec,
    ),
];

/// Waits until the terminal has a size, and prints it. ctr sets it after the program has started: until then it is 0, and
/// stty fails.
const AWAIT_SIZE: &str = "until stty size 2>/dev/null | grep .; do sleep 0.05; done";

fn is_one(t: &Test<'_>) -> Outcome {
    let script = "test -t 0 && test -t 1 && test -t 2 && tty; ls -l /dev/console | cut -c1; exit 5";
    let command = t.container().run_command(&["-t"], &["sh", "-c", script]);
    let done = Session::terminal(command, 24, 80, t.deadline(60))?.finish()?.exits(5)?;
    ensure!(done.out().starts_with("/dev/pts/0\nc\n"), "printed {:?}", done.out());
    Ok(())
}

fn echo_and_interrupt(t: &Test<'_>) -> Outcome {
    // A shell that edits a line draws it anew when the size changes.
    let script = format!("{AWAIT_SIZE}; exec sh -i");
    let command = t.container().run_command(&["-t"], &["sh", "-c", &script]);
    let mut session = Session::terminal(command, 24, 80, t.deadline(60))?;
    session.read_until("24 80\n")?;
    session.read_until("# ")?;
    session.write(b"echo $((40 + 2))\n")?;
    session.read_until("echo $((40 + 2))\n42\n")?;
    session.write(b"trap 'echo inter''rupted' INT; sleep 1000\n")?;
    session.read_until("sleep 1000\n")?;
    // The shell has to be waiting for sleep before the interrupt is worth anything.
    std::thread::sleep(std::time::Duration::from_millis(500));
    session.write(b"\x03")?;
    session.read_until("interrupted\n")?;
    session.write(b"exit 6\n")?;
    session.finish()?.exits(6).map(drop)
}

fn size(t: &Test<'_>) -> Outcome {
    let script =
        format!("{AWAIT_SIZE}; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done");
    let container = t.container();
    let command = container.run_command(&["-t"], &["sh", "-c", &script]);
    let mut session = Session::terminal(command, 33, 101, t.deadline(60))?;
    session.read_until("33 101\nready\n")?;
    for (rows, columns) in [(50, 132), (20, 60)] {
        // ctr passes the new size on, and the kernel tells the terminal's foreground group.
        session.resize(rows, columns)?;
        session.read_until(&format!("{rows} {columns}\n"))?;
    }
    container.kill("KILL")?;
    session.finish()?.exits(137).map(drop)
}

fn last_lines(t: &Test<'_>) -> Outcome {
    let lines: String = (1..=3000).map(|i| format!("line {i}\n")).collect();
    let script = "for i in $(seq 3000); do echo line $i; done";
    let command = t.container().run_command(&["-t"], &["sh", "-c", script]);
    let done = Session::terminal(command, 24, 80, t.deadline(60))?.finish()?.ok()?;
    let text = done.out();
    ensure!(text.starts_with("line 1\n"), "the first lines are lost: {:?}", text.lines().next());
    ensure!(text.ends_with("line 3000\n"), "the last lines are lost: {:?}", text.lines().last());
    ensure!(text == lines, "{} of {} bytes arrived", text.len(), lines.len());
    Ok(())
}

fn exec(t: &Test<'_>) -> Outcome {
    let container = t.container();
    container.start(&["sleep", "100000"])?;
    let script = format!(
        "test -t 0 && test -t 1 && echo terminal; read line; echo got $line; {AWAIT_SIZE}; exit 9"
    );
    let command = container.exec_command("e", &["-t"], &["sh", "-c", &script]);
    let mut session = Session::terminal(command, 42, 123, t.deadline(60))?;
    session.read_until("terminal\n")?;
    session.write(b"words\n")?;
    session.read_until("got words\n42 123\n")?;
    session.finish()?.exits(9).map(drop)
}
