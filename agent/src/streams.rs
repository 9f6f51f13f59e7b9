//! The vsock connections that carry stdio: who has announced which number.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_protocols::STREAM_PORT;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::error::{Error, Result};
use crate::sys::lock;

/// How long a connection may take to say its number.
const NUMBER_DEADLINE: Duration = Duration::from_secs(10);

/// The guest's end of all streams: who waits for which number. The host dials what has been announced to it.
pub struct Streams<S = VsockStream>(Mutex<HashMap<u64, oneshot::Sender<S>>>);

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
        let mut waiting = lock(&self.0);
        // Those who have given up leave no trace.
        waiting.retain(|_, tx| !tx.is_closed());
        match waiting.entry(number) {
            Entry::Occupied(_) => {
                Err(Error::InvalidArgument(format!("the stream {number} is taken")))
            }
            Entry::Vacant(entry) => {
                entry.insert(tx);
                Ok(rx)
            }
        }
    }

    fn dialled(&self, number: u64, stream: S) {
        match lock(&self.0).remove(&number) {
            // Who has given up closes the stream by dropping it.
            Some(tx) => drop(tx.send(stream)),
            None => log::warn!("nobody waits for the stream {number}; it is closed"),
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
    fn a_number_has_one_process_and_one_connection() {
        let streams = Streams::new();
        let mut first = streams.announce(1).unwrap();
        streams.announce(1).unwrap_err();
        streams.dialled(1, "one");
        streams.dialled(1, "another");
        assert_eq!(first.try_recv().unwrap(), "one");
        assert!(lock(&streams.0).is_empty());
    }

    #[test]
    fn who_gives_up_leaves_no_trace() {
        let streams: Streams<()> = Streams::new();
        for number in 0..1000 {
            drop(streams.announce(number).unwrap());
        }
        assert!(lock(&streams.0).len() <= 1);
    }
}
