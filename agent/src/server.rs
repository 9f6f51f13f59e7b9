//! The agent's side of the wire.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bulkhead_protocols::CONTROL_PORT;
use bulkhead_protocols::agent::{
    AcceptRequest, ConnectRequest, ContainerRef, CreateRequest, DiagnosticsResponse, Empty, Event,
    ExecRequest, Network as WireNetwork, PidsResponse, ProcessRef, RefreshRequest, ResizeRequest,
    SetupRequest, SetupResponse, SignalRequest, StatsResponse, UpdateRequest,
};
use bulkhead_protocols::agent_ttrpc::{Agent as Service, create_agent};
use futures::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, ServerStreamSender, TtrpcContext};

use crate::cgroup::Cgroup;
use crate::container::{Containers, Guest, Process, aside};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::network::Network;
use crate::output::LARGEST_PACKET;
use crate::reaper::Reaper;
use crate::sandbox::{forward, volume};
use crate::stamps::Stamps;
use crate::streams::Streams;
use crate::sys::lock;
use crate::{diagnostics, setup, shutdown};

/// Dials the host, and serves it until the connection ends; the VM ends with it.
///
/// # Errors
/// What has kept the agent from serving.
pub async fn run(stamps: Arc<Stamps>) -> Result<()> {
    let signals = Reaper::signals().map_err(|error| Error::io("cannot watch processes", error))?;
    let listener =
        Streams::bind().map_err(|error| Error::io("cannot listen for streams", error))?;
    let guest = Arc::new(Guest {
        reaper: Arc::default(),
        events: Arc::new(Events::new()),
        streams: Arc::new(Streams::new()),
        containers: Containers::default(),
        shared: Arc::default(),
    });
    tokio::spawn(Arc::clone(&guest.reaper).run(signals));
    tokio::spawn(Arc::clone(&guest.streams).run(listener));

    let network = Network::take();
    let address = VsockAddr::new(VMADDR_CID_HOST, CONTROL_PORT);
    let stream = VsockStream::connect(address).await.map_err(|error| {
        Error::io(format_args!("cannot reach the host on vsock port {CONTROL_PORT}"), error)
    })?;
    stamps.mark("dialled");
    let (over, ended) = oneshot::channel();
    let connection = Connection { stream, over: Some(over) };
    let service = Agent {
        guest,
        stamps,
        set_up: AtomicBool::new(false),
        mounts: Mutex::default(),
        network: Mutex::new(network),
    };
    let mut server = Server::new()
        .add_listener(Listener::new(stream::iter([Ok(connection)]).chain(stream::pending())))
        .register_service(create_agent(Arc::new(service)));
    server.start().await.map_err(|error| Error::io("cannot serve RPC", error))?;

    // An error means that the connection was dropped, which is its end as well.
    let _ = ended.await;
    log::info!("the host has ended the control connection; so ends the guest");
    shutdown::quiesce(&[]).await;
    shutdown::power_off().map_err(|error| Error::io("cannot power off", error))?;
    Ok(())
}

/// The control connection, which tells of its end.
struct Connection {
    stream: VsockStream,
    over: Option<oneshot::Sender<()>>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let over = match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if over && let Some(over) = self.over.take() {
            // Nobody waits only if the guest is at its end already.
            let _ = over.send(());
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let packet = &bytes[..bytes.len().min(LARGEST_PACKET)];
        Pin::new(&mut self.stream).poll_write(cx, packet)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The service: it turns calls into what [`Guest`] does, and nothing else.
struct Agent {
    guest: Arc<Guest>,
    stamps: Arc<Stamps>,
    set_up: AtomicBool,
    /// The targets of the mounts that `Setup` has made.
    mounts: Mutex<Vec<String>>,
    network: Mutex<Network>,
}

impl Agent {
    fn process(&self, name: &ProcessRef) -> Result<Arc<Process>> {
        self.guest.containers.process(&name.container, &name.exec)
    }
}

/// Runs a call to its end even if ttrpc gives up on it: it drops calls whose deadline has passed,
/// and half a container must not stay behind.
async fn to_its_end<T: Send + 'static>(
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(call)
        .await
        .unwrap_or_else(|error| Err(Error::io("the call was interrupted", error)))
}

#[async_trait]
impl Service for Agent {
    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<SetupResponse> {
        if self.set_up.swap(true, Ordering::Relaxed) {
            return Err(Error::FailedPrecondition("the guest is set up already".to_owned()).into());
        }
        // A parameter may be an interface's.
        lock(&self.network).apply(request.network.get_or_default())?;
        lock(&self.network).release_rest();
        setup::apply(&request)?;
        lock(&self.mounts).extend(request.mounts.into_iter().map(|mount| mount.target));
        self.stamps.mark("setup");
        let uname = nix::sys::utsname::uname()
            .map_err(|error| Error::io("cannot tell the kernel's release", error))?;
        Ok(SetupResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: uname.release().to_string_lossy().into_owned(),
            stamps: self.stamps.to_wire(),
            ..Default::default()
        })
    }

