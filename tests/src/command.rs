//! Programs run with a deadline, their output kept.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::failure::{Context, Failure, Outcome};

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// From its start to its end.
    pub took: Duration,
}

impl Finished {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The exit code, as a shell would show it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Requires this exit code.
    ///
    /// # Errors
    /// Another exit code; the text holds the whole output.
    pub fn exits(self, code: i32) -> Outcome<Self> {
        crate::ensure!(
            self.code() == code,
            "`{}` exited with {}, not {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.code(),
            tail(&self.out()),
            tail(&self.err())
        );
        Ok(self)
    }

    /// Requires success.
    ///
    /// # Errors
    /// An exit code other than 0.
    pub fn ok(self) -> Outcome<Self> {
        self.exits(0)
    }

    /// Requires a failure whose standard error holds one of `texts`.
    ///
    /// # Errors
    /// Success, or another text.
    pub fn refused(self, texts: &[&str]) -> Outcome<Self> {
        crate::ensure!(self.code() != 0, "`{}` succeeded, but should have been refused", self.line);
        let err = self.err();
        let low = err.to_lowercase();
        crate::ensure!(
            texts.iter().any(|text| low.contains(&text.to_lowercase())),
            "`{}` failed, but says none of {texts:?}:\n{}",
            self.line,
            tail(&err)
        );
        Ok(self)
    }
}

/// The last lines of a long text, none of them long.
pub fn tail(text: &str) -> String {
    let lines: Vec<String> =
        text.trim_end().lines().map(|line| line.chars().take(300).collect()).collect();
    let first = lines.len().saturating_sub(30);
    lines[first..].join("\n")
}

/// What a program reads.
pub enum Input {
    /// Nothing: /dev/null.
    Null,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
}

/// Runs `command` to its end and keeps what it prints.
///
/// # Errors
/// It can't be started, or it is not over at the deadline; then it and its group are killed.
pub fn run(mut command: Command, input: Input, deadline: Duration) -> Outcome<Finished> {
    let line = describe(&command);
    let started = Instant::now();
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if matches!(input, Input::Null) { Stdio::null() } else { Stdio::piped() });
    let mut child = command.spawn().context(format!("cannot run `{line}`"))?;
    let group = Pid::from_raw(child.id() as i32);
    if let (Input::Bytes(bytes), Some(mut stdin)) = (input, child.stdin.take()) {
        // A reader that ends early is the program's own affair.
        thread::spawn(move || drop(stdin.write_all(&bytes)));
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(child, group, deadline);
    let remaining = Duration::from_secs(5);
    let stdout = stdout.recv_timeout(remaining).unwrap_or_default();
    let stderr = stderr.recv_timeout(remaining).unwrap_or_default();
    let Some(status) = status? else {
        return Err(Failure::new(format!(
            "`{line}` was not over after {} s\n--- stdout\n{}\n--- stderr\n{}",
            deadline.as_secs(),
            tail(&String::from_utf8_lossy(&stdout)),
            tail(&String::from_utf8_lossy(&stderr))
        )));
    };
    Ok(Finished { line, status, stdout, stderr, took: started.elapsed() })
}

/// Waits for a child; kills its group at the deadline, and returns `None` then.
///
/// # Errors
/// The wait itself failed.
pub fn wait(mut child: Child, group: Pid, deadline: Duration) -> Outcome<Option<ExitStatus>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || drop(sender.send(child.wait())));
    if let Ok(status) = receiver.recv_timeout(deadline) {
        return Ok(Some(status?));
    }
    // The group may have ended in this very moment.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = receiver.recv_timeout(Duration::from_secs(5));
    Ok(None)
}

fn collect(source: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            // What came before an error is still worth showing.
            let _ = source.read_to_end(&mut bytes);
        }
        drop(sender.send(bytes));
    });
    receiver
}

/// The command line as a person would type it.
pub fn describe(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(program).chain(command.get_args()).map(OsStr::to_string_lossy);
    words.collect::<Vec<_>>().join(" ")
}
