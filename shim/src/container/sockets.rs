//! Sockets of the host that a container reaches: each connection to the guest's socket becomes one to the host's.

use std::fs::Metadata;
use std::io::{self, ErrorKind::WouldBlock};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_protocols::{SOCKETS_DIR, agent};
use slog::{Logger, debug, warn};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use ttrpc::Code;

use crate::guest::{Guest, GuestError, carry};
use crate::storage::host;

/// How many connections to all sockets of a sandbox there may be at once; more wait in the guest. A shim has one sandbox.
static CONNECTIONS: Semaphore = Semaphore::const_new(256);

/// How long to wait when the guest cannot accept a connection, or the server has too many that it has not accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a connection that the guest has accepted may wait for its place: half of what the agent waits.
const PLACE: Duration = Duration::from_secs(30);

/// How often a server is asked that has too many.
const ATTEMPTS: u32 = 100;

/// A socket of the host, and where the guest has its own for it.
#[derive(Debug, Clone)]
pub struct Socket {
    /// On the host, without symbolic links. Whoever listens there may do so anew.
    host: PathBuf,
    /// In the guest, with the mode and the owner of the host's.
    pub guest: agent::Socket,
}

impl Socket {
    /// The one at this path of the host, which has no symbolic links, for the `number`th mount of a container.
    pub fn new(host: PathBuf, found: &Metadata, container: &str, number: usize) -> Socket {
        let guest = agent::Socket {
            path: format!("{SOCKETS_DIR}/{container}/{number}"),
            mode: found.permissions().mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            ..Default::default()
        };
        Socket { host, guest }
    }
}

/// The forwarding of one socket. Dropping it ends it, with its connections.
#[derive(Debug)]
pub struct Forwarding(JoinHandle<()>);

impl Forwarding {
    /// Starts it; the container is there.
    pub fn start(socket: Socket, container: &str, guest: &Guest, log: &Logger) -> Forwarding {
        let (container, guest, log) = (container.to_owned(), guest.clone(), log.clone());
        Forwarding(tokio::spawn(async move {
            let path = socket.host.display().to_string();
            let error = forward(socket, &container, &guest, &log).await;
            debug!(log, "{path} is forwarded no longer: {error}");
        }))
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes one connection after the other from the guest, until its container is gone.
async fn forward(socket: Socket, container: &str, guest: &Guest, log: &Logger) -> GuestError {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // While there are too many the next one waits in the guest; a socket without connections takes no place.
        drop(CONNECTIONS.acquire().await);
        let request = agent::AcceptRequest {
            container: container.to_owned(),
            path: socket.guest.path.clone(),
            input: guest.new_stream(),
            output: guest.new_stream(),
            ..Default::default()
        };
        match guest.accept(&request).await {
            Ok(()) => {}
            Err(
                error @ (GuestError::Lost(_) | GuestError::Refused { code: Code::NOT_FOUND, .. }),
            ) => return error,
            Err(error) => {
                warn!(log, "a connection to {} is not accepted: {error}", socket.host.display());
                sleep(PAUSE).await;
                continue;
            }
        }
        // The guest ends one that nobody dials; after that its streams would wait for ever.
        let Ok(place) = timeout(PLACE, CONNECTIONS.acquire()).await else { continue };
        let (host, guest, log) = (socket.host.clone(), guest.clone(), log.clone());
        connections.spawn(async move {
            let _place = place;
            let streams = tokio::try_join!(
                guest.open_stream(request.input),
                guest.open_stream(request.output)
            );
            let (input, output) = match streams {
                Ok(streams) => streams,
                Err(error) => return debug!(log, "a connection is not forwarded: {error}"),
            };
            // Without a connection the streams are closed again, and so is the guest's end.
            match connect(&host).await {
                Ok(connection) => {
                    let (from, to) = connection.into_split();
                    carry(from, to, input, output).await;
                }
                Err(error) => debug!(log, "{}: {error}", host.display()),
            }
        });
    }
}

/// Connects to what the host has there now. A guest may have the directory, too, and links in it lead nowhere. By
/// descriptor: paths of sockets are short (unix(7)).
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let owned = path.to_owned();
    let found = spawn_blocking(move || host::find_exactly(&owned)).await;
    let found = found.map_err(io::Error::other)??;
    let mut attempts = 0..ATTEMPTS;
    loop {
        match UnixStream::connect(host::by_descriptor(&found)).await {
            Err(error) if error.kind() == WouldBlock && attempts.next().is_some() => {
                sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}