    async fn update_network(&self, _: &TtrpcContext, change: WireNetwork) -> ttrpc::Result<Empty> {
        lock(&self.network).apply(&change)?;
        lock(&self.network).settle();
        Ok(Empty::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        let mounts = std::mem::take(&mut *lock(&self.mounts));
        shutdown::quiesce(&mounts).await;
        Ok(Empty::default())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: Empty,
        sender: ServerStreamSender<Event>,
    ) -> ttrpc::Result<()> {
        let mut events = self.guest.events.take()?;
        while let Some(event) = events.recv().await {
            if let Err(error) = sender.send(&event).await {
                log::warn!("an event could not be told: {error}");
                break;
            }
        }
        Ok(())
    }

    async fn create(&self, _: &TtrpcContext, request: CreateRequest) -> ttrpc::Result<Empty> {
        let guest = Arc::clone(&self.guest);
        to_its_end(async move { guest.create(request).await }).await?;
        Ok(Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, name: ProcessRef) -> ttrpc::Result<Empty> {
        let guest = Arc::clone(&self.guest);
        let process = self.process(&name)?;
        // It sees the pod's interfaces and no others.
        lock(&self.network).settle();
        to_its_end(async move { guest.start(&process).await }).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<Empty> {
        self.guest.exec(&request)?;
        Ok(Empty::default())
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let process = self.process(request.process.get_or_default())?;
        process.signal_as_asked(request.signal, request.all)?;
        Ok(Empty::default())
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        let size = |value: u32| {
            u16::try_from(value).map_err(|_| {
                Error::InvalidArgument(format!("a terminal can't be {value} characters large"))
            })
        };
        let process = self.process(request.process.get_or_default())?;
        process.resize(size(request.width)?, size(request.height)?)?;
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        let guest = Arc::clone(&self.guest);
        let container = guest.containers.container(&request.container)?;
        to_its_end(async move { guest.update(&container, &request.resources).await }).await?;
        Ok(Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, name: ContainerRef) -> ttrpc::Result<StatsResponse> {
        if name.container.is_empty() {
            return Ok(Cgroup::of_all().stats()?);
        }
        Ok(self.guest.containers.container(&name.container)?.cgroup().stats()?)
    }

    async fn pids(&self, _: &TtrpcContext, name: ContainerRef) -> ttrpc::Result<PidsResponse> {
        let containers = &self.guest.containers;
        let pids = containers.container(&name.container)?.cgroup().pids()?;
        let execs = containers.execs(&name.container);
        Ok(PidsResponse { pids, execs, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, name: ContainerRef) -> ttrpc::Result<Empty> {
        let guest = Arc::clone(&self.guest);
        to_its_end(async move { guest.set_paused(&name.container, true).await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, name: ContainerRef) -> ttrpc::Result<Empty> {
        let guest = Arc::clone(&self.guest);
        to_its_end(async move { guest.set_paused(&name.container, false).await }).await?;
        Ok(Empty::default())
    }

    async fn delete(&self, _: &TtrpcContext, name: ProcessRef) -> ttrpc::Result<Empty> {
        let guest = Arc::clone(&self.guest);
        let process = self.process(&name)?;
        to_its_end(async move { guest.delete(&process).await }).await?;
        Ok(Empty::default())
    }

    async fn refresh(&self, _: &TtrpcContext, request: RefreshRequest) -> ttrpc::Result<Empty> {
        to_its_end(aside(move || volume::refresh(&request))).await?;
        Ok(Empty::default())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<Empty> {
        forward::connect(&self.guest.streams, &request).await?;
        Ok(Empty::default())
    }

    async fn accept(&self, _: &TtrpcContext, request: AcceptRequest) -> ttrpc::Result<Empty> {
        let container = self.guest.containers.container(&request.container)?;
        let (from, to) = container.sockets.accept(&request.path).await?.into_split();
        forward::carry(&self.guest.streams, from, to, (request.input, request.output))?;
        Ok(Empty::default())
    }

    async fn diagnostics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<DiagnosticsResponse> {
        Ok(diagnostics::collect())
    }
}
