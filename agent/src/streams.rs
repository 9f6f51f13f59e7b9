//! The vsock connections that carry stdio: who announced which number, and who has dialled it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_protocols::STREAM_PORT;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::error::{Error, Result};
use crate::sys::lock;

/// How many connections may wait for the call that announces them.
const MAX_WAITING: usize = 256;

/// How long a connection may take to say its number.
const NUMBER_DEADLINE: Duration = Duration::from_secs(10);

/// One end of a pair that waits for the other.
enum Half<S> {
    /// The host has dialled; no process has announced the number yet.
    Dialled(S),
    /// A process waits for the host to dial.
    Announced(oneshot::Sender<S>),
}

/// The guest's end of all streams: pairs connections and processes by number, whichever comes first.
pub struct Streams<S = VsockStream>(Mutex<HashMap<u64, Half<S>>>);

impl<S> Streams<S> {
    /// No stream yet.
    pub fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Announces a number. The receiver gets the connection when the host dials it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if another process has announced the number.
    pub fn announce(&self, number: u64) -> Result<oneshot::Receiver<S>> {
        let (tx, rx) = oneshot::channel();
        let mut halves = lock(&self.0);
        match halves.remove(&number) {
            Some(Half::Dialled(stream)) => drop(tx.send(stream)),
            Some(Half::Announced(other)) if !other.is_closed() => {
                halves.insert(number, Half::Announced(other));
                return Err(Error::InvalidArgument(format!("the stream {number} is taken")));
            }
            Some(Half::Announced(_)) | None => {
                // Those who have given up waiting leave no trace.
                halves.retain(|_, half| !matches!(half, Half::Announced(tx) if tx.is_closed()));
                halves.insert(number, Half::Announced(tx));
            }
        }
        Ok(rx)
    }

    fn dialled(&self, number: u64, stream: S) {
        let mut halves = lock(&self.0);
        match halves.remove(&number) {
            // A process that has given up closes the stream by dropping it.
            Some(Half::Announced(tx)) => drop(tx.send(stream)),
            Some(first @ Half::Dialled(_)) => {
                log::warn!("the stream {number} was dialled twice");
                halves.insert(number, first);
            }
            None if halves.values().filter(|half| matches!(half, Half::Dialled(_))).count()
                >= MAX_WAITING =>
            {
                log::warn!("too many streams wait to be announced; {number} is closed");
            }
            None => drop(halves.insert(number, Half::Dialled(stream))),
        }
    }
}

impl Streams {
    /// The socket on which the host dials; to be had before the host may dial.
    ///
    /// # Errors
    /// When the guest has no vsock.
    pub fn bind() -> std::io::Result<VsockListener> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT))
    }

    /// Accepts streams for as long as the guest lives, from the host alone.
    pub async fn run(self: Arc<Self>, listener: VsockListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if peer.cid() == VMADDR_CID_HOST => {
                    let streams = Arc::clone(&self);
                    tokio::spawn(async move { streams.number_and_pair(stream).await });
                }
                Ok((_, peer)) => log::warn!("refused a stream from {peer:?}"),
                Err(error) => {
                    // Out of descriptors or memory; both pass.
                    log::error!("cannot accept a stream: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn number_and_pair(&self, mut stream: VsockStream) {
        match timeout(NUMBER_DEADLINE, stream.read_u64()).await {
            Ok(Ok(number)) => self.dialled(number, stream),
            Ok(Err(error)) => log::warn!("a stream ended before it said its number: {error}"),
            Err(_) => log::warn!("a stream did not say its number in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_meet_whichever_comes_first() {
        let streams = Streams::new();
        let mut early = streams.announce(1).unwrap();
        streams.dialled(1, "one");
        assert_eq!(early.try_recv().unwrap(), "one");

        streams.dialled(2, "two");
        let mut late = streams.announce(2).unwrap();
        assert_eq!(late.try_recv().unwrap(), "two");
        assert!(lock(&streams.0).is_empty());
    }

    #[test]
    fn a_number_has_one_process_and_one_connection() {
        let streams = Streams::new();
        let mut first = streams.announce(1).unwrap();
        streams.announce(1).unwrap_err();
        streams.dialled(1, "one");
        assert_eq!(first.try_recv().unwrap(), "one");

        streams.dialled(2, "first");
        streams.dialled(2, "second");
        assert_eq!(streams.announce(2).unwrap().try_recv().unwrap(), "first");
    }

    #[test]
    fn what_waits_is_bounded() {
        let streams = Streams::new();
        for number in 0..2 * MAX_WAITING as u64 {
            streams.dialled(number, ());
        }
        assert_eq!(lock(&streams.0).len(), MAX_WAITING);

        let streams: Streams<()> = Streams::new();
        for number in 0..1000 {
            drop(streams.announce(number).unwrap());
        }
        assert!(lock(&streams.0).len() <= 1);
    }
}
