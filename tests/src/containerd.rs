//! A containerd of the tests' own: its root, state and sockets in one scratch directory, and nothing
//! shared with a containerd that the machine may run.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::command::{self, Finished, Input};
use crate::failure::{Context, Failure, Outcome};
use crate::leftovers;
use crate::network::Network;
use crate::options::{Generation, Options, Runtime};
use crate::shim;

/// The containerd namespace of the tests.
pub const NAMESPACE: &str = "e2e";

/// Speaking CRI.
const CRI: &str = r#"
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime","#;

/// What the plugins that stay off would do: look for devices and file systems that are not there, or
/// make directories on the host.
const DISABLED: &str = r#"
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
"#;

/// What a containerd is for.
pub struct Role {
    /// The containerd namespace that `ctr` works in.
    pub namespace: &'static str,
    /// The network namespace that it runs in; without one, the host's.
    pub network: Option<Network>,
    /// Its CRI plugin's configuration, for a scratch directory; without it, the plugin is off.
    pub cri: Option<fn(&Options, &Path) -> String>,
}

impl Role {
    /// Containers for `ctr`.
    pub const fn plain() -> Self {
        Self { namespace: NAMESPACE, network: None, cri: None }
    }
}

/// Configures the snapshotter that has its snapshots in image files, and makes the one that it starts from.
fn blockfile(dir: &Path) -> Outcome<String> {
    let image = dir.join("blockfile");
    File::create(&image)?.set_len(128 << 20)?;
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    mkfs.args(["-q", "-F"]).arg(&image);
    command::run(mkfs, Input::Null, Duration::from_secs(20))?.ok()?;
    let name = "plugins.\"io.containerd.snapshotter.v1.blockfile\"";
    let keys = "fs_type = \"ext4\"\n  mount_options = [\"loop\"]";
    Ok(format!("[{name}]\n  scratch_file = {image:?}\n  {keys}\n"))
}

/// A running containerd.
pub struct Containerd {
    dir: TempDir,
    options: Arc<Options>,
    role: Role,
    path: OsString,
    process: Mutex<Option<Child>>,
}

