//! The way into the guest: calls to the agent, each with a deadline, and stdio streams.
//!
//! Everything that comes back was written by an attacker. Numbers are numbers, and text is cut,
//! cleaned and shown to people, nothing else.

mod copy;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_protocols::agent::{
    AcceptRequest, ContainerRef, DiagnosticsResponse, Empty, Event, SetupRequest, SetupResponse,
    StatsResponse,
};
use bulkhead_protocols::agent_ttrpc::AgentClient;
use bulkhead_protocols::{STREAM_PORT, hybrid_vsock};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::Code;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::asynchronous::{Client, ClientStreamReceiver};
use ttrpc::context::Context;

pub use copy::{AFTER_END, carry, from_guest, to_guest};

/// How long the agent may take for a call. Creating a container under software emulation on a busy
/// host takes seconds; nothing takes a minute.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// How long the guest may take for its last sync.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// How many lines or numbers of a guest's account of itself are kept.
const DIAGNOSTICS_LIMIT: usize = 256;

/// More block devices than these are not counted.
const DEVICES: usize = 64;

/// How much of an error's text is kept.
const TEXT_LIMIT: usize = 2048;

/// A call to the agent that did not succeed.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The agent refused; the code is one of those that agent.proto names.
    #[error("{text}")]
    Refused {
        /// NOT_FOUND, ALREADY_EXISTS, INVALID_ARGUMENT, FAILED_PRECONDITION or INTERNAL.
        code: Code,
        /// Its reason, cleaned.
        text: String,
    },
    /// The agent did not answer in time.
    #[error("the guest did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The connection is gone: so is the VM, or it will be soon.
    #[error("the connection to the guest is lost: {0}")]
    Lost(String),
    /// A stdio stream cannot be opened.
    #[error("a stdio stream to the guest cannot be opened: {0}")]
    Stream(#[source] io::Error),
}

/// A guest whose agent answers.
#[derive(Clone)]
pub struct Guest {
    client: AgentClient,
    vsock: Arc<Path>,
    next_stream: Arc<AtomicU64>,
}

impl Guest {
    /// Takes the connection on which the agent serves, and the VM's vsock socket.
    pub fn new(control: UnixStream, vsock: PathBuf) -> Self {
        Self {
            client: AgentClient::new(Client::new(Socket::new(control))),
            vsock: vsock.into(),
            next_stream: Arc::new(AtomicU64::new(1)),
        }
    }

    /// Makes the guest ready for containers, within this time.
    pub async fn setup(
        &self,
        request: &SetupRequest,
        deadline: Duration,
    ) -> Result<SetupResponse, GuestError> {
        let setup = async |agent: &AgentClient, context| agent.setup(context, request).await;
        self.call_within(deadline, setup).await
    }

    /// Syncs the guest's file systems; the VM may be ended afterwards.
    pub async fn shutdown(&self) -> Result<(), GuestError> {
        let nothing = Empty::new();
        let shutdown = async |agent: &AgentClient, context| agent.shutdown(context, &nothing).await;
        self.call_within(SHUTDOWN_DEADLINE, shutdown).await.map(drop)
    }

    /// What happens in the guest from now on.
    pub async fn events(&self) -> Result<ClientStreamReceiver<Event>, GuestError> {
        let nothing = Empty::new();
        self.call(async |agent, context| agent.events(context, &nothing).await).await
    }

    /// Returns when a container has connected to a socket, however long that takes.
    pub async fn accept(&self, request: &AcceptRequest) -> Result<(), GuestError> {
        let accept = async |agent: &AgentClient, context| agent.accept(context, request).await;
        self.call_within(Duration::MAX, accept).await.map(drop)
    }

    /// How the guest sees itself, fit to be shown.
    pub async fn diagnostics(&self) -> Result<DiagnosticsResponse, GuestError> {
        let nothing = Empty::new();
        let mut answer =
            self.call(async |agent, context| agent.diagnostics(context, &nothing).await).await?;
        let names = std::mem::take(&mut answer.memory);
        answer.memory = names
            .into_iter()
            .take(DIAGNOSTICS_LIMIT)
            .map(|(name, bytes)| (clean(&name), bytes))
            .collect();
        answer.kernel_log.truncate(DIAGNOSTICS_LIMIT);
        for line in &mut answer.kernel_log {
            *line = clean(line);
        }
        Ok(answer)
    }

