//! Connections from the pod's network namespace on the host to what listens in the guest, and the guest's to sockets of
//! the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bulkhead_protocols::agent::ConnectRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::stdio::{copy, send};
use crate::streams::Streams;

/// How long the host may take to dial the streams of a connection.
const DIALLING: Duration = Duration::from_secs(60);

/// Connects to a port of the guest, and copies both ways from then on until either side has enough.
///
/// # Errors
/// [`Error::FailedPrecondition`] if nobody listens, [`Error::InvalidArgument`] if the streams can't be had.
pub async fn connect(streams: &Streams, request: &ConnectRequest) -> Result<()> {
    let port = u16::try_from(request.port)
        .map_err(|_| Error::InvalidArgument(format!("there is no port {}", request.port)))?;
    let addresses = addresses(&request.address)?;
    let connection = dial(&addresses, port).await.map_err(|error| {
        Error::FailedPrecondition(format!(
            "nobody listens on port {port} of {addresses:?}: {error}"
        ))
    })?;
    let (from, to) = connection.into_split();
    carry(streams, from, to, (request.input, request.output))
}

/// Copies from one stream of the host, and to another, until either side has enough.
///
/// # Errors
/// [`Error::InvalidArgument`] if the streams can't be had.
pub fn carry(
    streams: &Streams,
    from: impl AsyncRead + Unpin + 'static + Send,
    to: impl AsyncWrite + Unpin + 'static + Send,
    (input, output): (u64, u64),
) -> Result<()> {
    let (input, output) = (streams.announce(input)?, streams.announce(output)?);
    tokio::spawn(async move {
        let Ok(Ok(input)) = timeout(DIALLING, input).await else { return };
        // Its end is the end of what the peer gets to read.
        copy(input, to).await;
    });
    tokio::spawn(async move {
        let Ok(Ok(output)) = timeout(DIALLING, output).await else { return };
        send(from, output).await;
    });
    Ok(())
}

/// The one that was dialled; localhost stands for both families, in containerd's order.
fn addresses(dialled: &[u8]) -> Result<Vec<IpAddr>> {
    if dialled.is_empty() {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let v4 = <[u8; 4]>::try_from(dialled).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(dialled).map(IpAddr::from));
    let unknown = |_| Error::InvalidArgument(format!("{dialled:?} is no address"));
    Ok(vec![address.map_err(unknown)?])
}

async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::from((*ip, port))).collect();
    TcpStream::connect(addresses.as_slice()).await
}
