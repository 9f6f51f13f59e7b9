//! Hybrid vsock, as Firecracker and cloud-hypervisor define it: the guest's vsock ports behind one
//! unix socket on the host.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The answer is `OK <port>\n`; a port has ten digits at most.
const ANSWER_LIMIT: usize = 16;

/// Connects to a port on which a process in the guest listens. `socket` is the VM's vsock socket.
///
/// # Errors
/// `ConnectionRefused` if nobody listens on the port, `InvalidData` if the answer is no hybrid
/// vsock, and whatever the socket itself says. There is no deadline in it.
pub async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(ANSWER_LIMIT);
    loop {
        // Byte by byte: what follows the line belongs to the guest's program.
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < ANSWER_LIMIT => answer.push(byte),
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no hybrid vsock"));
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "no hybrid vsock"))
    }
}

/// The socket on which the host accepts what the guest connects to `port` of CID 2.
pub fn host_port(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn connect_to(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = std::env::temp_dir().join(format!("vsock-{}-{:p}", std::process::id(), answer));
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("s");
        let listener = UnixListener::bind(&path)?;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            let mut line = [0; 13];
            stream.read_exact(&mut line).await?;
            assert_eq!(&line, b"CONNECT 1025\n");
            stream.write_all(answer).await
        });
        let stream = connect(&path, 1025).await;
        let _ = server.await;
        std::fs::remove_dir_all(&dir)?;
        stream
    }

    #[tokio::test]
    async fn data_behind_the_answer_is_the_programs() {
        let mut stream = connect_to(b"OK 1073741824\ndata").await.unwrap();
        let mut data = String::new();
        stream.read_to_string(&mut data).await.unwrap();
        assert_eq!(data, "data");
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        assert_eq!(connect_to(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn an_endless_answer_is_no_hybrid_vsock() {
        let error = connect_to(b"OK 11111111111111111111111111111").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
