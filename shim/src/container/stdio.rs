//! The stdio of a process: from the FIFOs that containerd made to vsock streams, and back.
//!
//! Bytes are copied straight through with a bounded buffer: a reader that stops reading stops the
//! writer in the guest. An output ends when the guest has sent its last byte, however long after the
//! process that may be.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_protocols::agent;
use rustix::fs::inotify::{self, WatchFlags};
use thiserror::Error;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::guest::{Guest, GuestError, from_guest, to_guest};
use crate::host::by_descriptor;
use crate::sys::{lock, watcher};

/// A stdio path that cannot be used.
#[derive(Debug, Error)]
pub enum StdioError {
    /// The path cannot be opened.
    #[error("{stream} {path}: {source}")]
    Open {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// What containerd named.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path is a URI of a scheme that needs a logging program on the host.
    #[error("{stream} {uri:?}: known are a FIFO's path, fifo:// and file://")]
    Scheme {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// What containerd named.
        uri: String,
    },
}

/// What containerd names; an empty path means that the process has none.
#[derive(Debug, Clone, Default)]
pub struct StdioPaths {
    /// Read by the process.
    pub stdin: String,
    /// Written by the process.
    pub stdout: String,
    /// Written by the process; unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// A FIFO or a file. A FIFO is there once more, to see what is left in it.
type Output = (Box<dyn AsyncWrite + Send + Unpin>, Option<OwnedFd>);

/// How long an output is waited for of which nothing moves: others may hold it open, or nobody read it.
pub const QUIET: Duration = Duration::from_secs(2);

/// The numbers of the streams that will join the host's ends to the guest's, for the agent; 0 for those that are not.
pub fn numbers(paths: &StdioPaths, guest: &Guest) -> agent::Stdio {
    let number = |path: &str| if path.is_empty() { 0 } else { guest.new_stream() };
    let stderr = if paths.terminal { "" } else { &paths.stderr };
    agent::Stdio {
        terminal: paths.terminal,
        stdin: number(&paths.stdin),
        stdout: number(&paths.stdout),
        stderr: number(stderr),
        ..Default::default()
    }
}

/// The host's ends, opened, with the numbers of their streams.
pub struct Prepared {
    stdin: Option<(u64, (pipe::Receiver, OwnedFd))>,
    outputs: Vec<(u64, Output)>,
}

impl Prepared {
    /// Opens what `paths` names.
    pub fn open(paths: &StdioPaths, numbers: &agent::Stdio) -> Result<Self, StdioError> {
        let mut prepared = Self { stdin: None, outputs: Vec::new() };
        if numbers.stdin != 0 {
            prepared.stdin = Some((numbers.stdin, open_stdin(&paths.stdin)?));
        }
        for (stream, path, number) in
            [("stdout", &paths.stdout, numbers.stdout), ("stderr", &paths.stderr, numbers.stderr)]
        {
            if number != 0 {
                prepared.outputs.push((number, open_output(stream, path)?));
            }
        }
        Ok(prepared)
    }

    /// Joins the host's ends to the guest's, which the agent knows by now.
    pub async fn connect(self, guest: &Guest) -> Result<Streams, GuestError> {
        let mut streams = Streams::default();
        for (number, (output, fifo)) in self.outputs {
            let stream = guest.open_stream(number).await?;
            let (ended, moved) = (streams.ended.subscribe(), streams.moved.clone());
            let copy = async move {
                from_guest(stream, output, ended, &moved).await;
                if let Some(fifo) = fifo {
                    // Where it cannot be seen, it is not waited for.
                    let _ = taken(&fifo, &moved).await;
                }
            };
            lock(&streams.outputs).push(tokio::spawn(copy));
        }
        if let Some((number, (fifo, keeper))) = self.stdin {
            let stream = guest.open_stream(number).await?;
            streams.stdin = Mutex::new(Some(keeper));
            streams.input = Some(tokio::spawn(to_guest(fifo, stream)));
        }
        Ok(streams)
    }
}

/// The running copies of one process. Dropping it ends them.
#[derive(Default)]
pub struct Streams {
    /// A writer of the stdin FIFO, so that a client may come and go: its end is the end of stdin.
    stdin: Mutex<Option<OwnedFd>>,
    input: Option<JoinHandle<()>>,
    outputs: Mutex<Vec<JoinHandle<()>>>,
    ended: watch::Sender<bool>,
    moved: Arc<Notify>,
}

impl Streams {
    /// The container has ended, and all who could write with it. A guest that keeps an output open
    /// all the same is not waited for.
    pub fn source_ended(&self) {
        self.ended.send_replace(true);
    }

    /// Ends stdin once the clients that have it open have ended theirs.
    pub fn close_stdin(&self) {
        lock(&self.stdin).take();
    }

