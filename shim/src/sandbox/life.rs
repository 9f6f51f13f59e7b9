//! The life of a sandbox's VM: it is built, what happens in its guest is handed on, and its end is noticed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_protocols::agent::{self, ProcessRef, event};
use bulkhead_protocols::chain;
use futures::future::join_all;
use slog::{error, info};
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::ClientStreamReceiver;

use super::launch::{self, Parts};
use super::running::Running;
use super::{Pod, Sandbox, SandboxError, Spare, State};
use crate::config::{Config, ConfigError};
use crate::sys::lock;

/// How long a VM whose agent hung up may take to end by itself, and to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Sandbox {
    /// From the start to the end of the VM.
    pub(super) async fn live(
        self: Arc<Self>,
        config: Result<Config, ConfigError>,
        spare: Option<Spare>,
    ) {
        match self.build(config, spare).await {
            Ok((running, events)) => {
                let running = Arc::new(running);
                self.host_pid.store(running.parts.vm.pid(), Ordering::Relaxed);
                self.state.send_replace(State::Running(running.clone()));
                self.supervise(&running, events).await;
            }
            Err(error) => {
                error!(self.log, "the sandbox did not start: {}", chain(&error));
                self.end(State::Failed(Arc::new(error)));
            }
        }
    }

    async fn build(
        &self,
        config: Result<Config, ConfigError>,
        spare: Option<Spare>,
    ) -> Result<(Running, ClientStreamReceiver<agent::Event>), SandboxError> {
        let pod = self.pod().await?;
        let config = config?.with(&pod.annotations).map_err(SandboxError::Annotation)?;
        let adopted = match spare {
            Some(spare) => self.adopt(spare, &config, &pod).await,
            None => None,
        };
        let (parts, connection) = match adopted {
            Some(adopted) => adopted,
            None => self.boot(&config, &pod).await?,
        };
        self.phases.stamp("agent");
        let guest =
            launch::guest(&parts, connection, &config, &pod, &self.phases, &self.log).await?;
        let events = guest.events().await?;
        let running = Running::new(parts, guest, &pod, &self.log)?;
        Ok((running, events))
    }

    async fn boot(
        &self,
        config: &Config,
        pod: &Arc<Pod>,
    ) -> Result<(Parts, UnixStream), SandboxError> {
        let (phases, log, first) = (&self.phases, &self.log, self.first(pod.clone()));
        let (parts, listener) =
            launch::devices(config, &self.identity, pod, first, phases, log).await?;
        let connection = launch::agent(&parts, listener, config).await?;
        Ok((parts, connection))
    }

    /// None where the spare is another than the sandbox is to be.
    async fn adopt(
        &self,
        spare: Spare,
        config: &Config,
        pod: &Arc<Pod>,
    ) -> Option<(Parts, UnixStream)> {
        let first = self.first(pod.clone());
        let adopted = spare.adopt(config, &self.identity, pod, first, &self.log).await;
        self.phases.stamp("spare");
        match &adopted {
            Ok((parts, _)) => info!(self.log, "a spare guest is taken: {}", parts.selection),
            Err(unfit) => {
                info!(self.log, "the spare guest is not taken: {}", chain(unfit));
            }
        }
        adopted.ok()
    }

    /// Lives as long as the VM: hands on what happens in the guest, and notices its end.
    async fn supervise(
        self: &Arc<Self>,
        running: &Arc<Running>,
        mut events: ClientStreamReceiver<agent::Event>,
    ) {
        let parts = &running.parts;
        let over = launch::over(parts);
        tokio::pin!(over);
        let exit = loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(Some(event)) => self.dispatch(event),
                    Ok(None) | Err(_) => break None,
                },
                reason = &mut over => break Some(reason),
            }
        };
        // What else comes is not kept for anybody.
        drop(events);
        let exit = match exit {
            Some(reason) => reason,
            None => self.hung_up(parts).await,
        };
        parts.vm.kill();
        if self.containers().is_empty() {
            info!(self.log, "the VM has ended: {exit}");
        } else {
            error!(self.log, "the VM has ended: {exit}"; "console" => parts.console.tail());
        }
        self.end(State::Ended(exit.into()));
        join_all(self.containers().iter().map(|container| container.lost())).await;
    }

    /// The agent is gone. It is PID 1, so the VM follows; its own reason is the better one.
    async fn hung_up(&self, parts: &Parts) -> String {
        match timeout(LAST_WORDS, launch::over(parts)).await {
            Ok(reason) => reason,
            Err(_) => "the guest's agent hung up".to_owned(),
        }
    }

    /// Hands an event to its container. Names in it are looked up, never acted on. Each is a task
    /// of its own, since it may have to wait for its process's turn.
    fn dispatch(self: &Arc<Self>, event: agent::Event) {
        match event.kind {
            Some(event::Kind::Exit(exit)) => {
                let name = exit.process.unwrap_or_default();
                // Held meanwhile: who makes a container enters it into the table before he looks here for its end.
                let mut creating = lock(&self.creating);
                let told = self.tell_end(&name, exit.status);
                if !told
                    && name.exec.is_empty()
                    && let Some(making) = creating.get_mut(&name.container)
                {
                    making.exit.get_or_insert(exit.status);
                }
            }
            Some(event::Kind::Oom(reference)) => {
                if let Ok(container) = self.container(&reference.container) {
                    container.out_of_memory();
                }
            }
            Some(_) | None => {}
        }
    }

    /// Tells a container that one of its processes has ended; says whether it is there and did not know yet.
    pub(super) fn tell_end(&self, name: &ProcessRef, status: u32) -> bool {
        let Ok(container) = self.container(&name.container) else { return false };
        let ends = container.process(&name.exec).is_ok_and(|process| process.ends_now());
        if ends {
            let exec = name.exec.clone();
            tokio::spawn(async move { container.exited(&exec, status).await });
        }
        ends
    }
}
