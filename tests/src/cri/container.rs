//! Containers of a pod.

use std::path::{Path, PathBuf};

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    RemoveContainerRequest, SecurityProfile, StartContainerRequest, StopContainerRequest,
};
use tonic::Code;

use super::client::{Reply, refused};
use super::logs::{self, Line};
use super::pod::Pod;
use super::watch;
use crate::command::tail;
use crate::failure::{Context, Outcome, again};
use crate::image;

/// What the kubelet hides below /proc and /sys in every container whose procMount is Default.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// What the kubelet makes read-only there.
const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A program that runs until it gets SIGKILL: PID 1 without a handler ignores the rest.
pub const IDLE: &[&str] = &["sleep", "100000"];

/// A container that doesn't exist yet.
pub struct ContainerPlan<'p> {
    /// What containerd will be asked for.
    pub config: ContainerConfig,
    pod: &'p Pod<'p>,
}

impl<'p> ContainerPlan<'p> {
    /// A container of the test image with the kubelet's defaults; it idles.
    pub fn new(pod: &'p Pod<'_>, name: &str) -> Self {
        let security = LinuxContainerSecurityContext {
            namespace_options: pod
                .config
                .linux
                .as_ref()
                .and_then(|linux| linux.security_context.as_ref())
                .and_then(|security| security.namespace_options.clone()),
            masked_paths: words(MASKED),
            readonly_paths: words(READ_ONLY),
            seccomp: Some(SecurityProfile {
                profile_type: ProfileType::Unconfined.into(),
                localhost_ref: String::new(),
            }),
            ..LinuxContainerSecurityContext::default()
        };
        let resources = LinuxContainerResources {
            cpu_shares: 2,
            oom_score_adj: 1000,
            ..LinuxContainerResources::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image::NAME.to_owned(), ..ImageSpec::default() }),
            command: words(IDLE),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(security),
            }),
            ..ContainerConfig::default()
        };
        Self { config, pod }
    }

    /// With a change to what containerd will be asked for.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// With a change to its security context.
    #[must_use]
    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.with(|config| {
            let linux = config.linux.get_or_insert_default();
            change(linux.security_context.get_or_insert_default());
        })
    }

    /// With another program.
    #[must_use]
    pub fn command(self, command: &[&str]) -> Self {
        self.with(|config| config.command = words(command))
    }

    /// With a script as its program.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.command(&["sh", "-c", script])
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(self, key: &str, value: &str) -> Self {
        let variable = KeyValue { key: key.to_owned(), value: value.to_owned() };
        self.with(|config| config.envs.push(variable))
    }

    /// With a file or directory of the host.
    #[must_use]
    pub fn mount(self, host: &Path, inside: &str) -> Self {
        self.mount_with(host, inside, |_| ())
    }

    /// The same, not as the kubelet does it by default.
    #[must_use]
    pub fn mount_with(self, host: &Path, inside: &str, change: impl FnOnce(&mut Mount)) -> Self {
        let mut mount = Mount {
            host_path: host.to_string_lossy().into_owned(),
            container_path: inside.to_owned(),
            ..Mount::default()
        };
        change(&mut mount);
        self.with(|config| config.mounts.push(mount))
    }

    /// Asks containerd to create it.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn attempt(&self) -> Reply<Container<'p>> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        };
        let client = &self.pod.node.client;
        let answer = client.call(async |mut cri| cri.create_container(request).await)?;
        self.pod.test.pods().container(&answer.container_id);
        let log = self.pod.logs().join(&self.config.log_path);
        Ok(Container { id: answer.container_id, log, pod: self.pod })
    }

    /// Creates it.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn create(&self) -> Outcome<Container<'p>> {
        self.attempt().context("CreateContainer")
    }

    /// Creates and starts it.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn start(&self) -> Outcome<Container<'p>> {
        let container = self.create()?;
        container.start().context("StartContainer")?;
        Ok(container)
    }

    /// Creates it, starts it, and waits for its end.
    ///
    /// # Errors
    /// containerd refuses, or it doesn't end before the deadline.
    pub fn run(&self) -> Outcome<Ended> {
        self.start()?.ended()
    }

    /// Requires that containerd refuses to create or to start it, with one of these codes and texts.
    ///
    /// # Errors
    /// It doesn't, or in other words.
    pub fn refused(&self, codes: &[Code], texts: &[&str]) -> Outcome {
        let reply = self.attempt().and_then(|container| container.start());
        refused(reply, codes, texts).map(drop)
    }
}

