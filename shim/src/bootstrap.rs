//! How containerd starts a shim: it runs `start` in the bundle and reads an address from stdout.
//!
//! containerd up to 2.2 takes the bare address; from 2.3 on it writes a `BootstrapParams` message to
//! stdin and reads a `BootstrapResult`. The document is `core/runtime/v2/README.md` in containerd.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use oci_spec::runtime::Spec;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use thiserror::Error;

use crate::args::{Action, Args};
use crate::config::Config;
use crate::container::{SpecError, spec};
use crate::options::{OptionsError, config_file};
use crate::record::Record;
use crate::sandbox::size;
use crate::spare::{Claim, Likeness, Place};
use crate::sys::short_name;

/// The first of the descriptors that `start` hands over: a server's listening socket and what it closes once its first
/// container runs, or a spare's lock.
pub const FIRST_FD: i32 = 3;

/// Where containerd's shims have their sockets.
const SOCKET_DIR: &str = "/run/containerd/s";

/// What `start` may read from stdin; more is not a bootstrap message.
const STDIN_LIMIT: u64 = 4 << 20;

/// The annotations that name the pod of a container: the CRI plugin's, and the runc shim's own.
const GROUP_ANNOTATIONS: [&str; 2] =
    ["io.kubernetes.cri.sandbox-id", "io.containerd.runc.v2.group"];

/// Why the server could not be started.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The socket's directory or the socket itself cannot be made.
    #[error("the shim's socket {path}: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The bundle's `config.json` is there and cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The container belongs to a pod whose shim does not answer.
    #[error("the sandbox {group} of container {id} has no running shim (socket {path})")]
    NoSandbox {
        /// The sandbox's id, from the annotation.
        group: String,
        /// The container.
        id: String,
        /// Where its shim would listen.
        path: PathBuf,
    },
    /// The server's process cannot be made.
    #[error("starting the server: {0}")]
    Spawn(io::Error),
    /// The runtime's options cannot be honoured.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Reading containerd's parameters or writing the answer failed.
    #[error("talking to containerd: {0}")]
    Talk(io::Error),
}

/// Does `start`: afterwards a server listens, and containerd knows its address.
pub fn start(args: &Args) -> Result<(), BootstrapError> {
    let (params, options) = read_params().map_err(BootstrapError::Talk)?;
    let args = &Args { config: config_file(&options)?, ..args.clone() };
    let dir = params
        .as_ref()
        .and_then(|params| params.socket_dir.clone())
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(SOCKET_DIR), PathBuf::from);
    let spec = spec::in_bundle(&args.bundle)?;
    let group = spec.as_ref().and_then(group_of).unwrap_or_else(|| args.id.clone());
    let path = socket_path(&dir, &args.address, &args.namespace, &group);

    if group == args.id {
        let listener = listen(&path)?;
        serve(args, spec.as_ref(), listener).map_err(|source| {
            // Nobody will ever listen on it.
            let _ = std::fs::remove_file(&path);
            BootstrapError::Spawn(source)
        })?;
    } else if UnixStream::connect(&path).is_err() {
        return Err(BootstrapError::NoSandbox { group, id: args.id.clone(), path });
    }
    let address = format!("unix://{}", path.display());
    // containerd 1.x finds a running shim again by this file, after it was restarted.
    std::fs::write(args.bundle.join("address"), &address).map_err(BootstrapError::Talk)?;
    answer(address, params.is_some()).map_err(BootstrapError::Talk)
}

/// The socket of the shim that serves `group`; the same words give the same path.
pub fn socket_path(dir: &Path, address: &str, namespace: &str, group: &str) -> PathBuf {
    dir.join(short_name(&[address, namespace, group]))
}

/// The default socket of the shim that serves `group`.
pub fn default_socket_path(address: &str, namespace: &str, group: &str) -> PathBuf {
    socket_path(Path::new(SOCKET_DIR), address, namespace, group)
}

/// The pod that the bundle's container belongs to, if its annotations name one.
pub fn group(bundle: &Path) -> Result<Option<String>, BootstrapError> {
    Ok(spec::in_bundle(bundle)?.as_ref().and_then(group_of))
}

fn group_of(spec: &Spec) -> Option<String> {
    let annotations = spec.annotations().as_ref()?;
    GROUP_ANNOTATIONS.iter().find_map(|name| annotations.get(*name)).cloned()
}

/// containerd's parameters, where it is one that sends them, and the runtime's options, which are among them. Older ones
/// send the options alone (an `Any`), or leave stdin empty; both have another shape than `BootstrapParams`.
fn read_params() -> io::Result<(Option<BootstrapParams>, Vec<Any>)> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    stdin.lock().take(STDIN_LIMIT).read_to_end(&mut bytes)?;
    let params = BootstrapParams::parse_from_bytes(&bytes).ok().filter(|params| {
        !params.containerd_version.is_empty() && !params.containerd_grpc_address.is_empty()
    });
    let options = match &params {
        Some(params) => {
            params.extensions.iter().filter_map(|one| one.value.0.as_deref().cloned()).collect()
        }
        None => Any::parse_from_bytes(&bytes).into_iter().collect(),
    };
    Ok((params, options))
}

