//! Connections from the pod's network namespace on the host to what listens in the guest.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bulkhead_protocols::agent::ConnectRequest;
use tokio::net::TcpStream;

use crate::error::{Error, Result};
use crate::stdio::{copy, send};
use crate::streams::Streams;

/// Connects to a port of the guest, and copies both ways from then on until either side has enough.
///
/// # Errors
/// [`Error::FailedPrecondition`] if nobody listens, [`Error::InvalidArgument`] if the streams can't be had.
pub async fn connect(streams: &Streams, request: &ConnectRequest) -> Result<()> {
    let port = u16::try_from(request.port)
        .map_err(|_| Error::InvalidArgument(format!("there is no port {}", request.port)))?;
    let connection = dial(port).await.map_err(|error| {
        Error::FailedPrecondition(format!("nobody listens on port {port} of localhost: {error}"))
    })?;
    let input = streams.announce(request.input)?;
    let output = streams.announce(request.output)?;
    let (from, to) = connection.into_split();
    tokio::spawn(async move {
        let Ok(input) = input.await else { return };
        // Its end is the end of what the peer gets to read.
        copy(input, to).await;
    });
    tokio::spawn(async move {
        let Ok(output) = output.await else { return };
        send(from, output).await;
    });
    Ok(())
}

/// Dials localhost, the families in containerd's order.
async fn dial(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Err(_) => TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await,
        connected => connected,
    }
}
