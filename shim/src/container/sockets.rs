//! Sockets of the host that a container reaches: each connection to the guest's socket becomes one to the host's.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use bulkhead_protocols::{SOCKETS_DIR, agent};
use slog::{Logger, debug};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};

use crate::guest::{Guest, GuestError, carry};
use crate::storage::host;

/// How many connections to one socket there may be at once; more wait in the guest.
const CONNECTIONS: usize = 256;

/// A socket of the host, and where the guest has its own for it.
#[derive(Debug, Clone)]
pub struct Socket {
    /// On the host. Whoever listens there may do so anew.
    host: PathBuf,
    /// In the guest, with the mode and the owner of the host's.
    pub guest: agent::Socket,
}

impl Socket {
    /// The one at this path of the host, for the `number`th mount of a container.
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

/// Takes one connection after the other from the guest, until it has no more.
async fn forward(socket: Socket, container: &str, guest: &Guest, log: &Logger) -> GuestError {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let request = agent::AcceptRequest {
            container: container.to_owned(),
            path: socket.guest.path.clone(),
            input: guest.new_stream(),
            output: guest.new_stream(),
            ..Default::default()
        };
        if let Err(error) = guest.accept(&request).await {
            return error;
        }
        let (host, guest, log) = (socket.host.clone(), guest.clone(), log.clone());
        connections.spawn(async move {
            let streams = tokio::try_join!(
                guest.open_stream(request.input),
                guest.open_stream(request.output)
            );
            // Without a connection the streams are closed again, and so is the guest's end.
            match (streams, connect(host.clone()).await) {
                (Ok((input, output)), Ok(connection)) => {
                    let (from, to) = connection.into_split();
                    carry(from, to, input, output).await;
                }
                (_, Err(error)) => debug!(log, "{}: {error}", host.display()),
                (Err(error), _) => debug!(log, "a connection is not forwarded: {error}"),
            }
        });
    }
}

/// Connects to what the host has there now. By descriptor: paths of sockets are short (unix(7)).
async fn connect(path: PathBuf) -> io::Result<UnixStream> {
    let found = spawn_blocking(move || host::find(&path)).await.map_err(io::Error::other)??;
    UnixStream::connect(host::by_descriptor(&found)).await
}