impl Containerd {
    /// Starts one, with an empty configuration file for the shim.
    ///
    /// # Errors
    /// A program is missing, or it doesn't serve before the deadline.
    pub fn start(options: &Arc<Options>, role: Role) -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("bh-").tempdir_in(&options.scratch)?;
        let mut dirs = options.tool_dirs();
        if options.runtime == Runtime::Bulkhead {
            let shim = options.built(shim::program(Runtime::Bulkhead))?;
            dirs.splice(0..0, shim.parent().map(Path::to_path_buf));
        }
        let system = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(dirs.into_iter().chain(std::env::split_paths(&system)))?;
        // The older one has no such snapshotter.
        let snapshotters = match options.generation {
            Generation::One => String::new(),
            Generation::Two => blockfile(dir.path())?,
        };
        let cri = role.cri.map_or_else(String::new, |config| config(options, dir.path()));
        let (version, disabled) = match (role.cri, options.generation) {
            (None, _) => (2, CRI),
            (Some(_), Generation::One) => (2, ""),
            (Some(_), Generation::Two) => (3, ""),
        };
        let containerd =
            Self { dir, options: Arc::clone(options), role, path, process: Mutex::new(None) };
        containerd.configure("")?;
        let text = format!(
            "version = {version}\nroot = {:?}\nstate = {:?}\noom_score = 0\n\
             disabled_plugins = [{disabled}{DISABLED}]\n\
             [grpc]\n  address = {:?}\n[debug]\n  level = \"info\"\n{snapshotters}{cri}",
            containerd.at("root"),
            containerd.state(),
            containerd.socket()
        );
        fs::write(containerd.at("containerd.toml"), text)?;
        containerd.launch()?;
        Ok(containerd)
    }

    /// Replaces the shim's configuration file; shims that start from now on read it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn configure(&self, text: &str) -> Outcome {
        fs::write(self.config_file(), text).context("config.toml")
    }

    /// The shim's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.at("config.toml")
    }

    /// The scratch directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// containerd's state directory: its bundles are below it.
    pub fn state(&self) -> PathBuf {
        self.at("state")
    }

    /// The socket on which it serves.
    pub fn socket(&self) -> PathBuf {
        self.at("c.sock")
    }

    /// The network namespace that it runs in, if it has one of its own.
    pub fn network(&self) -> Option<&Network> {
        self.role.network.as_ref()
    }

    /// The bundle of a running task.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.state().join("io.containerd.runtime.v2.task").join(self.role.namespace).join(id)
    }

    /// What containerd, and through it the shims, have logged.
    pub fn log(&self) -> String {
        fs::read(self.at("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The process id.
    pub fn pid(&self) -> Option<i32> {
        self.slot().as_ref().map(|child| child.id() as i32)
    }

    /// Whether the process has ended without being told to.
    pub fn has_ended(&self) -> bool {
        // A process that is about to end has closed its socket already.
        let mut slot = self.slot();
        let ends = UnixStream::connect(self.socket()).is_err();
        let Some(pid) = slot.as_ref().map(|child| child.id() as i32).filter(|_| ends) else {
            return false;
        };
        leftovers::await_end(pid, self.options.deadline(5));
        slot.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// A `ctr` that speaks to this containerd.
    pub fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.tool("ctr");
        command.arg("--address").arg(self.socket());
        command.args(["--namespace", self.role.namespace]).args(args);
        command
    }

    /// A program where containerd looks for its shims.
    pub fn found(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.path).map(|dir| dir.join(name)).find(|file| file.is_file())
    }

    /// A program of the chosen generation, with the environment that containerd has.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.found(name).unwrap_or_else(|| name.into()));
        command.env("PATH", &self.path).env("BULKHEAD_CONFIG", self.config_file());
        command
    }

    /// Runs `ctr` to its end.
    ///
    /// # Errors
    /// It isn't over at the deadline.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Outcome<Finished> {
        command::run(self.ctr(args), Input::Null, self.options.deadline(60))
    }

    /// Runs `bulkhead` to its end.
    ///
    /// # Errors
    /// It isn't over at the deadline.
    pub fn bulkhead(&self, args: &[&str]) -> Outcome<Finished> {
        let mut tool = self.tool("bulkhead");
        tool.args(args);
        command::run(tool, Input::Null, self.options.deadline(30))
    }

    /// Imports the test image from its tar file.
    ///
    /// # Errors
    /// containerd refuses it.
    pub fn import(&self, tar: &Path) -> Outcome {
        self.run(["image", "import", &tar.to_string_lossy()])?.ok().map(drop)
    }

    /// Starts the process and waits until it serves.
    ///
    /// # Errors
    /// It ends, or doesn't serve before the deadline.
    pub fn launch(&self) -> Outcome {
        let log = File::options().create(true).append(true).open(self.at("log"))?;
        let mut command = self.tool("containerd");
        command.arg("--config").arg(self.at("containerd.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let events = Inotify::init(InitFlags::IN_NONBLOCK)?;
        events.add_watch(self.dir(), AddWatchFlags::IN_CREATE)?;
        let child = match self.network() {
            Some(network) => network.inside(|| command.spawn())?,
            None => command.spawn(),
        };
        let child = child.context("cannot run containerd: was `make setup` run?")?;
        *self.slot() = Some(child);
        let limit = Instant::now() + self.options.deadline(30);
        while UnixStream::connect(self.socket()).is_err() {
            let ended = self.slot().as_mut().map(Child::try_wait).transpose()?.flatten();
            crate::ensure!(ended.is_none(), "containerd ended:\n{}", command::tail(&self.log()));
            crate::ensure!(
                Instant::now() < limit,
                "containerd doesn't serve:\n{}",
                command::tail(&self.log())
            );
            // A new name in the directory, or, since nothing tells of a bind becoming a listen, soon.
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20u8))?;
            let _ = events.read_events();
        }
        self.run(["version"])?.ok().map(drop)
    }

    /// Ends the process, as a service manager would; the shims go on.
    ///
    /// # Errors
    /// It isn't over at the deadline.
    pub fn stop(&self) -> Outcome {
        let Some(child) = self.slot().take() else {
            return Ok(());
        };
        let pid = Pid::from_raw(child.id() as i32);
        kill(pid, Signal::SIGTERM)?;
        let status = command::wait(child, pid, self.options.deadline(20))?;
        if status.is_none() {
            // Not a leader of a group of its own, so it is not dead yet.
            kill(pid, Signal::SIGKILL)?;
            return Err(Failure::new("containerd ignored SIGTERM"));
        }
        Ok(())
    }

    /// Takes away what a failed test has left. What can't be taken away is seen by the checks of the whole run.
    fn sweep(&self) {
        let left = self.run(["container", "list", "-q"]).map(|done| done.out()).unwrap_or_default();
        for id in left.split_whitespace() {
            let _ = self.run(["task", "delete", "--force", id]);
            let _ = self.run(["container", "delete", id]);
        }
        if self.options.runtime == Runtime::Bulkhead {
            let _ = self.bulkhead(&["gc", "--spares"]);
        }
    }

    /// Keeps the scratch directory, and says where it is.
    pub fn keep(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir().to_path_buf()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.slot().is_some() {
            self.sweep();
        }
        // A failed stop has already been told by whoever called it.
        let _ = self.stop();
    }
}
