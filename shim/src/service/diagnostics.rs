//! What the operator's tool and the shim's `delete` ask a running shim. Both ends are here.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_protocols::agent::{ContainersResponse, DiagnosticsResponse, Empty};
use bulkhead_protocols::agent_ttrpc::{Sandbox as Service, SandboxClient};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::asynchronous::{Client, TtrpcContext};
use ttrpc::context::Context;

use super::error::status;
use crate::sandbox::Sandbox;

/// The service of one sandbox.
pub struct Diagnostics(pub Arc<Sandbox>);

#[async_trait]
impl Service for Diagnostics {
    async fn inspect(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<DiagnosticsResponse> {
        self.0.diagnostics().await.map_err(|error| status(&error))
    }

    async fn containers(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ContainersResponse> {
        Ok(ContainersResponse { ids: self.0.ids(), ..Default::default() })
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("the shim cannot be reached")]
    Connect(#[from] io::Error),
    /// It refused, or its guest did.
    #[error("the shim does not tell")]
    Refused(#[from] ttrpc::Error),
    /// It takes too long.
    #[error("the shim did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
}

/// How the guest of the shim that listens on `socket` sees itself.
///
/// # Errors
/// When there is no answer within `deadline`.
pub fn inspect(socket: &Path, deadline: Duration) -> Result<DiagnosticsResponse, AskError> {
    ask(socket, deadline, async |client| client.inspect(Context::default(), &Empty::new()).await)
}

/// Which containers the shim that listens on `socket` has.
///
/// # Errors
/// When there is no answer within `deadline`.
pub fn containers(socket: &Path, deadline: Duration) -> Result<Vec<String>, AskError> {
    ask(socket, deadline, async |client| client.containers(Context::default(), &Empty::new()).await)
        .map(|answer| answer.ids)
}

fn ask<T>(
    socket: &Path,
    deadline: Duration,
    call: impl AsyncFnOnce(&SandboxClient) -> ttrpc::Result<T>,
) -> Result<T, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let answer = async {
            let stream = UnixStream::connect(socket).await?;
            let client = SandboxClient::new(Client::new(Socket::new(stream)));
            Ok(call(&client).await?)
        };
        match timeout(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Deadline(deadline)),
        }
    })
}