/// A container that was created.
pub struct Container<'p> {
    /// Its id.
    pub id: String,
    /// Its log file.
    pub log: PathBuf,
    /// The pod that it is part of.
    pub pod: &'p Pod<'p>,
}

/// A container that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code of its program.
    pub code: i32,
    /// containerd's word for why it ended.
    pub reason: String,
    /// What containerd says beside.
    pub message: String,
    /// Its log.
    pub lines: Vec<Line>,
}

impl Ended {
    /// What the program printed on standard output.
    pub fn out(&self) -> String {
        logs::text(&self.lines, "stdout")
    }

    /// Requires this exit code.
    ///
    /// # Errors
    /// It is another one.
    pub fn exits(self, code: i32) -> Outcome<Self> {
        crate::ensure!(self.code == code, "exit code {}, not {code}: {self:?}", self.code);
        Ok(self)
    }
}

impl Container<'_> {
    /// Starts it.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn start(&self) -> Reply<()> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.pod.node.client.call(async |mut cri| cri.start_container(request).await).map(drop)
    }

    /// Its status.
    ///
    /// # Errors
    /// containerd doesn't know it.
    pub fn status(&self) -> Reply<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer =
            self.pod.node.client.call(async |mut cri| cri.container_status(request).await)?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It doesn't before the deadline.
    pub fn ended(&self) -> Outcome<Ended> {
        // The kubelet asks again and again too: 1.6 has no events.
        let status = again(self.pod.test.deadline(30), || {
            let status = self.status()?;
            let over = status.state() == ContainerState::ContainerExited;
            Ok(if over {
                Ok(status)
            } else {
                Err(format!("the container doesn't end: {status:?}"))
            })
        })?;
        let (reason, message) = (status.reason, status.message);
        Ok(Ended { code: status.exit_code, reason, message, lines: self.lines()? })
    }

    /// Runs a program in it, to its end; the kubelet's probes do the same.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn exec(&self, command: &[&str]) -> Reply<ExecSyncResponse> {
        self.exec_within(0, command)
    }

    /// The same, for so many seconds at most; 0 for ever.
    ///
    /// # Errors
    /// containerd refuses, or the time is over.
    pub fn exec_within(&self, timeout: i64, command: &[&str]) -> Reply<ExecSyncResponse> {
        let request =
            ExecSyncRequest { container_id: self.id.clone(), cmd: words(command), timeout };
        self.pod.node.client.call(async |mut cri| cri.exec_sync(request).await)
    }

    /// Runs a script in it, which has to succeed; returns what it printed.
    ///
    /// # Errors
    /// containerd refuses, or the script fails.
    pub fn sh(&self, script: &str) -> Outcome<String> {
        let done = self.exec(&["sh", "-c", script]).context(format!("`{script}`"))?;
        crate::ensure!(
            done.exit_code == 0,
            "`{script}` exited with {}\n--- stdout\n{}\n--- stderr\n{}",
            done.exit_code,
            tail(&String::from_utf8_lossy(&done.stdout)),
            tail(&String::from_utf8_lossy(&done.stderr))
        );
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Requires that a script prints this.
    ///
    /// # Errors
    /// It prints something else, or fails.
    pub fn prints(&self, script: &str, text: &str) -> Outcome {
        let printed = self.sh(script)?;
        crate::ensure!(printed == text, "`{script}` printed {printed:?}, not {text:?}");
        Ok(())
    }

    /// Its log.
    ///
    /// # Errors
    /// There is none, or it is not in the format.
    pub fn lines(&self) -> Outcome<Vec<Line>> {
        logs::read(&self.log)
    }

    /// Waits until its log holds this text.
    ///
    /// # Errors
    /// It doesn't before the deadline.
    pub fn await_log(&self, text: &str) -> Outcome {
        let read = || std::fs::read_to_string(&self.log).unwrap_or_default();
        watch::until(&self.pod.logs(), self.pod.test.deadline(30), || Ok(read().contains(text)))
            .context(format!("{text:?} in the log {:?}", read()))
    }

    /// Stops it: SIGTERM, and SIGKILL after so many seconds.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn stop(&self, grace: i64) -> Reply<()> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        self.pod.node.client.call(async |mut cri| cri.stop_container(request).await).map(drop)
    }

    /// Removes it.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn remove(&self) -> Reply<()> {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.pod.node.client.call(async |mut cri| cri.remove_container(request).await).map(drop)
    }
}

/// Words as the CRI's lists take them.
pub fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}
