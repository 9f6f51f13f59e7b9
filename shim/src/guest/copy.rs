//! Bytes between a stream of the guest and whatever the host has for it.

use std::io;
use std::time::Duration;

use bulkhead_protocols::{STREAM_ACK, STREAM_WINDOW};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

/// Bytes in flight on their way to the guest; also what a FIFO holds.
const BUFFER: usize = 64 << 10;

/// How long, all in all, an output may be waited for once its container has ended: what the guest
/// still had is under way then.
pub const AFTER_END: Duration = Duration::from_secs(30);

/// How many bytes an output may still bring then: what a process's pipe holds (pipe(7)), and what is under way.
const LEFT: usize = 4 << 20;

/// Copies what the guest sends, and closes `to` at its end. `ended` becomes true when nobody in the guest can have
/// more to say; one that keeps the stream open all the same is not waited for. `moved` hears of all that `to` has taken.
pub async fn from_guest(
    stream: UnixStream,
    to: impl AsyncWrite + Unpin,
    ended: watch::Receiver<bool>,
    moved: &Notify,
) {
    // An error of either side is the end: the client is gone, or the process, or the VM, and each of
    // these is reported where it happens.
    let _ = hand_on(stream, to, ended, moved).await;
}

/// Copies to the end, and acknowledges what the far side has taken.
async fn hand_on(
    mut stream: UnixStream,
    mut to: impl AsyncWrite + Unpin,
    mut ended: watch::Receiver<bool>,
    moved: &Notify,
) -> io::Result<()> {
    let mut buffer = vec![0; STREAM_WINDOW];
    let mut taken = 0;
    let (mut patience, mut left) = (AFTER_END, LEFT);
    loop {
        let count = read(&mut stream, &mut buffer, &mut ended, &mut patience).await?;
        if *ended.borrow() {
            left = left.saturating_sub(count);
        }
        if count == 0 || left == 0 {
            return to.shutdown().await;
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match to.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => rest = &rest[written..],
            }
            moved.notify_one();
        }
        taken += count;
        // As many bytes as it is; their value means nothing. There is room for them: a guest sends no more than
        // its window without them. One that does, or that has closed, takes none, and is not waited for.
        let _ = stream.try_write(&buffer[..taken / STREAM_ACK]);
        taken %= STREAM_ACK;
    }
}

/// Reads what there is; 0 at the end. Once the source has ended, waiting uses up `patience`: the
/// client's slowness does not, the guest's does.
async fn read(
    stream: &mut UnixStream,
    buffer: &mut [u8],
    ended: &mut watch::Receiver<bool>,
    patience: &mut Duration,
) -> io::Result<usize> {
    let reading = stream.read(buffer);
    tokio::pin!(reading);
    tokio::select! {
        count = &mut reading => return count,
        // An error means that the streams are being dropped.
        _ = ended.wait_for(|ended| *ended) => {}
    }
    let since = Instant::now();
    match timeout(*patience, reading).await {
        Ok(count) => {
            *patience = patience.saturating_sub(since.elapsed());
            count
        }
        Err(_) => Ok(0),
    }
}

/// Carries a connection by two streams until both of its ways have ended.
pub async fn carry(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    input: UnixStream,
    output: UnixStream,
) {
    let (_open, ended) = watch::channel(false);
    let moved = Notify::new();
    tokio::join!(to_guest(from, input), from_guest(output, to, ended, &moved));
}

/// Copies to the guest, and tells it of the end.
pub async fn to_guest(from: impl AsyncRead + Unpin, mut stream: UnixStream) {
    let mut from = BufReader::with_capacity(BUFFER, from);
    if tokio::io::copy_buf(&mut from, &mut stream).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
