//! The server of one sandbox: from the inherited socket to the last event.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocols::agent_ttrpc::create_sandbox;
use bulkhead_protocols::chain;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use oci_spec::runtime::{Process, Spec};
use slog::{Logger, error, info, warn};
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::timeout;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::diagnostics::Diagnostics;
use super::sandbox as sandbox_api;
use super::task::services;
use crate::args::Args;
use crate::bootstrap::{FIRST_FD, events_address};
use crate::config::{Config, ConfigError};
use crate::container::spec;
use crate::events::Publisher;
use crate::logging;
use crate::sandbox::{Identity, Origin, Pod, Sandbox};
use crate::spare::Place;
use crate::storage::share::enter_mount_namespace;

/// How long containerd may leave a server without a container. It asks for the first one at once;
/// a server that nobody asks is one that containerd has lost.
const IDLE: Duration = Duration::from_secs(120);

/// How long the last events may take to reach containerd.
const FLUSH: Duration = Duration::from_secs(5);

/// How long what is under way in other threads may take at the end.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Why a server cannot run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The descriptor that `start` hands over is not a listening socket.
    #[error("descriptor {FIRST_FD} is no listening socket: {0}; the server is run by start")]
    Listener(io::Error),
    /// A descriptor that `start` hands over is missing.
    #[error("a descriptor from {FIRST_FD} on: {0}; servers and spares are run by start")]
    Descriptor(io::Error),
    /// A mount namespace cannot be made.
    #[error("a mount namespace of its own: {0}")]
    Namespace(io::Error),
    /// The runtime, or a signal handler, cannot be made.
    #[error("starting up: {0}")]
    Runtime(io::Error),
    /// The RPC server cannot be made.
    #[error("the RPC server: {0}")]
    Rpc(#[from] ttrpc::Error),
}

/// Serves until containerd says that it may end, or a signal does.
pub fn serve(args: &Args) -> Result<(), ServeError> {
    let prepared = inherited().map_err(ServeError::Descriptor).and_then(|[listener, began]| {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true).map_err(ServeError::Listener)?;
        Ok((listener, began, prepare()?))
    });
    // It has a thread of its own.
    let (config, log) = open(args);
    let said = |error: &ServeError| error!(log, "{}", chain(error));
    let (listener, began, runtime) = prepared.inspect_err(said)?;
    if let Ok(config) = &config
        && config.spares > 0
    {
        let words: Vec<_> = Place::all(config).filter_map(|place| place.last_word()).collect();
        info!(log, "no spare guest was taken, so one boots"; "ended" => words.join("; "));
    }
    let events = events_address(args);
    let origin = Origin { spare: None, began };
    to_the_end(runtime, run(args, events, config, listener, origin, &log)).inspect_err(said)
}

/// Does this, and ends the runtime, whatever its threads wait for: a mount from a server that is gone may have no end.
pub fn to_the_end<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WORK);
    done
}

/// Reads the configuration, and opens the log of a sandbox as that says.
pub fn open(args: &Args) -> (Result<Config, ConfigError>, Logger) {
    let config = Config::load(args.config.as_deref());
    let level = logging::level(config.as_ref().ok(), args.debug);
    let log = logging::start(&args.bundle, &args.namespace, &args.id, level);
    (config, log)
}

/// Makes this process one that can have a sandbox. It has one thread until then.
pub fn prepare() -> Result<Runtime, ServeError> {
    raise_descriptors();
    enter_mount_namespace().map_err(ServeError::Namespace)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Runtime)
}

/// Serves a sandbox on its socket, which goes away afterwards. `events` is the address of containerd's events.
pub async fn run(
    args: &Args,
    events: String,
    config: Result<Config, ConfigError>,
    listener: UnixListener,
    origin: Origin,
    log: &Logger,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    let socket = address.as_pathname().map(PathBuf::from);
    let socket =
        socket.ok_or_else(|| ServeError::Listener(io::ErrorKind::AddrNotAvailable.into()))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    let (publisher, forwarding) = Publisher::start(events, args.namespace.clone(), log);
    let spec = spec::in_bundle(&args.bundle);
    if let Err(error) = take_oom_score(spec.as_ref().ok().and_then(Option::as_ref)) {
        warn!(log, "the sandbox keeps containerd's OOM score: {error}");
    }
    let identity =
        Identity { namespace: args.namespace.clone(), id: args.id.clone(), socket: socket.clone() };
    let pod = match &spec {
        Ok(Some(spec)) => Some(Pod::of_spec(spec)),
        // The sandbox API will tell.
        Ok(None) => None,
        // It fails at Create, with the spec's error.
        Err(_) => Some(Pod::default()),
    };
    let sandbox = Sandbox::launch(identity, config, pod, origin, publisher, log);
    let stop = Arc::new(Notify::new());
    let listener = tokio::net::UnixListener::from_std(listener).map_err(ServeError::Listener)?;
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(services(&sandbox, &stop))
        .register_service(sandbox_api::service(&sandbox, &stop))
        .register_service(create_sandbox(Arc::new(Diagnostics(sandbox.clone()))));
    server.start().await?;

    tokio::select! {
        () = stop.notified() => {}
        _ = terminate.recv() => info!(log, "ends on SIGTERM"),
        _ = interrupt.recv() => info!(log, "ends on SIGINT"),
        () = idle(&sandbox) => warn!(log, "ends: containerd asked for no container"),
    }
    server.stop_listen().await;
    // Later it may be that of the next shim for the same id.
    let _ = std::fs::remove_file(&socket);
    sandbox.shutdown().await;
    server.disconnect().await;
    drop((server, sandbox));
    if timeout(FLUSH, forwarding).await.is_err() {
        warn!(log, "ends with events that containerd did not take");
    }
    Ok(())
}

/// containerd's children have the limit that it was started with, often 1024; a connection takes several. Without it there
/// are fewer of them.
fn raise_descriptors() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// containerd protects itself from the host's OOM killer, and its children with it. What runs for
/// a container is as dear as the spec says, the VMM and the daemons too, which inherit this.
pub fn take_oom_score(spec: Option<&Spec>) -> io::Result<()> {
    let process = spec.and_then(|spec| spec.process().as_ref());
    let score = process.and_then(Process::oom_score_adj).unwrap_or(0);
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// Returns when the sandbox has been without a container for too long.
async fn idle(sandbox: &Sandbox) {
    loop {
        tokio::time::sleep(IDLE).await;
        if sandbox.is_empty() {
            return;
        }
    }
}

/// The descriptors that `start` hands over, in the order in which it does.
pub fn inherited<const COUNT: usize>() -> io::Result<[OwnedFd; COUNT]> {
    let mut descriptors = Vec::with_capacity(COUNT);
    for number in (FIRST_FD..).take(COUNT) {
        // SAFETY: borrowed for this call only, which reports a closed descriptor as an error.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // SAFETY: the descriptor is open, and `start` handed it over to be owned here; this runs once in a process.
        descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    descriptors.try_into().map_err(|_| io::ErrorKind::InvalidInput.into())
}
