//! The calls of the agent, answered with ill intent.

use std::future::pending;

use async_trait::async_trait;
use bulkhead_protocols::agent::{
    ContainerRef, CreateRequest, DiagnosticsResponse, Empty, Event, Exit, IoStats, PidsResponse,
    ProcessRef, SetupRequest, SetupResponse, SignalRequest, Stamp, StatsResponse, event,
};
use bulkhead_protocols::agent_ttrpc::Agent;
use tokio::sync::watch;
use ttrpc::Result;
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::{Vice, vandal};

/// What would clear a screen, or be a line of its own in a log.
const ESCAPES: &str = "\u{1b}[2Jforged\nlevel=fatal msg=forged";

/// More of anything than a host should keep. All of one kind must fit into 64 KiB: QEMU's vsock device passes on no
/// more in one direction until something goes the other way.
const MANY: u32 = 1000;

/// A service with a vice.
pub struct Hostile {
    vice: Vice,
    /// The container whose start was asked for last.
    started: watch::Sender<Option<ProcessRef>>,
}

impl Hostile {
    /// One with this vice.
    pub fn new(vice: Vice) -> Self {
        Self { vice, started: watch::Sender::new(None) }
    }

    fn lies(&self) -> bool {
        self.vice == Vice::Liar
    }

    async fn unless_mute<T>(&self, answer: T) -> Result<T> {
        if self.vice == Vice::Mute { pending().await } else { Ok(answer) }
    }
}

/// The news that a process has ended.
fn exit(process: ProcessRef, status: u32) -> Event {
    let exit = Exit { process: Some(process).into(), status, ..Default::default() };
    Event { kind: Some(event::Kind::Exit(exit)), ..Default::default() }
}

#[async_trait]
impl Agent for Hostile {
    async fn setup(&self, _: &TtrpcContext, _: SetupRequest) -> Result<SetupResponse> {
        let mut answer = SetupResponse::new();
        if self.lies() {
            answer.agent_version = ESCAPES.to_owned();
            answer.kernel_release = ESCAPES.repeat(100);
            let stamp = |i| Stamp {
                phase: format!("\u{1b}{i}"),
                uptime_us: u64::MAX,
                ..Default::default()
            };
            answer.stamps = (0..MANY).map(stamp).collect();
        }
        Ok(answer)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Result<Empty> {
        self.unless_mute(Empty::new()).await
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: Empty,
        to: ServerStreamSender<Event>,
    ) -> Result<()> {
        let forged = if self.lies() { MANY } else { 0 };
        for number in 0..forged {
            let process = ProcessRef {
                container: "../../etc".to_owned(),
                exec: format!("../{number}"),
                ..Default::default()
            };
            to.send(&exit(process, u32::MAX)).await?;
        }
        let mut started = self.started.subscribe();
        if self.vice == Vice::Flood
            && let Some(process) =
                started.wait_for(Option::is_some).await.ok().and_then(|it| it.clone())
        {
            to.send(&exit(process, 7)).await?;
        }
        pending().await
    }

    async fn create(&self, _: &TtrpcContext, _: CreateRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, name: ProcessRef) -> Result<Empty> {
        if self.vice == Vice::Vandal
            && let Err(error) = vandal::run(&name.container)
        {
            eprintln!("the share cannot be used: {error}");
        }
        self.started.send_replace(Some(name));
        Ok(Empty::new())
    }

    async fn signal(&self, _: &TtrpcContext, _: SignalRequest) -> Result<Empty> {
        self.unless_mute(Empty::new()).await
    }

    async fn stats(&self, _: &TtrpcContext, _: ContainerRef) -> Result<StatsResponse> {
        let mut answer = StatsResponse::new();
        if self.lies() {
            let device = IoStats { major: u64::MAX, minor: u64::MAX, ..Default::default() };
            answer.io = vec![device; MANY as usize];
        }
        self.unless_mute(answer).await
    }

    async fn pids(&self, _: &TtrpcContext, _: ContainerRef) -> Result<PidsResponse> {
        let pids = if self.lies() { (0..10 * MANY).collect() } else { Vec::new() };
        self.unless_mute(PidsResponse { pids, ..Default::default() }).await
    }

    async fn delete(&self, _: &TtrpcContext, _: ProcessRef) -> Result<Empty> {
        self.unless_mute(Empty::new()).await
    }

    async fn diagnostics(&self, _: &TtrpcContext, _: Empty) -> Result<DiagnosticsResponse> {
        let kernel_log = vec![ESCAPES.to_owned(); MANY as usize];
        self.unless_mute(DiagnosticsResponse { kernel_log, ..Default::default() }).await
    }
}
