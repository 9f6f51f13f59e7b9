//! Connections that are made in the pod's network namespace on the host to an address of its own, as containerd makes
//! them to localhost for `kubectl port-forward`: they go on to the same address in the guest.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use bulkhead_protocols::agent::ConnectRequest;
use slog::{Logger, debug, warn};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Namespace, NetworkError, sk_lookup};
use crate::guest::{Guest, GuestError, carry};

/// How long to wait when the host has no descriptor left for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The forwarding of one pod. Dropping it ends it; connections go on.
pub struct Forward {
    accepting: JoinHandle<()>,
    /// The program is attached as long as this is open.
    _link: OwnedFd,
}

impl Forward {
    /// Starts it in the network namespace at this path.
    pub fn start(namespace: &Path, guest: &Guest, log: &Logger) -> Result<Self, NetworkError> {
        let namespace = Namespace::open(namespace)?;
        let (listener, link) = listen(&namespace).map_err(NetworkError::Listen)?;
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
fn listen(namespace: &Namespace) -> io::Result<(StdListener, OwnedFd)> {
    namespace.inside(|| {
        // One socket for both families; a host may have but one. Neither is to be reached from elsewhere.
        let both = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0));
        let listener = StdListener::bind(both)
            .or_else(|_| StdListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
        listener.set_nonblocking(true)?;
        let link = sk_lookup::attach(listener.as_fd(), namespace.as_fd())?;
        Ok((listener, link))
    })
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
    carry(from, to, input, output).await;
    Ok(())
}

async fn join(
    connection: &TcpStream,
    guest: &Guest,
) -> Result<(UnixStream, UnixStream), GuestError> {
    let dialled = connection.local_addr().map_err(GuestError::Stream)?;
    let address = match dialled.ip().to_canonical() {
        // Whoever says localhost means either family.
        ip if ip.is_loopback() => Vec::new(),
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let request = ConnectRequest {
        port: dialled.port().into(),
        address,
        input: guest.new_stream(),
        output: guest.new_stream(),
        ..Default::default()
    };
    guest.call(async |agent, context| agent.connect(context, &request).await).await?;
    Ok((guest.open_stream(request.input).await?, guest.open_stream(request.output).await?))
}
