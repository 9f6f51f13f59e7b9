//! A program that a test speaks with while it runs, over pipes or on a terminal.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, setsid};

use crate::command::{Finished, describe, tail, wait};
use crate::failure::{Context, Failure, Outcome};

/// How many unread chunks the session holds before it stops reading.
const CHUNKS: usize = 1;

/// A running program.
pub struct Session {
    line: String,
    child: Option<Child>,
    input: Option<Box<dyn Write + Send>>,
    output: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
    terminal: Option<OwnedFd>,
    seen: Vec<u8>,
    deadline: Duration,
    started: Instant,
}

impl Session {
    /// Starts a program with three pipes. What it prints waits in the pipe until it is asked for.
    ///
    /// # Errors
    /// It can't be started.
    pub fn pipes(mut command: Command, deadline: Duration) -> Outcome<Self> {
        let line = describe(&command);
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context(format!("cannot run `{line}`"))?;
        let input = child.stdin.take().map(|pipe| Box::new(pipe) as Box<dyn Write + Send>);
        let output = pump(child.stdout.take());
        let errors = pump(child.stderr.take());
        Ok(Self::of(line, child, input, output, errors, None, deadline))
    }

    /// Starts a program on a new terminal of this size; both outputs are one, without carriage returns.
    ///
    /// # Errors
    /// It can't be started.
    pub fn terminal(
        mut command: Command,
        rows: u16,
        columns: u16,
        deadline: Duration,
    ) -> Outcome<Self> {
        let line = describe(&command);
        let OpenptyResult { master, slave } = openpty(&size(rows, columns), None)?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        // SAFETY: between fork and exec this makes two system calls, both async-signal-safe, and
        // touches no memory but its own stack.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().context(format!("cannot run `{line}`"))?;
        // The command holds the terminal's other side: with it, the end would never be seen.
        drop(command);
        let input = Box::new(std::fs::File::from(master.try_clone()?));
        let output = pump(Some(std::fs::File::from(master.try_clone()?)));
        Ok(Self::of(
            line,
            child,
            Some(input),
            output,
            pump(None::<std::io::Empty>),
            Some(master),
            deadline,
        ))
    }

    fn of(
        line: String,
        child: Child,
        input: Option<Box<dyn Write + Send>>,
        output: Receiver<Vec<u8>>,
        errors: Receiver<Vec<u8>>,
        terminal: Option<OwnedFd>,
        deadline: Duration,
    ) -> Self {
        let child = Some(child);
        Self {
            line,
            child,
            input,
            output,
            errors,
            terminal,
            seen: Vec::new(),
            deadline,
            started: Instant::now(),
        }
    }

    /// Writes to the program's input.
    ///
    /// # Errors
    /// It has ended, or its input is closed.
    pub fn write(&mut self, bytes: &[u8]) -> Outcome {
        let input = self.input.as_mut().ok_or_else(|| Failure::new("the input is closed"))?;
        input.write_all(bytes)?;
        Ok(input.flush()?)
    }

    /// Takes the input away, to write to it from another thread.
    pub fn take_input(&mut self) -> Option<Box<dyn Write + Send>> {
        self.input.take()
    }

    /// Ends the program's input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The next piece of output; `None` at its end.
    ///
    /// # Errors
    /// None comes before the deadline.
    pub fn read(&mut self) -> Outcome<Option<Vec<u8>>> {
        self.read_within(self.deadline)?.map_or_else(
            || {
                Err(Failure::new(format!(
                    "`{}` prints nothing for {} s",
                    self.line,
                    self.deadline.as_secs()
                )))
            },
            |piece| Ok((!piece.is_empty()).then_some(piece)),
        )
    }

    /// The next piece of output within a time: `None` when there was none, an empty one at the end.
    ///
    /// # Errors
    /// None; the type serves its callers.
    pub fn read_within(&mut self, time: Duration) -> Outcome<Option<Vec<u8>>> {
        match self.output.recv_timeout(time) {
            // A line's end passes one terminal or two, and containerd's shim for runc changes the inner
            // one's settings while the program runs: how many carriage returns come is chance.
            Ok(mut piece) if self.terminal.is_some() => {
                piece.retain(|byte| *byte != b'\r');
                // An empty piece would be the end.
                if piece.is_empty() { self.read_within(time) } else { Ok(Some(piece)) }
            }
            Ok(piece) => Ok(Some(piece)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Ok(Some(Vec::new())),
        }
    }

    /// Reads until the output, what was read before left out, holds `text`; returns the output up to
    /// its end.
    ///
    /// # Errors
    /// The output ends, or the deadline comes, without it.
    pub fn read_until(&mut self, text: &str) -> Outcome<String> {
        let limit = Instant::now() + self.deadline;
        loop {
            if let Some(at) = find(&self.seen, text.as_bytes()) {
                let rest = self.seen.split_off(at + text.len());
                let read = std::mem::replace(&mut self.seen, rest);
                return Ok(String::from_utf8_lossy(&read).into_owned());
            }
            let piece = self.read_within(limit.saturating_duration_since(Instant::now()))?;
            match piece {
                Some(piece) if !piece.is_empty() => self.seen.extend(piece),
                ended => {
                    let why = if ended.is_some() { "ended" } else { "was waited for" };
                    let errors: Vec<u8> = self.errors.try_iter().flatten().collect();
                    return Err(Failure::new(format!(
                        "`{}` {why} without printing {text:?}, but {:?}\n--- stderr\n{}",
                        self.line,
                        tail(&String::from_utf8_lossy(&self.seen)),
                        tail(&String::from_utf8_lossy(&errors))
                    )));
                }
            }
        }
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    /// There is no terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> Outcome {
        let terminal =
            self.terminal.as_ref().ok_or_else(|| Failure::new("the session has no terminal"))?;
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(terminal, size)?)
    }

    /// Sends a signal to the program itself.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Outcome {
        let pid = self.pid().ok_or_else(|| Failure::new("the program has ended"))?;
        Ok(kill(pid, signal)?)
    }

    /// Ends the input, reads what is left of the output, and waits for the program's end.
    ///
    /// # Errors
    /// It is not over at the deadline; then it is killed.
    pub fn finish(mut self) -> Outcome<Finished> {
        // On a terminal the input is closed by its last holder; a hangup would end the program early.
        if self.terminal.is_none() {
            self.close_input();
        }
        let limit = Instant::now() + self.deadline;
        while let Some(piece) = self.read_within(limit.saturating_duration_since(Instant::now()))? {
            if piece.is_empty() {
                break;
            }
            self.seen.extend(piece);
        }
        let stderr = self.errors.try_iter().flatten().collect();
        let group = self.pid().unwrap_or(Pid::from_raw(0));
        let child = self.child.take().ok_or_else(|| Failure::new("finished twice"))?;
        let left = limit.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let status = wait(child, group, left)?;
        let line = std::mem::take(&mut self.line);
        let status = status.ok_or_else(|| Failure::new(format!("`{line}` doesn't end")))?;
        let stdout = std::mem::take(&mut self.seen);
        Ok(Finished { line, status, stdout, stderr, took: self.started.elapsed() })
    }

    fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(|child| Pid::from_raw(child.id() as i32))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let (Some(pid), Some(mut child)) = (self.pid(), self.child.take()) {
            // A program that ended by itself is only waited for.
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

/// Reads in a thread, and no further than the channel has room.
fn pump(source: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver): (SyncSender<Vec<u8>>, _) = sync_channel(CHUNKS);
    if let Some(mut source) = source {
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            // A terminal whose other side is closed reads as an I/O error: that is its end.
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}
