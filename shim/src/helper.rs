//! Programs that a sandbox runs on the host: the VMM, the file-share daemon, the vsock daemon.
//!
//! None of them outlives the shim: each asks the kernel for SIGKILL at its parent's death. The
//! kernel means the parent *thread* (prctl(2), `PR_SET_PDEATHSIG`), so helpers are spawned from
//! the main thread; a current-thread runtime there does.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid, pipe2};
use thiserror::Error;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::process::{ProcessId, kill, pidfd};

/// How much of what a helper printed is kept, in bytes: the end says why it failed.
const OUTPUT_TAIL: usize = 4096;

/// How much a pipe holds, in bytes (pipe(7)).
const PIPE: usize = 64 << 10;

/// A helper that could not be started.
#[derive(Debug, Error)]
#[error("{} cannot be started", program.display())]
pub struct SpawnError {
    /// The program.
    pub program: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The end of a helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub status: Status,
    /// The end of what it printed on stdout and stderr.
    pub output: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Code(code) => write!(f, "ended with exit code {code}"),
            Status::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Status::Signal(signal),
            None => Status::Code(status.code().unwrap_or(-1)),
        }
    }
}

/// A helper's command line.
#[derive(Debug)]
pub struct HelperCommand {
    role: &'static str,
    command: Command,
    inherited: Vec<OwnedFd>,
    network: Option<OwnedFd>,
}

impl HelperCommand {
    /// `role` is the helper's name in records and messages.
    #[must_use]
    pub fn new(role: &'static str, program: &Path) -> Self {
        HelperCommand { role, command: Command::new(program), inherited: Vec::new(), network: None }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.command.args(args);
        self
    }

    /// Hands a descriptor over to the helper; it has the returned number there.
    pub fn inherit(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        let fd = fd.into();
        let number = fd.as_raw_fd();
        self.inherited.push(fd);
        number
    }

    /// Hands the queues of taps over; they have the returned numbers there.
    pub fn inherit_taps(&mut self, taps: Vec<Vec<OwnedFd>>) -> Vec<Vec<RawFd>> {
        let mut inherit = |queues: Vec<OwnedFd>| -> Vec<RawFd> {
            queues.into_iter().map(|queue| self.inherit(queue)).collect()
        };
        taps.into_iter().map(&mut inherit).collect()
    }

    /// Has the helper run in this network namespace instead of the shim's.
    pub fn network(&mut self, namespace: OwnedFd) -> &mut Self {
        self.network = Some(namespace);
        self
    }

    /// Starts the helper. Its stdin is /dev/null; what it prints is kept to its last 4 KiB.
    ///
    /// # Errors
    /// [`SpawnError`]
    pub fn spawn(self) -> Result<Helper, SpawnError> {
        let program = self.command.as_std().get_program().into();
        start(self).map_err(|source| SpawnError { program, source })
    }
}

