//! Copying bytes with back-pressure, and without a buffer where there is nothing to copy.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bulkhead_protocols::STREAM_WINDOW;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::output::Output;

/// How much is copied at a time.
const SIZE: usize = STREAM_WINDOW;

/// How many buffers are kept for later.
const KEPT: usize = 4;

thread_local! {
    /// The agent has one thread. Streams are idle most of the time, and share these.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Copies until the source ends or the sink does, and closes both.
pub async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    while let Ok(chunk) = read(&mut from, SIZE).await {
        if chunk.bytes().is_empty() || to.write_all(chunk.bytes()).await.is_err() {
            return;
        }
    }
}

/// Copies to the host, as fast as the host takes it, until the source ends or the host has enough.
/// Then both are closed.
pub async fn send<S: AsyncRead + AsyncWrite>(mut from: impl AsyncRead + Unpin, to: S) {
    let mut to = Output::new(to);
    while let Ok(room) = to.room().await {
        match read(&mut from, room).await {
            Ok(chunk) if !chunk.bytes().is_empty() => {
                if to.send(chunk.bytes()).await.is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// Waits for bytes, at most `limit`, and has a buffer only when there are some. None are the end.
async fn read(from: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Chunk> {
    poll_fn(|cx| {
        let mut chunk = Chunk::new();
        let limit = limit.min(chunk.buffer.len());
        let mut buffer = ReadBuf::new(&mut chunk.buffer[..limit]);
        match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                chunk.length = buffer.filled().len();
                Poll::Ready(Ok(chunk))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// A buffer with something in it.
struct Chunk {
    buffer: Box<[u8]>,
    length: usize,
}

impl Chunk {
    fn new() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self { buffer: spare.unwrap_or_else(|| vec![0; SIZE].into()), length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn every_byte_arrives_in_order_however_slow_the_reader() {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut source, from) = tokio::io::duplex(1000);
            let (to, mut sink) = tokio::io::duplex(7);
            tokio::spawn(copy(from, to));
            let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
            let expected = sent.clone();
            tokio::spawn(async move { source.write_all(&sent).await.unwrap() });
            let mut received = Vec::new();
            sink.read_to_end(&mut received).await.unwrap();
            assert!(received == expected);
        });
    }

    #[test]
    fn a_sink_that_is_gone_closes_the_source() {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut source, from) = tokio::io::duplex(10);
            let (to, sink) = tokio::io::duplex(10);
            drop(sink);
            let copying = tokio::spawn(copy(from, to));
            source.write_all(b"x").await.unwrap();
            copying.await.unwrap();
            assert!(source.write_all(b"y").await.is_err());
        });
    }

    #[test]
    fn output_waits_for_the_host_and_ends_with_the_process() {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut process, from) = tokio::io::duplex(1 << 20);
            let (to, mut host) = tokio::io::duplex(1 << 20);
            tokio::spawn(send(from, to));
            process.write_all(&vec![7; 2 * STREAM_WINDOW]).await.unwrap();
            drop(process);
            let mut first = vec![0; STREAM_WINDOW];
            host.read_exact(&mut first).await.unwrap();
            host.write_all(&[0; 8]).await.unwrap();
            let mut rest = Vec::new();
            host.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest.len(), STREAM_WINDOW);
        });
    }

    #[test]
    fn buffers_are_kept_up_to_a_bound() {
        drop((0..3 * KEPT).map(|_| Chunk::new()).collect::<Vec<_>>());
        assert_eq!(SPARE.with_borrow(Vec::len), KEPT);
    }
}
