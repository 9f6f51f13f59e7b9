//! Task events to containerd, in the order in which they happened.
//!
//! containerd's runtime-v2 document makes the order a MUST (create before start before exit before
//! delete). One task owns the queue and the connection, so nothing can overtake.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use slog::{Logger, debug, warn};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::transport::Socket;

/// How long containerd may take to accept one event.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long after a failure, and how often, an event is offered again. containerd may be
/// restarting: together a little over a minute.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRIES: u32 = 120;

/// How many events may wait before news that there is more of is no longer added.
const ENOUGH: usize = 256;

/// The protobuf package of the messages.
const PACKAGE: &str = "containerd.events";

/// A message that containerd publishes under a topic.
pub trait Event: Message {
    /// The topic.
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($message:ty => $topic:ident),* $(,)?) => {
        $(impl Event for $message { const TOPIC: &'static str = topics::$topic; })*
    };
}

topics! {
    TaskCreate => TASK_CREATE_EVENT_TOPIC,
    TaskStart => TASK_START_EVENT_TOPIC,
    TaskExecAdded => TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted => TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskExit => TASK_EXIT_EVENT_TOPIC,
    TaskDelete => TASK_DELETE_EVENT_TOPIC,
    TaskOOM => TASK_OOM_EVENT_TOPIC,
    TaskPaused => TASK_PAUSED_EVENT_TOPIC,
    TaskResumed => TASK_RESUMED_EVENT_TOPIC,
}

/// The near end of the queue.
#[derive(Clone)]
pub struct Publisher {
    namespace: String,
    queue: mpsc::UnboundedSender<Envelope>,
    waiting: Arc<AtomicUsize>,
    log: Logger,
}

impl Publisher {
    /// Starts the task that forwards to containerd's ttrpc socket at `address`. It ends, all events
    /// forwarded or given up, after the last `Publisher` is gone.
    pub fn start(address: String, namespace: String, log: &Logger) -> (Self, JoinHandle<()>) {
        let (queue, events) = mpsc::unbounded_channel();
        let waiting = Arc::<AtomicUsize>::default();
        let task = tokio::spawn(forward(address, events, waiting.clone(), log.clone()));
        (Self { namespace, queue, waiting, log: log.clone() }, task)
    }

    /// Whether containerd has been away for so long that what a guest can repeat is better left out.
    pub fn is_behind(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= ENOUGH
    }

    /// Puts an event behind all earlier ones.
    pub fn publish<E: Event>(&self, event: &E) {
        let event = match packed(&format!("{PACKAGE}.{}", E::NAME), event) {
            Ok(event) => event,
            Err(error) => {
                warn!(self.log, "an event cannot be encoded: {error}"; "topic" => E::TOPIC);
                return;
            }
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // The far end is gone only when the process ends.
        let _ = self.queue.send(envelope);
    }
}

/// A message that travels in another one, by its full name.
pub fn packed(name: &str, message: &impl Message) -> protobuf::Result<Any> {
    let value = message.write_to_bytes()?;
    Ok(Any { type_url: name.to_owned(), value, ..Default::default() })
}

/// A time as protobuf has it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    time.into()
}

async fn forward(
    address: String,
    mut events: mpsc::UnboundedReceiver<Envelope>,
    waiting: Arc<AtomicUsize>,
    log: Logger,
) {
    let mut client = None;
    while let Some(envelope) = events.recv().await {
        let topic = envelope.topic.clone();
        let request =
            ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        let mut failures = 0;
        loop {
            match forward_one(&address, &mut client, &request).await {
                Ok(()) => {
                    debug!(log, "event forwarded"; "topic" => &topic);
                    break;
                }
                Err(error) if failures == RETRIES => {
                    warn!(log, "event lost, containerd does not take it: {error}"; "topic" => &topic);
                    break;
                }
                Err(_) => {
                    failures += 1;
                    client = None;
                    sleep(RETRY_AFTER).await;
                }
            }
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn forward_one(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let events = match client {
        Some(events) => events,
        None => {
            let path = address.strip_prefix("unix://").unwrap_or(address);
            let connected = timeout(DEADLINE, UnixStream::connect(path)).await;
            let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let stream = stream.map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
            client.insert(EventsClient::new(Client::new(Socket::new(stream))))
        }
    };
    events.forward(ttrpc::context::with_duration(DEADLINE), request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_publisher_knows_that_nobody_listens() {
        let log = Logger::root(slog::Discard, slog::o!());
        let (publisher, _forwarding) =
            Publisher::start("/nowhere".to_owned(), "ns".to_owned(), &log);
        for _ in 1..ENOUGH {
            publisher.publish(&TaskOOM::default());
        }
        assert!(!publisher.is_behind());
        publisher.publish(&TaskOOM::default());
        assert!(publisher.is_behind());
    }
}