    /// Waits until every output has ended and its client has it, as long as bytes move: at most `quiet` without one, and
    /// `at_most` altogether. What takes longer goes on.
    pub async fn settle(&self, quiet: Duration, at_most: Duration) {
        let mut outputs = std::mem::take(&mut *lock(&self.outputs));
        let all = async {
            for output in &mut outputs {
                loop {
                    tokio::select! {
                        _ = &mut *output => break,
                        () = self.moved.notified() => {}
                        () = sleep(quiet) => return,
                    }
                }
            }
        };
        let _ = timeout(at_most, all).await;
        outputs.retain(|output| !output.is_finished());
        *lock(&self.outputs) = outputs;
    }

    /// Waits for the last byte of every output, at most this long, and ends what takes longer.
    pub async fn drain(&self, at_most: Duration) {
        self.settle(at_most, at_most).await;
        self.end_outputs();
    }

    fn end_outputs(&self) {
        for output in lock(&self.outputs).drain(..) {
            output.abort();
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(input) = &self.input {
            input.abort();
        }
        self.end_outputs();
    }
}

fn open_stdin(path: &str) -> Result<(pipe::Receiver, OwnedFd), StdioError> {
    let path = plain_path("stdin", path)?;
    let failed = |source| StdioError::Open { stream: "stdin", path: path.to_owned(), source };
    let fifo = pipe::OpenOptions::new().open_receiver(path).map_err(failed)?;
    // There is a reader now, so this does not fail with ENXIO.
    let keeper =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    Ok((fifo, keeper.into()))
}

fn open_output(stream: &'static str, path: &str) -> Result<Output, StdioError> {
    let (path, create) = match path.strip_prefix("file://") {
        Some(path) => (Path::new(path), true),
        None => (plain_path(stream, path)?, false),
    };
    let failed = |source| StdioError::Open { stream, path: path.to_owned(), source };
    if create && let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    if create || !std::fs::metadata(path).map_err(failed)?.file_type().is_fifo() {
        let file = OpenOptions::new().create(create).append(true).open(path).map_err(failed)?;
        return Ok((Box::new(tokio::fs::File::from_std(file)), None));
    }
    // Open for reading too: opening does not wait for a client, and one that detaches does not
    // break the process's output.
    let fifo = pipe::OpenOptions::new().read_write(true).open_sender(path).map_err(failed)?;
    let again = fifo.as_fd().try_clone_to_owned().map_err(failed)?;
    Ok((Box::new(fifo), Some(again)))
}

/// Waits until the client has read what is in a FIFO, as long as it reads.
async fn taken(fifo: &OwnedFd, moved: &Notify) -> io::Result<()> {
    let reads = watcher()?;
    inotify::add_watch(reads.get_ref(), by_descriptor(fifo), WatchFlags::ACCESS)?;
    while rustix::io::ioctl_fionread(fifo)? > 0 {
        let mut ready = timeout(QUIET, reads.readable()).await??;
        // What it says is that there was a read. It is empty if another wait has taken that.
        let _ = rustix::io::read(reads.get_ref(), &mut [0; 1024]);
        ready.clear_ready();
        moved.notify_one();
    }
    Ok(())
}

fn plain_path<'a>(stream: &'static str, uri: &'a str) -> Result<&'a Path, StdioError> {
    let path = uri.strip_prefix("fifo://").unwrap_or(uri);
    if path.contains("://") {
        return Err(StdioError::Scheme { stream, uri: uri.to_owned() });
    }
    Ok(Path::new(path))
}

#[cfg(test)]
mod tests {
    use bulkhead_protocols::{STREAM_ACK, STREAM_WINDOW};
    use nix::sys::stat::Mode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::Instant;

    use super::*;
    use crate::guest::AFTER_END;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("stdio-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self) -> String {
            format!("file://{}/out", self.0.display())
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.0.join("out")).unwrap()
        }

        fn fifo(&self, name: &str) -> String {
            let path = self.0.join(name);
            nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
            path.to_str().unwrap().to_owned()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Copies what a guest says to this URI; the guest's end of the stream.
    fn copying(uri: &str, ended: watch::Receiver<bool>) -> (UnixStream, JoinHandle<()>) {
        let (output, _) = open_output("stdout", uri).unwrap();
        let (guest, host) = UnixStream::pair().unwrap();
        (guest, tokio::spawn(async move { from_guest(host, output, ended, &Notify::new()).await }))
    }

    /// A container that has not ended.
    fn running() -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(false);
        // Its end is not told.
        std::mem::forget(sender);
        receiver
    }

    #[tokio::test]
    async fn an_output_that_a_guest_keeps_open_ends_after_its_container() {
        let dir = Dir::new("kept");
        let (ended, receiver) = watch::channel(false);
        let (mut guest, copying) = copying(&dir.file(), receiver);
        guest.write_all(b"last words").await.unwrap();
        ended.send_replace(true);
        tokio::time::pause();
        // It never closes its end, and says something now and then.
        let mut refused = false;
        for _ in 0..10 {
            tokio::time::sleep(AFTER_END / 4).await;
            refused |= guest.write_all(b".").await.is_err();
        }
        assert!(refused, "each word is another delay");
        copying.await.unwrap();
        assert!(dir.text().starts_with("last words"));
    }