fn start(wanted: HelperCommand) -> io::Result<Helper> {
    let HelperCommand { role, mut command, inherited, network } = wanted;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let output = pipe::Receiver::from_owned_fd(reader)?;
    command
        // Where anything below fails, nothing stays.
        .kill_on_drop(true)
        // containerd's environment is not theirs: its LD_LIBRARY_PATH has them load libraries from anywhere.
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::from(writer.try_clone()?))
        .stderr(Stdio::from(writer));
    let shim = getpid();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The shim may have died before the line above.
        if getppid() != shim {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if let Some(network) = &network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        for fd in &inherited {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `prepare` only makes system calls; it allocates nothing and
    // takes no lock.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    drop(command);

    // Nothing has waited for the child yet, so the id is still its own.
    let pid = child.id().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let handle = pidfd(pid)?;
    let process = ProcessId::of(role, pid)?;
    let (sender, ended) = watch::channel(None);
    tokio::spawn(watch_child(child, output, sender));
    Ok(Helper { role, process, handle, ended })
}

/// A running helper. Dropping it kills it.
#[derive(Debug)]
pub struct Helper {
    role: &'static str,
    process: ProcessId,
    handle: OwnedFd,
    ended: watch::Receiver<Option<Ended>>,
}

impl Helper {
    /// Its name in records and messages.
    #[must_use]
    pub fn role(&self) -> &'static str {
        self.role
    }

    /// Which process it is.
    #[must_use]
    pub fn process(&self) -> &ProcessId {
        &self.process
    }

    /// Returns at its end; any number of callers may wait.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        // The sender goes away without a word only together with the runtime.
        let lost = || Ended { status: Status::Signal(libc::SIGKILL), output: String::new() };
        match ended.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }

    /// Kills it; one that has ended is left alone.
    pub fn kill(&self) {
        // It is our own child, which makes EPERM, the one error left, impossible.
        let _ = kill(&self.handle);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Collects what the child prints, and reports its end.
async fn watch_child(
    mut child: Child,
    output: pipe::Receiver,
    sender: watch::Sender<Option<Ended>>,
) {
    let mut tail = Tail::default();
    let mut open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            readable = output.readable(), if open => {
                open = readable.is_ok() && tail.take_from(&output);
            }
        }
    };
    // What it wrote last is still in the pipe; what a child of its goes on writing is none of its end.
    (0..=PIPE / OUTPUT_TAIL).all(|_| tail.take_from(&output));
    let status = match status {
        Ok(status) => status.into(),
        // Only if someone else has waited for our child.
        Err(_) => Status::Code(-1),
    };
    sender.send_replace(Some(Ended { status, output: tail.text() }));
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    /// Takes some of what is there now, so that a helper that never pauses has no say in what else is done; false at
    /// the stream's end.
    fn take_from(&mut self, output: &pipe::Receiver) -> bool {
        let mut buffer = [0; OUTPUT_TAIL];
        match output.try_read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.push(&buffer[..n]);
                true
            }
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let excess = self.0.len().saturating_sub(OUTPUT_TAIL);
        self.0.drain(..excess);
    }

    fn text(mut self) -> String {
        String::from_utf8_lossy(self.0.make_contiguous()).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::process::start_time;

    fn shell(script: &str) -> HelperCommand {
        let mut command = HelperCommand::new("sh", Path::new("/bin/sh"));
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn the_end_comes_with_code_and_output() {
        let helper = shell("echo out; echo err >&2; exit 3").spawn().expect("spawn");
        let ended = helper.wait().await;
        assert_eq!(ended.status, Status::Code(3));
        assert_eq!(ended.output, "out\nerr");
        assert_eq!(helper.wait().await, ended, "a second wait sees the same");
    }

    #[tokio::test]
    async fn a_kill_ends_it_and_may_be_repeated() {
        let helper = shell("exec sleep 100").spawn().expect("spawn");
        helper.kill();
        assert_eq!(helper.wait().await.status, Status::Signal(libc::SIGKILL));
        helper.kill();
    }

    #[tokio::test]
    async fn only_the_end_of_much_output_is_kept() {
        let helper = shell("yes | head -c 1000000; echo last").spawn().expect("spawn");
        let ended = helper.wait().await;
        assert_eq!(ended.status, Status::Code(0));
        assert!(ended.output.len() <= OUTPUT_TAIL);
        assert!(ended.output.ends_with("y\nlast"), "{}", ended.output);
    }

    #[tokio::test]
    async fn a_helper_that_never_pauses_lets_others_go_on() {
        let helper = shell("exec yes").spawn().expect("spawn");
        tokio::time::sleep(Duration::from_millis(50)).await;
        helper.kill();
        assert_eq!(helper.wait().await.status, Status::Signal(libc::SIGKILL));
    }

    #[tokio::test]
    async fn a_grandchild_that_never_pauses_delays_nothing() {
        // Which ends when nobody reads what it writes.
        let helper = shell("yes & sleep 0.1").spawn().expect("spawn");
        let ended = tokio::time::timeout(Duration::from_secs(5), helper.wait()).await;
        assert_eq!(ended.expect("no wait for the grandchild").status, Status::Code(0));
    }

    #[tokio::test]
    async fn a_grandchild_that_keeps_the_output_open_delays_nothing() {
        let helper = shell("sleep 100 & echo $!; exit 0").spawn().expect("spawn");
        let ended = tokio::time::timeout(Duration::from_secs(5), helper.wait()).await;
        let ended = ended.expect("no wait for the grandchild");
        let grandchild = ended.output.parse().expect("its id");
        kill(&pidfd(grandchild).expect("pidfd")).expect("kill");
    }

    #[tokio::test]
    async fn a_dropped_helper_is_killed() {
        let helper = shell("exec sleep 100").spawn().expect("spawn");
        let ended = helper.ended.clone();
        drop(helper);
        let mut ended = ended;
        let ended = ended.wait_for(Option::is_some).await.expect("an end").clone();
        assert_eq!(ended.map(|e| e.status), Some(Status::Signal(libc::SIGKILL)));
    }

    #[tokio::test]
    async fn a_descriptor_is_inherited_under_its_number_and_no_other_is() {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).expect("pipe");
        let (private, _also_private) = pipe2(OFlag::O_CLOEXEC).expect("pipe");
        let mut command = HelperCommand::new("sh", Path::new("/bin/sh"));
        let number = command.inherit(theirs);
        let other = private.as_raw_fd();
        let script = format!("read a </dev/fd/{number}; echo $a; test ! -e /dev/fd/{other}");
        command.args(["-c", &script]);
        let helper = command.spawn().expect("spawn");
        File::from(ours).write_all(b"hello\n").expect("write");
        let ended = helper.wait().await;
        assert_eq!(ended.status, Status::Code(0));
        assert_eq!(ended.output, "hello");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = HelperCommand::new("x", Path::new("/nowhere/x")).spawn().expect_err("missing");
        assert_eq!(error.to_string(), "/nowhere/x cannot be started");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_process_has_the_start_time_that_it_was_spawned_with() {
        let helper = shell("exec sleep 100").spawn().expect("spawn");
        let process = helper.process();
        assert_eq!(start_time(process.pid).expect("stat"), process.start_time);
    }

    #[test]
    fn an_end_reads_as_a_sentence() {
        assert_eq!(Status::Code(1).to_string(), "ended with exit code 1");
        assert_eq!(Status::Signal(9).to_string(), "was killed by SIGKILL");
        assert_eq!(Status::Signal(64).to_string(), "was killed by signal 64");
    }
}
