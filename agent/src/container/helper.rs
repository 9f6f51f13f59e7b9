//! Running the agent's own program as the single-threaded helper that makes containers.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::explain::explain;
use crate::error::{Error, Result};
use crate::oci::report::Report;
use crate::reaper::{ExitCode, Reaper};
use crate::stdio::ChildEnds;

/// A helper at work, and after its end the line to the process that it made: that one keeps the
/// other end of the socket until it executes its program.
pub struct Helper {
    socket: BufReader<UnixStream>,
    exit: oneshot::Receiver<ExitCode>,
}

impl Helper {
    /// Executes `bulkhead-agent oci <arguments> <fd>`, where `fd` is the helper's end of a socket
    /// that takes its reports. `ends` become its stdio, and with that the stdio of the process
    /// that it makes.
    ///
    /// # Errors
    /// [`Error::Internal`] if the helper can't be executed.
    pub fn spawn(reaper: &Reaper, arguments: &[&str], ends: ChildEnds) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io("cannot run the container helper", error);
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        // Inherited by number. Nothing else is spawned before `theirs` is dropped: there is one
        // thread, and no await in between.
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| failed(errno.into()))?;

        let child = Command::new("/proc/self/exe")
            .arg("oci")
            .args(arguments)
            .arg(theirs.as_raw_fd().to_string())
            .env_clear()
            .stdin(ends.stdin)
            .stdout(ends.stdout)
            .stderr(ends.stderr)
            .spawn()
            .map_err(failed)?;
        let exit = reaper.watch_helper(child.id());
        let socket = UnixStream::from_std(ours).map_err(failed)?;
        Ok(Self { socket: BufReader::new(socket), exit })
    }

    /// Waits for what the helper makes next. After a terminal or a process the helper waits for
    /// [`Helper::release`].
    ///
    /// # Errors
    /// The helper's own error, or [`Error::Internal`] if it ended without a word.
    pub async fn made(&mut self) -> Result<Report> {
        match self.report().await? {
            Some(report) => Ok(report),
            None => Err(self.died().await),
        }
    }

    /// Lets the helper go on. After a process it ends, and the process is PID 1's child.
    ///
    /// # Errors
    /// [`Error::Internal`] if the helper is gone.
    pub async fn release(&mut self) -> Result<()> {
        self.socket
            .get_mut()
            .write_all(b"\n")
            .await
            .map_err(|error| Error::io("the container helper is gone", error))
    }

    /// Waits until the process has executed its program.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn executed(mut self) -> Result<()> {
        match self.report().await? {
            None => Ok(()),
            Some(_) => Err(out_of_turn()),
        }
    }

    /// Waits for a helper that makes no process.
    ///
    /// # Errors
    /// The helper's own error, or [`Error::Internal`] if it ended without a word.
    pub async fn done(mut self) -> Result<()> {
        match self.made().await? {
            Report::Done => Ok(()),
            _ => Err(out_of_turn()),
        }
    }

    /// The next thing that the helper says; none at its end.
    async fn report(&mut self) -> Result<Option<Report>> {
        let mut causes = Vec::new();
        loop {
            let mut line = Vec::new();
            self.socket
                .read_until(b'\n', &mut line)
                .await
                .map_err(|error| Error::io("cannot hear the container helper", error))?;
            if line.is_empty() {
                return Ok(None);
            }
            match serde_json::from_slice(&line) {
                Ok(Report::Cause(text)) => causes.push(text),
                Ok(Report::Failed(error)) => return Err(explain(error, &causes)),
                Ok(report) => return Ok(Some(report)),
                Err(error) => {
                    return Err(Error::io("cannot understand the container helper", error));
                }
            }
        }
    }

    async fn died(&mut self) -> Error {
        let how = match (&mut self.exit).await {
            Ok(code) => format!("with code {code}"),
            Err(_) => "unseen".to_owned(),
        };
        Error::Internal(format!("the container helper ended {how} before it was done"))
    }
}

/// A helper has said what it cannot have to say then.
pub fn out_of_turn() -> Error {
    Error::Internal("the container helper spoke out of turn".to_owned())
}
