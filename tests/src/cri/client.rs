//! A client of the CRI API. Its calls block: a test has nothing else to do meanwhile.

use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::failure::{Failure, Outcome};

/// The largest answer that the kubelet takes (kubernetes, pkg/kubelet/cri/remote: maxMsgSize).
const LARGEST: usize = 16 << 20;

/// What a call returns.
pub type Reply<T> = Result<T, Status>;

/// A connection to one containerd; it outlives containerd's restart.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    deadline: Duration,
}

impl Client {
    /// Connects when the first call is made.
    ///
    /// # Errors
    /// The machine has no room for a runtime.
    pub fn new(socket: &Path, deadline: Duration) -> Outcome<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self { runtime, channel, deadline })
    }

    /// A call of the runtime service.
    ///
    /// # Errors
    /// containerd refuses, or doesn't answer before the deadline.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Reply<Response<T>>,
    ) -> Reply<T> {
        let client = RuntimeServiceClient::new(self.channel.clone());
        self.wait(call(client.max_decoding_message_size(LARGEST)))
    }

    /// A call of the image service.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub fn images<T>(
        &self,
        call: impl AsyncFnOnce(ImageServiceClient<Channel>) -> Reply<Response<T>>,
    ) -> Reply<T> {
        self.wait(call(ImageServiceClient::new(self.channel.clone())))
    }

    fn wait<T>(&self, call: impl Future<Output = Reply<Response<T>>>) -> Reply<T> {
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(self.deadline, call).await });
        let late = |_| Err(Status::deadline_exceeded("the test's own deadline"));
        answer.unwrap_or_else(late).map(Response::into_inner)
    }
}

/// Requires that a call was refused with one of these codes and a text that holds one of `texts`.
///
/// # Errors
/// It was not, or in other words.
pub fn refused<T>(reply: Reply<T>, codes: &[Code], texts: &[&str]) -> Outcome<Status> {
    let Err(status) = reply else {
        return Err(Failure::new("the call succeeded, but should have been refused"));
    };
    let said = status.message().to_lowercase();
    crate::ensure!(
        codes.contains(&status.code())
            && texts.iter().any(|text| said.contains(&text.to_lowercase())),
        "refused with {:?}, not one of {codes:?} and one of {texts:?}: {}",
        status.code(),
        status.message()
    );
    Ok(status)
}