fn listen(path: &Path) -> Result<UnixListener, BootstrapError> {
    let failed = |source| BootstrapError::Socket { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    match UnixListener::bind(path) {
        // Left by a shim that was killed; nobody answers there any more.
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() =>
        {
            std::fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)
        }
        bound => bound.map_err(failed),
    }
}

/// Has a server serve on this socket: a spare, or a new process. Spares that are missing are then started.
fn serve(args: &Args, spec: Option<&Spec>, listener: UnixListener) -> io::Result<()> {
    // Whoever serves says what is wrong with the configuration.
    let config = Config::load(args.config.as_deref()).unwrap_or_default();
    let (begin, began) = io::pipe()?;
    let mut claim = if config.spares > 0 { claim(&config, args, spec) } else { None };
    let taken = claim.as_ref().is_some_and(|claim| {
        Place::all(&config).any(|place| place.claim(claim, listener.as_fd(), began.as_fd()).is_ok())
    });
    if !taken {
        let mut server = program(args, &args.namespace, &args.id)?;
        server.arg("-address").arg(&args.address).arg("-bundle").arg(&args.bundle);
        if args.debug {
            server.arg("-debug");
        }
        detached(server, "serve", &[listener.into(), began.into()])?;
    }
    let Some(claim) = &mut claim else { return Ok(()) };
    claim.missed = true;
    let mut room = taken;
    for place in Place::all(&config) {
        let mut free = place.take();
        if !room && matches!(free, Ok(None)) {
            // One of another size makes room, if this size was missed before.
            let _ = place.claim(claim, begin.as_fd(), begin.as_fd());
            free = place.take();
        }
        // A sandbox without a spare after it is better than none.
        if let Ok(Some(lock)) = free
            && let Ok(begin) = begin.try_clone()
            && let Ok(size) = serde_json::to_string(&claim.args.size)
            && let Ok(mut spare) = program(args, Record::SPARE, &place.name())
        {
            room = true;
            spare.stdin(begin).current_dir("/").args(["-size", &size]);
            let _ = detached(spare, "spare", &[lock.into()]);
        }
    }
    Ok(())
}

/// What is asked of a spare; nothing by a sandbox that cannot be. A bundle without a spec does not say how large it is to
/// be: as the configuration has it.
fn claim(config: &Config, args: &Args, spec: Option<&Spec>) -> Option<Claim> {
    let size = match spec {
        Some(spec) => size::of_spec(config, spec)?,
        None => (config.vcpus, config.memory),
    };
    let bundle = std::env::current_dir().unwrap_or_default().join(&args.bundle);
    let args = Args { action: Action::Serve, bundle, size: Some(size), ..args.clone() };
    let likeness = Likeness::own().ok()?;
    Some(Claim { events: events_address(&args), args, likeness, missed: false })
}

/// containerd names its events' socket in the environment; its default is beside the gRPC one.
pub fn events_address(args: &Args) -> String {
    std::env::var("TTRPC_ADDRESS").unwrap_or_else(|_| format!("{}.ttrpc", args.address))
}

/// This program, to do something else.
fn program(args: &Args, namespace: &str, id: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(file) = &args.config {
        command.arg("-config").arg(file);
    }
    command.args(["-namespace", namespace, "-id", id]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// Starts it in a session of its own, with these descriptors from [`FIRST_FD`] on.
fn detached(mut command: Command, action: &str, descriptors: &[OwnedFd]) -> io::Result<()> {
    command.arg(action);
    // Beyond the places that they go to.
    let above = FIRST_FD + i32::try_from(descriptors.len()).unwrap_or(i32::MAX);
    let high: Vec<OwnedFd> = descriptors
        .iter()
        .map(|fd| Ok(rustix::io::fcntl_dupfd_cloexec(fd, above)?))
        .collect::<io::Result<_>>()?;
    // SAFETY: between fork and exec the closure makes system calls only (setsid, dup2), which are async-signal-safe;
    // `high` stays open until `spawn` has returned.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            for (number, fd) in (FIRST_FD..).zip(&high) {
                if libc::dup2(fd.as_raw_fd(), number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn().map(drop)
}

fn answer(address: String, bootstrap: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if bootstrap {
        let result = BootstrapResult {
            version: 3,
            address,
            protocol: "ttrpc".to_owned(),
            ..Default::default()
        };
        stdout.write_all(&result.write_to_bytes().map_err(io::Error::other)?)?;
    } else {
        stdout.write_all(address.as_bytes())?;
    }
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_is_short_whatever_the_id_is() {
        let path =
            default_socket_path("/run/containerd/containerd.sock", "k8s.io", &"x".repeat(500));
        assert!(path.as_os_str().len() < 108, "{path:?}");
    }

    #[test]
    fn every_word_counts_in_the_socket_path() {
        let path = default_socket_path("a", "n", "id");
        assert_eq!(path, default_socket_path("a", "n", "id"));
        for other in [("b", "n", "id"), ("a", "m", "id"), ("a", "n", "ie")] {
            assert_ne!(path, default_socket_path(other.0, other.1, other.2));
        }
    }
}
