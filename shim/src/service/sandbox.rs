//! The sandbox API, by which containerd 2.x drives a pod without a sandbox container
//! (containerd's `api/runtime/sandbox/v1/sandbox.proto`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox as Service, create_sandbox};
use containerd_shim_protos::types::platform::Platform;
use protobuf::MessageField;
use tokio::sync::Notify;
use tokio::time::sleep;
use ttrpc::asynchronous::{Service as Methods, TtrpcContext};

use super::error::status;
use super::metrics;
use crate::events::timestamp;
use crate::sandbox::{Pod, Sandbox, SandboxError};

/// How long the answer to the last call may take to leave. ttrpc does not tell, and a pod whose end is not confirmed
/// is one that cannot be removed.
const ANSWER: Duration = Duration::from_millis(100);

/// The CRI's names of what a sandbox can be.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The sandbox service of one sandbox.
struct SandboxService {
    sandbox: Arc<Sandbox>,
    stop: Arc<Notify>,
}

/// The API for a ttrpc server. `stop` is notified when containerd says that the server may end.
pub fn service(sandbox: &Arc<Sandbox>, stop: &Arc<Notify>) -> HashMap<String, Methods> {
    create_sandbox(Arc::new(SandboxService { sandbox: sandbox.clone(), stop: stop.clone() }))
}

type Answer<T> = ttrpc::Result<T>;

impl SandboxService {
    /// A shim has one sandbox.
    fn named(&self, id: &str) -> Answer<&Arc<Sandbox>> {
        if id == self.sandbox.id() {
            return Ok(&self.sandbox);
        }
        Err(status(&SandboxError::NoSandbox(id.to_owned())))
    }
}

#[async_trait]
impl Service for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Answer<CreateSandboxResponse> {
        let sandbox = self.named(&request.sandbox_id)?;
        let options = request.options.unwrap_or_default();
        let network = Path::new(&request.netns_path);
        Pod::of_config(&request.sandbox_id, &options.type_url, &options.value, network)
            .map_err(SandboxError::from)
            .and_then(|pod| sandbox.configure(pod))
            .map_err(|error| status(&error))?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> Answer<StartSandboxResponse> {
        let sandbox = self.named(&request.sandbox_id)?;
        let pid = sandbox.ready().await.map_err(|error| status(&error))?;
        Ok(StartSandboxResponse {
            pid,
            created_at: MessageField::some(timestamp(sandbox.created_at)),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> Answer<PlatformResponse> {
        let platform = Platform {
            os: "linux".to_owned(),
            // The guest's, and there is no other (Go's name of x86_64).
            architecture: "amd64".to_owned(),
            ..Default::default()
        };
        Ok(PlatformResponse { platform: MessageField::some(platform), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> Answer<StopSandboxResponse> {
        let sandbox = self.named(&request.sandbox_id)?.clone();
        // Carried out to its end even if containerd goes away.
        let _ = tokio::spawn(async move { sandbox.shutdown().await }).await;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> Answer<WaitSandboxResponse> {
        let exit = self.named(&request.sandbox_id)?.wait().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> Answer<SandboxStatusResponse> {
        let sandbox = self.named(&request.sandbox_id)?;
        let exit = sandbox.exit();
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: sandbox.host_pid(),
            state: if exit.is_some() { NOT_READY } else { READY }.to_owned(),
            created_at: MessageField::some(timestamp(sandbox.created_at)),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> Answer<PingResponse> {
        self.named(&request.sandbox_id)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> Answer<ShutdownSandboxResponse> {
        let sandbox = self.named(&request.sandbox_id)?.clone();
        let stop = self.stop.clone();
        let _ = tokio::spawn(async move {
            sandbox.shutdown().await;
            tokio::spawn(async move {
                sleep(ANSWER).await;
                stop.notify_one();
            });
        })
        .await;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> Answer<SandboxMetricsResponse> {
        let sandbox = self.named(&request.sandbox_id)?;
        let stats = sandbox.stats().await.map_err(|error| status(&error))?;
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metric.id = request.sandbox_id;
        metric.data = MessageField::some(metrics::any(&stats)?);
        Ok(response)
    }
}
