//! Connections to localhost in the pod's network namespace on the host, where containerd dials for `kubectl
//! port-forward`: they go on to localhost in the guest.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_protocols::agent::ConnectRequest;
use nix::sched::{CloneFlags, setns};
use slog::{Logger, debug, warn};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::sk_lookup;
use crate::guest::{Guest, GuestError, from_guest, to_guest};

/// How long to wait when the host has no descriptor left for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A pod's network namespace that cannot be used.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// It is not there.
    #[error("the pod's network namespace {path}: {source}")]
    Namespace {
        /// Its name on the host.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its connections cannot be taken.
    #[error("connections to localhost cannot be taken")]
    Listen(#[source] io::Error),
}

/// The forwarding of one pod. Dropping it ends it; connections go on.
pub struct Forward {
    accepting: JoinHandle<()>,
    /// The program is attached as long as this is open.
    _link: OwnedFd,
}

impl Forward {
    /// Starts it in the network namespace at this path.
    pub fn start(namespace: &Path, guest: &Guest, log: &Logger) -> Result<Self, NetworkError> {
        let path = namespace.to_owned();
        let failed = |source| NetworkError::Namespace { path, source };
        let namespace = File::open(namespace).map_err(failed)?;
        let (listener, link) = listen(namespace).map_err(NetworkError::Listen)?;
        let listener = TcpListener::from_std(listener).map_err(NetworkError::Listen)?;
        let accepting = tokio::spawn(accept(listener, guest.clone(), log.clone()));
        Ok(Self { accepting, _link: link })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A listener in the namespace that gets every connection over its loopback interface.
fn listen(namespace: File) -> io::Result<(StdListener, OwnedFd)> {
    let work = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        // One socket for both families; a host may have but one. Neither is to be reached from elsewhere.
        let both = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0));
        let listener = StdListener::bind(both)
            .or_else(|_| StdListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
        listener.set_nonblocking(true)?;
        let link = sk_lookup::attach(listener.as_fd(), namespace.as_fd())?;
        Ok((listener, link))
    };
    // A thread of its own, which ends in the namespace that it has entered.
    std::thread::spawn(work).join().map_err(|_| io::Error::other("the thread broke off"))?
}

async fn accept(listener: TcpListener, guest: Guest, log: Logger) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let (guest, log) = (guest.clone(), log.clone());
                tokio::spawn(async move {
                    if let Err(error) = forward(connection, &guest).await {
                        debug!(log, "a connection is not forwarded: {error}");
                    }
                });
            }
            Err(error) => {
                warn!(log, "a forwarded connection cannot be accepted: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Carries one connection. What the guest does not take is reset, as by a port on which nobody listens.
async fn forward(connection: TcpStream, guest: &Guest) -> Result<(), GuestError> {
    let joined = join(&connection, guest).await;
    let (input, output) = match joined {
        Ok(streams) => streams,
        Err(error) => {
            // Without it the peer would see an orderly end. A socket without the option ends in order.
            let _ = connection.set_zero_linger();
            return Err(error);
        }
    };
    let (from, to) = connection.into_split();
    let (_open, ended) = watch::channel(false);
    tokio::join!(to_guest(from, input), from_guest(output, to, ended));
    Ok(())
}

async fn join(
    connection: &TcpStream,
    guest: &Guest,
) -> Result<(UnixStream, UnixStream), GuestError> {
    let port = connection.local_addr().map_err(GuestError::Stream)?.port();
    let request = ConnectRequest {
        port: port.into(),
        input: guest.new_stream(),
        output: guest.new_stream(),
        ..Default::default()
    };
    guest.call(async |agent, context| agent.connect(context, &request).await).await?;
    Ok((guest.open_stream(request.input).await?, guest.open_stream(request.output).await?))
}
