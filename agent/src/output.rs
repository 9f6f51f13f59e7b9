//! An output stream: bytes of a process on their way to the host, within a window.
//!
//! The host acknowledges what it has handed on (agent.proto), so the agent never has more on the way
//! than the window, whatever buffers lie between.

use std::io;

use bulkhead_protocols::{STREAM_ACK, STREAM_WINDOW};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// The largest write to a vsock connection. The kernel sends one of more than 32 KiB as a packet of
/// several buffers, and vhost-device-vsock drops such a packet without a word.
pub const LARGEST_PACKET: usize = 16 << 10;

/// The guest's end of an output stream.
pub struct Output<S> {
    acks: ReadHalf<S>,
    bytes: WriteHalf<S>,
    room: usize,
}

impl<S: AsyncRead + AsyncWrite> Output<S> {
    /// Takes a connection that the host has dialled for this.
    pub fn new(stream: S) -> Self {
        let (acks, bytes) = tokio::io::split(stream);
        Self { acks, bytes, room: STREAM_WINDOW }
    }

    /// How many bytes may be sent now, at least one: waits for the host to take some if need be.
    ///
    /// # Errors
    /// `UnexpectedEof` if the host has closed the stream, and what the connection itself says.
    pub async fn room(&mut self) -> io::Result<usize> {
        while self.room == 0 {
            let mut acks = [0; STREAM_WINDOW / STREAM_ACK];
            match self.acks.read(&mut acks).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.room = (self.room + count * STREAM_ACK).min(STREAM_WINDOW),
            }
        }
        Ok(self.room)
    }

    /// Sends bytes, no more than there is room for.
    ///
    /// # Errors
    /// What the connection says.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.room = self.room.saturating_sub(bytes.len());
        for packet in bytes.chunks(LARGEST_PACKET) {
            self.bytes.write_all(packet).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn no_more_than_the_window_is_on_the_way() {
        let (near, mut host) = UnixStream::pair().unwrap();
        let mut output = Output::new(near);
        assert_eq!(output.room().await.unwrap(), STREAM_WINDOW);
        output.send(&vec![7; STREAM_WINDOW]).await.unwrap();
        host.write_all(&[0]).await.unwrap();
        assert_eq!(output.room().await.unwrap(), STREAM_ACK);
        output.send(&vec![7; STREAM_ACK]).await.unwrap();
        drop(host);
        output.room().await.unwrap_err();
    }
}
