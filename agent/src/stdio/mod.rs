//! A process's stdio: pipes or a terminal on its side, streams on the host's.

mod copy;
mod terminal;

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio as ChildStdio;
use std::sync::Arc;

use bulkhead_protocols::agent::Stdio;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_vsock::VsockStream;

pub use self::copy::{copy, send};
use self::terminal::Terminal;
pub use self::terminal::set_window_size;
use crate::error::{Error, Result};
use crate::streams::Streams;

/// A connection that the host has dialled, or will dial.
type Pending = oneshot::Receiver<VsockStream>;

/// The host's side of a process's stdio, before the process is there.
pub struct Announced {
    stdin: Option<Pending>,
    stdout: Option<Pending>,
    stderr: Option<Pending>,
    terminal: bool,
}

/// What the helper gets as its own stdin, stdout and stderr, and hands to the process.
pub struct ChildEnds {
    /// Read by the process.
    pub stdin: ChildStdio,
    /// Written by the process.
    pub stdout: ChildStdio,
    /// Written by the process.
    pub stderr: ChildStdio,
}

impl Default for ChildEnds {
    fn default() -> Self {
        Self { stdin: ChildStdio::null(), stdout: ChildStdio::null(), stderr: ChildStdio::null() }
    }
}

/// The copying of a process's stdio.
#[derive(Default)]
pub struct Copying {
    stdin: Option<JoinHandle<()>>,
    /// The master side, and the other one, held open.
    terminal: Option<(Arc<OwnedFd>, Arc<OwnedFd>)>,
}

impl Announced {
    /// Announces the streams of a process.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a number is taken, or stderr is asked for with a terminal.
    pub fn new(streams: &Streams, stdio: &Stdio) -> Result<Self> {
        if stdio.terminal && stdio.stderr != 0 {
            return Err(Error::InvalidArgument(
                "a process with a terminal has no stderr of its own".to_owned(),
            ));
        }
        let announce = |number: u64| (number != 0).then(|| streams.announce(number)).transpose();
        Ok(Self {
            stdin: announce(stdio.stdin)?,
            stdout: announce(stdio.stdout)?,
            stderr: announce(stdio.stderr)?,
            terminal: stdio.terminal,
        })
    }

    /// Whether the process gets a terminal.
    pub fn terminal(&self) -> bool {
        self.terminal
    }

    /// Makes the pipes, and starts to copy. With a terminal there are none: its master side comes
    /// later, to [`Copying::attach`].
    ///
    /// # Errors
    /// [`Error::Internal`] if no pipe can be made.
    pub fn connect(&mut self) -> Result<(ChildEnds, Copying)> {
        let mut ends = ChildEnds::default();
        let mut copying = Copying::default();
        if self.terminal {
            return Ok((ends, copying));
        }
        let failed = |error| Error::io("cannot make a pipe for the process", error);
        if let Some(stream) = self.stdin.take() {
            let (tx, rx) = pipe::pipe().map_err(failed)?;
            ends.stdin = rx.into_blocking_fd().map_err(failed)?.into();
            copying.feed(stream, tx, || ());
        }
        if let Some(stream) = self.stdout.take() {
            ends.stdout = output(stream).map_err(failed)?;
        }
        if let Some(stream) = self.stderr.take() {
            ends.stderr = output(stream).map_err(failed)?;
        }
        Ok((ends, copying))
    }
}

impl Copying {
    /// Starts to copy a terminal whose master side has arrived, and makes it the user's.
    ///
    /// # Errors
    /// [`Error::Internal`] if the terminal can't be used.
    pub fn attach(&mut self, announced: &mut Announced, master: OwnedFd, uid: u32) -> Result<()> {
        let failed = |error: io::Error| Error::io("cannot use the process's terminal", error);
        let slave = terminal::give_to(&master, uid).map_err(|errno| failed(errno.into()))?;
        let (master, slave) = (Arc::new(master), Arc::new(slave));
        let reader = Terminal::new(&master).map_err(failed)?;
        // Someone must read, or the process stops when the terminal's buffer is full.
        match announced.stdout.take() {
            Some(stream) => drop(tokio::spawn(async move {
                let Ok(stream) = stream.await else { return };
                send(reader, stream).await;
            })),
            None => drop(tokio::spawn(copy(reader, tokio::io::sink()))),
        }
        if let Some(stream) = announced.stdin.take() {
            // As with runc's shim, the end of the input is a hangup: who sat there has gone.
            let (sink, slave) = (Terminal::new(&master).map_err(failed)?, Arc::clone(&slave));
            self.feed(stream, sink, move || terminal::hang_up(&slave));
        }
        self.terminal = Some((master, slave));
        Ok(())
    }

    /// Copies the host's input to the process, until either has enough; then comes what is to be done at the end.
    fn feed(
        &mut self,
        stream: Pending,
        sink: impl AsyncWrite + Unpin + Send + 'static,
        end: impl FnOnce() + Send + 'static,
    ) {
        self.stdin = Some(tokio::spawn(async move {
            let Ok(stream) = stream.await else { return };
            copy(stream, sink).await;
            end();
        }));
    }

    /// Sets the size of the terminal, in characters. Where there is none, or none any more, it has no size.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some((master, _)) = &self.terminal else { return Ok(()) };
        set_window_size(&**master, width.into(), height.into())
            .map_err(|error| Error::io("cannot resize the terminal", error))
    }

    /// The process has ended: what the host still sends has no reader. Output goes on until its
    /// end, since children of the process may hold it.
    pub fn process_ended(&mut self) {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        self.terminal = None;
    }
}

/// A pipe into which the process writes. It is copied to the host until no one can write into it any
/// more; then the whole connection is closed. If the host closes first, the pipe is closed too, and
/// the process gets SIGPIPE.
fn output(stream: Pending) -> io::Result<ChildStdio> {
    let (tx, rx) = pipe::pipe()?;
    let end = tx.into_blocking_fd()?.into();
    tokio::spawn(async move {
        let Ok(stream) = stream.await else { return };
        send(rx, stream).await;
    });
    Ok(end)
}