    /// What a container uses; all of them together for an empty name.
    pub async fn stats(&self, container: &str) -> Result<StatsResponse, GuestError> {
        let container = ContainerRef { container: container.to_owned(), ..Default::default() };
        let mut stats =
            self.call(async |agent, context| agent.stats(context, &container).await).await?;
        stats.io.truncate(DEVICES);
        Ok(stats)
    }

    /// Makes one call with the usual deadline.
    pub async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&AgentClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, GuestError> {
        self.call_within(CALL_DEADLINE, call).await
    }

    /// Makes one call with a deadline of its own.
    pub async fn call_within<T>(
        &self,
        deadline: Duration,
        call: impl AsyncFnOnce(&AgentClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, GuestError> {
        bounded(deadline, call(&self.client, Context::default())).await
    }

    /// A number for a stdio stream, never used before.
    pub fn new_stream(&self) -> u64 {
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens the stdio stream of this number.
    pub async fn open_stream(&self, number: u64) -> Result<UnixStream, GuestError> {
        let open = async {
            let mut stream = hybrid_vsock::connect(&self.vsock, STREAM_PORT).await?;
            stream.write_all(&number.to_be_bytes()).await?;
            Ok(stream)
        };
        match timeout(CALL_DEADLINE, open).await {
            Ok(stream) => stream.map_err(GuestError::Stream),
            Err(_) => Err(GuestError::Deadline(CALL_DEADLINE)),
        }
    }
}

/// ttrpc's own deadline covers the answer alone; this one covers the sending too.
async fn bounded<T>(
    deadline: Duration,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, GuestError> {
    match timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(ttrpc::Error::RpcStatus(status))) => match status.code() {
            Code::DEADLINE_EXCEEDED => Err(GuestError::Deadline(deadline)),
            code @ (Code::NOT_FOUND
            | Code::ALREADY_EXISTS
            | Code::INVALID_ARGUMENT
            | Code::FAILED_PRECONDITION) => {
                Err(GuestError::Refused { code, text: clean(status.message()) })
            }
            _ => Err(GuestError::Refused { code: Code::INTERNAL, text: clean(status.message()) }),
        },
        Ok(Err(error)) => Err(GuestError::Lost(clean(&error.to_string()))),
        Err(_) => Err(GuestError::Deadline(deadline)),
    }
}

/// Text of the guest, fit for a log and a terminal: no control characters, no more than a page.
pub fn clean(text: &str) -> String {
    let cleaned: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_LIMIT).collect();
    cleaned.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_text_cannot_drive_a_terminal() {
        assert_eq!(clean("\x1b[2Jgone\r\n\u{9b}x "), "[2Jgone   x");
        assert_eq!(clean(&"é".repeat(9999)).chars().count(), TEXT_LIMIT);
    }

    #[tokio::test]
    async fn the_guest_chooses_no_code_but_its_own() {
        let answer = |code| {
            let status = ttrpc::get_status(code, "no".to_owned());
            bounded(CALL_DEADLINE, async { Err::<(), _>(ttrpc::Error::RpcStatus(status)) })
        };
        let refused = answer(Code::NOT_FOUND).await.unwrap_err();
        assert!(matches!(refused, GuestError::Refused { code: Code::NOT_FOUND, .. }));
        let refused = answer(Code::UNAUTHENTICATED).await.unwrap_err();
        assert!(matches!(refused, GuestError::Refused { code: Code::INTERNAL, .. }));
    }

    #[tokio::test]
    async fn a_silent_guest_is_left_alone_in_time() {
        let (near, _far) = UnixStream::pair().unwrap();
        let guest = Guest::new(near, PathBuf::from("/nonexistent"));
        tokio::time::pause();
        let answer = guest.diagnostics().await;
        assert!(matches!(answer.unwrap_err(), GuestError::Deadline(_)));
    }
}