    #[tokio::test]
    async fn what_a_guest_writes_without_end_after_its_container_has_an_end() {
        let (_ended, ended) = watch::channel(true);
        let (mut guest, host) = UnixStream::pair().unwrap();
        let flood = async { while guest.write_all(&[7; STREAM_ACK]).await.is_ok() {} };
        let (mut taken, moved) = (Vec::new(), Notify::new());
        tokio::join!(flood, from_guest(host, &mut taken, ended, &moved));
        assert!(taken.len() <= 4 << 20, "{} bytes", taken.len());
    }

    #[tokio::test]
    async fn all_is_read_from_a_guest_that_has_closed_already() {
        let dir = Dir::new("closed");
        let (output, _) = open_output("stdout", &dir.file()).unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let length = 2 * STREAM_WINDOW + 1;
        guest.write_all(&vec![7; length]).await.unwrap();
        drop(guest);
        from_guest(host, output, running(), &Notify::new()).await;
        assert_eq!(dir.text().len(), length);
    }

    #[tokio::test]
    async fn output_survives_a_client_that_detaches() {
        let dir = Dir::new("detach");
        let path = dir.fifo("out");
        let (mut guest, copying) = copying(&path, running());
        let first = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        drop(first);
        guest.write_all(b"late").await.unwrap();
        let mut second = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        drop(guest);
        let mut read = String::new();
        second.read_to_string(&mut read).await.unwrap();
        copying.await.unwrap();
        assert_eq!(read, "late");
    }

    #[tokio::test]
    async fn what_a_client_has_not_read_yet_is_waited_for() {
        let dir = Dir::new("left");
        let path = dir.fifo("out");
        let (mut output, fifo) = open_output("stdout", &path).unwrap();
        let (fifo, moved) = (fifo.unwrap(), Notify::new());
        taken(&fifo, &moved).await.unwrap();
        let mut client = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        output.write_all(b"the tail").await.unwrap();
        let mut read = [0; 4];
        let reading = async {
            for part in [b"the ", b"tail"] {
                sleep(Duration::from_millis(50)).await;
                client.read_exact(&mut read).await.unwrap();
                assert_eq!(&read, part);
            }
            Instant::now()
        };
        let waiting = async {
            taken(&fifo, &moved).await.unwrap();
            Instant::now()
        };
        let (read, waited) = tokio::join!(reading, waiting);
        assert!(read <= waited);

        output.write_all(b"for nobody").await.unwrap();
        tokio::time::pause();
        taken(&fifo, &moved).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_reader_that_stops_stops_the_writer() {
        let dir = Dir::new("pressure");
        let (guest, _copying) = copying(&dir.fifo("out"), running());
        let block = vec![7; 1 << 20];
        let mut sent = 0;
        loop {
            let write = async {
                guest.writable().await?;
                guest.try_write(&block)
            };
            match tokio::time::timeout(Duration::from_millis(300), write).await {
                Ok(Ok(count)) => sent += count,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(Err(error)) => panic!("{error}"),
                Err(_) => break,
            }
            assert!(sent < 8 << 20, "nothing holds the writer back");
        }
    }

    #[tokio::test]
    async fn what_is_handed_on_is_acknowledged() {
        let dir = Dir::new("ack");
        let (mut guest, copying) = copying(&dir.file(), running());
        let mut acks = [0; 8];
        guest.write_all(&vec![1; 2 * STREAM_ACK + 1]).await.unwrap();
        guest.read_exact(&mut acks[..2]).await.unwrap();
        guest.write_all(&vec![1; STREAM_ACK - 1]).await.unwrap();
        guest.read_exact(&mut acks[..1]).await.unwrap();
        drop(guest);
        copying.await.unwrap();
        assert_eq!(dir.text().len(), 3 * STREAM_ACK);
    }

    #[tokio::test]
    async fn stdin_ends_when_it_is_closed_and_not_when_a_client_leaves() {
        let dir = Dir::new("stdin");
        let path = dir.fifo("in");
        let (fifo, keeper) = open_stdin(&path).unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let copying = tokio::spawn(to_guest(fifo, host));
        for word in ["one ", "two"] {
            std::fs::write(&path, word).unwrap();
        }
        let mut read = [0; 7];
        guest.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"one two");
        assert!(!copying.is_finished());
        drop(keeper);
        assert_eq!(guest.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_used_is_named() {
        let error = open_output("stdout", "/nonexistent/out").err().unwrap().to_string();
        assert!(error.starts_with("stdout /nonexistent/out: No such file"), "{error}");
        let error = open_output("stderr", "binary:///bin/logger?x=1").err().unwrap().to_string();
        assert!(error.contains("binary:///bin/logger"), "{error}");
    }
}
