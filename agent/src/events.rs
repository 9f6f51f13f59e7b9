//! What the host is told without asking, in order.

use std::sync::Mutex;

use bulkhead_protocols::agent::event::Kind;
use bulkhead_protocols::agent::{ContainerRef, Event, Exit, ProcessRef};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::error::{Error, Result};
use crate::sys::lock;

/// The queue of events. Nothing in it is lost while no one listens: there is one for the end of each process that the
/// host asked for, and one each time that a container's memory ran out.
pub struct Events {
    tx: UnboundedSender<Event>,
    rx: Mutex<Option<UnboundedReceiver<Event>>>,
}

impl Events {
    /// An empty queue.
    pub fn new() -> Self {
        let (tx, rx) = unbounded_channel();
        Self { tx, rx: Mutex::new(Some(rx)) }
    }

    /// A process has ended.
    pub fn exit(&self, process: ProcessRef, status: u32) {
        self.push(Kind::Exit(Exit { process: Some(process).into(), status, ..Default::default() }));
    }

    /// Memory ran out, and a process of `container` was killed for it.
    pub fn oom(&self, container: &str) {
        self.push(Kind::Oom(ContainerRef {
            container: container.to_owned(),
            ..Default::default()
        }));
    }

    /// The reading end, for the one call that streams it: the VM ends with the stream.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if a call has had it.
    pub fn take(&self) -> Result<UnboundedReceiver<Event>> {
        lock(&self.rx).take().ok_or_else(|| {
            Error::FailedPrecondition("the events are already being streamed".to_owned())
        })
    }

    fn push(&self, kind: Kind) {
        // The receiver is dropped only with the stream to the host, and the VM ends with that.
        let _ = self.tx.send(Event { kind: Some(kind), ..Default::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_wait_in_order_for_their_one_reader() {
        let events = Events::new();
        events.oom("c");
        events.exit(ProcessRef { container: "c".to_owned(), ..Default::default() }, 137);
        let mut rx = events.take().unwrap();
        events.take().unwrap_err();
        assert!(matches!(rx.try_recv().unwrap().kind, Some(Kind::Oom(_))));
        match rx.try_recv().unwrap().kind {
            Some(Kind::Exit(exit)) => assert_eq!(exit.status, 137),
            other => panic!("{other:?}"),
        }
    }
}
