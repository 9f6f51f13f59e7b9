//! What the operator's tool asks a running shim: how the guest sees itself. Both ends are here.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_protocols::agent::{DiagnosticsResponse, Empty};
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

/// Asks the shim that listens on `socket`.
///
/// # Errors
/// When there is no answer within `deadline`.
pub fn ask(socket: &Path, deadline: Duration) -> Result<DiagnosticsResponse, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let answer = async {
            let stream = UnixStream::connect(socket).await?;
            let client = SandboxClient::new(Client::new(Socket::new(stream)));
            let nothing = Empty::new();
            Ok(client.inspect(Context::default(), &nothing).await?)
        };
        match timeout(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Deadline(deadline)),
        }
    })
}
