//! The cold start of a sandbox, step by step. What a step acquires is undone by dropping `Parts`:
//! half-way, after an error, or at the end of a long life, the same way.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bulkhead_protocols::agent::{Mount, SetupRequest};
use bulkhead_protocols::{CONTROL_PORT, SCRATCH_SERIAL, SHARE_DIR, SHARE_TAG, chain, hybrid_vsock};
use slog::{Logger, info, warn};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::console::Console;
use super::first::{First, Source};
use super::phases::Phases;
use super::{Identity, Pod, SandboxError, aside, directory, size};
use crate::cgroup::Cgroup;
use crate::config::{Config, Upper, show};
use crate::container::scratch::OnScratch;
use crate::guest::Guest;
use crate::helper::Status;
use crate::network::{DEVICES, Following, Network};
use crate::record::{ProcessId, Record, remove_directory};
use crate::storage::scratch::Scratch;
use crate::storage::share::Share;
use crate::storage::virtiofsd::{Daemon, Virtiofsd};
use crate::sys::lock;
use crate::vmm::{Disk, Selection, Vm, VmSpec, Wires};

/// Bytes of the host's entropy that a guest starts with.
const ENTROPY: usize = 64;

/// How long a VMM whose guest hung up may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Everything on the host that belongs to a sandbox. Dropping it gives all of it back.
pub struct Parts {
    /// What the VM is made of.
    pub spec: VmSpec,
    /// The VMM that runs it.
    pub selection: Selection,
    /// The tree that the guest sees.
    pub share: Share,
    /// The guest's console.
    pub console: Console,
    /// The daemon that serves the tree, unless all that is to be seen comes by disks.
    pub virtiofsd: Option<Daemon>,
    /// The VM.
    pub vm: Box<dyn Vm>,
    /// The network that the guest gets.
    pub network: Arc<Following>,
    /// The disk that ends with the sandbox, and what is in it, if it has one.
    pub scratch: Option<(Scratch, OnScratch)>,
    /// The disks that the VM started with for its first container, by what they are on the host.
    pub first: HashMap<Source, String>,
    /// Sockets of the host that its containers may reach.
    pub forward_sockets: Vec<PathBuf>,
    /// The sandbox's place in the host's control groups.
    pub cgroup: Option<Cgroup>,
    /// Where its directory was when the VM was started, if it was a spare's.
    pub alias: Option<Alias>,
    /// What is known of it on disk.
    pub record: Mutex<Record>,
    /// Its log.
    pub log: Logger,
}

/// Another name of a directory. Dropping it takes it away.
pub struct Alias(pub PathBuf);

impl Drop for Alias {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Parts {
    /// Its processes, the VMM first.
    pub fn processes(&self) -> Vec<ProcessId> {
        let served = self.virtiofsd.iter().flat_map(Daemon::processes);
        self.vm.processes().into_iter().chain(served).collect()
    }

    /// Writes down how far the start has come. With an older record the sandbox runs all the same.
    pub fn record_phases(&self, phases: &Phases) {
        let mut record = lock(&self.record);
        record.processes = self.processes();
        record.phases = phases.all();
        if let Err(error) = record.write(&self.spec.dir) {
            warn!(self.log, "{}", chain(&error));
        }
    }

    /// Writes down that something was plugged in.
    pub fn record_device(&self, device: &str) {
        self.change_devices(|devices| devices.push(device.to_owned()));
    }

    /// Forgets what was plugged in and starts with this.
    pub fn forget_device(&self, start: &str) {
        self.change_devices(|devices| devices.retain(|device| !device.starts_with(start)));
    }

    fn change_devices(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut record = lock(&self.record);
        change(&mut record.devices);
        if let Err(error) = record.write(&self.spec.dir) {
            warn!(self.log, "{}", chain(&error));
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.vm.kill();
        drop(self.virtiofsd.take());
        if let Err(error) = self.share.release() {
            warn!(self.log, "the share stays mounted: {error}");
        }
        if let Err(error) = remove_directory(&self.spec.dir) {
            warn!(self.log, "the sandbox's directory stays: {error}");
        }
    }
}

/// Removes the directory again, unless the sandbox came to need it.
struct NewDirectory {
    path: PathBuf,
    share: Option<Share>,
    kept: bool,
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        if !self.kept {
            if let Some(share) = &self.share {
                let _ = share.release();
            }
            let _ = remove_directory(&self.path);
        }
    }
}

/// What a VM with this configuration is made of, for this pod.
pub fn spec(
    config: &Config,
    pod: &Pod,
    selection: &Selection,
    dir: &Path,
) -> Result<VmSpec, SandboxError> {
    let (vcpus, memory) = size::of(config, pod, selection.accel);
    Ok(VmSpec {
        dir: dir.to_owned(),
        kernel: config.files.kernel()?,
        initramfs: config.files.initramfs()?,
        cmdline: config.kernel_params.clone(),
        vcpus,
        memory,
        nested: config.nested,
        network_devices: DEVICES,
        disks: Vec::new(),
        console: dir.join("console"),
        share: Some(dir.join("fs")),
    })
}

/// Starts the VM and its daemon; the guest boots while this returns. `first` is what the first container sees of the
/// host, once that is known. The listener is the one that the agent will dial.
pub async fn devices(
    config: &Config,
    identity: &Identity,
    pod: &Pod,
    first: impl Future<Output = Option<First>>,
    phases: &Phases,
    log: &Logger,
) -> Result<(Parts, UnixListener), SandboxError> {
    let dir = directory::path(&config.state_dir, &identity.namespace, &identity.id);
    let failed = |source| SandboxError::Directory { path: dir.clone(), source };
    let selection = Selection::of(config)?;
    info!(log, "hypervisor chosen: {selection}");
    let mut spec = spec(config, pod, &selection, &dir)?;
    info!(log, "guest's size"; "vcpus" => spec.vcpus, "memory" => spec.memory,
        "memory_limits" => pod.resources.memory_limit_in_bytes);
    // Before the pod's share of the processor counts: its maker holds a lock of all sandboxes.
    let scratch = scratch(config, identity, pod).await?;
    directory::create(&dir).map_err(failed)?;
    let mut new = NewDirectory { path: dir.clone(), share: None, kept: false };
    let cgroup = join(&pod.cgroup, log);
    let console = Console::open(&spec.console, config.console_limit).map_err(failed)?;
    // From here on whoever finds the directory knows whose it is.
    let mut record =
        Record::new(&identity.namespace, &identity.id, &identity.socket, &spec, &selection)
            .map_err(failed)?;
    record.cgroups = cgroup.iter().flat_map(Cgroup::directories).collect();
    record.network.clone_from(&pod.network);
    // Without it the directory is taken for one that a dead shim has left.
    record.write(&dir).map_err(|error| failed(io::Error::other(error)))?;
    if let Some((scratch, _)) = &scratch {
        spec.disks.push(disk(scratch, config.scratch.size)?);
    }
    // Until the record is written again, the lock on the disk tells whose it is.
    record.scratch = scratch.as_ref().map(|(scratch, _)| scratch.path().to_owned());
    let mut disks = HashMap::new();
    if let Some(first) = first.await {
        let upper = scratch.as_ref().is_some_and(|(_, held)| held.upper);
        disks = first.take_along(upper, &selection, &mut spec).await?;
    }
    let (path, queues) = (pod.network.clone(), spec.network_queues());
    let limit = selection.network_devices(spec.disks.len());
    // Whoever finds the record finds what is left in the pod's namespace, too.
    let joined = aside(move || Network::open(path.as_deref(), queues, limit)).await??;
    spec.network_devices = joined.network.devices();
    let network = Arc::new(Following::new(joined.network, log)?);
    let wires = Wires { taps: joined.taps, namespace: joined.namespace };
    phases.stamp("network");

    record.share = spec.share.clone();
    record.devices = spec.devices();
    let share = new.share.insert(Share::create(&dir)?);
    phases.stamp("share");
    let mut virtiofsd = None;
    if let Some(socket) = &spec.share {
        virtiofsd = Some(serve(config, share.served(), socket)?);
        phases.stamp("virtiofsd");
    }
    let control = hybrid_vsock::host_port(&spec.vsock(), CONTROL_PORT);
    let listener = UnixListener::bind(control).map_err(failed)?;
    let vm = timeout(config.agent_timeout, selection.start(&spec, wires)).await;
    let vm = vm.map_err(|_| silent(config, &console))??;
    phases.stamp("vmm");
    // The VMM has them; the host may want them back before the VM ends.
    spec.disks.clear();
    new.kept = true;
    let share = new.share.take().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let record = Mutex::new(record);
    let parts = Parts {
        spec,
        selection,
        share,
        console,
        virtiofsd,
        vm,
        network,
        scratch,
        first: disks,
        forward_sockets: config.forward_sockets.clone(),
        cgroup,
        alias: None,
        record,
        log: log.clone(),
    };
    parts.record_phases(phases);
    Ok((parts, listener))
}

/// Starts the daemon that serves the share.
fn serve(config: &Config, dir: &Path, socket: &Path) -> Result<Daemon, SandboxError> {
    let program = config.files.virtiofsd()?;
    let (cache, threads) = (config.virtiofsd_cache, config.virtiofsd_threads);
    Ok(Virtiofsd { program: &program, dir, socket, cache, threads }.start()?)
}

/// Whether the sandbox has a scratch disk. A pod has one, since it is not known yet which of its containers will want it;
/// others have one where they ask for it.
pub fn has_scratch(config: &Config, pod: &Pod) -> bool {
    let asked = !config.scratch.paths.is_empty() || config.rootfs_upper == Upper::Guest;
    config.scratch.size > 0 && (pod.in_kubernetes || asked)
}

/// Makes the sandbox's scratch disk, if it has one.
pub async fn scratch(
    config: &Config,
    identity: &Identity,
    pod: &Pod,
) -> Result<Option<(Scratch, OnScratch)>, SandboxError> {
    if !has_scratch(config, pod) {
        return Ok(None);
    }
    let wanted = config.scratch.clone();
    // What divides them is in neither.
    let name = format!("{}@{}", identity.namespace, identity.id);
    let scratch = aside(move || Scratch::create(&wanted, &name)).await??;
    let held = OnScratch {
        filesystem: config.scratch.filesystem,
        paths: config.scratch.paths.clone(),
        upper: config.rootfs_upper == Upper::Guest,
    };
    Ok(Some((scratch, held)))
}

/// A scratch disk as one that the VM starts with.
fn disk(scratch: &Scratch, size: u64) -> Result<Disk, SandboxError> {
    let file = scratch
        .file()
        .map_err(|source| SandboxError::Directory { path: scratch.path().to_owned(), source })?;
    let (serial, what) = (SCRATCH_SERIAL.to_owned(), show(size));
    Ok(Disk { serial, file: Arc::new(file), readonly: false, what })
}

/// Joins the sandbox's control group. A sandbox that counts as somebody else's is better than none.
pub fn join(path: &str, log: &Logger) -> Option<Cgroup> {
    if path.is_empty() {
        return None;
    }
    Cgroup::join(path)
        .inspect_err(|error| warn!(log, "the sandbox's cgroup cannot be joined: {error}"))
        .ok()
}

/// Waits for the agent.
pub async fn agent(
    parts: &Parts,
    listener: UnixListener,
    config: &Config,
) -> Result<UnixStream, SandboxError> {
    let control = hybrid_vsock::host_port(parts.vm.vsock(), CONTROL_PORT);
    let connection = tokio::select! {
        reason = over(parts) => return Err(died(reason, parts)),
        accepted = timeout(config.agent_timeout, listener.accept()) => match accepted {
            Ok(Ok((connection, _))) => connection,
            Ok(Err(source)) => return Err(SandboxError::Directory { path: control, source }),
            Err(_) => return Err(silent(config, &parts.console)),
        },
    };
    // Nobody else may speak for the agent.
    drop(listener);
    let _ = std::fs::remove_file(control);
    Ok(connection)
}

/// Why the agent cannot be talked to is better known by the VMM, if that has ended.
async fn last_words(parts: &Parts, otherwise: SandboxError) -> SandboxError {
    // The VM's, and then its daemon's.
    match timeout(2 * LAST_WORDS, over(parts)).await {
        Ok(reason) => died(reason, parts),
        Err(_) => otherwise,
    }
}

/// Sets the guest up, whose agent serves on this connection.
pub async fn guest(
    parts: &Parts,
    connection: UnixStream,
    config: &Config,
    pod: &Pod,
    phases: &Phases,
    log: &Logger,
) -> Result<Guest, SandboxError> {
    let guest = Guest::new(connection, parts.vm.vsock().to_owned());
    let mut request = setup_request(pod, parts).map_err(|source| SandboxError::Directory {
        path: PathBuf::from("/dev/urandom"),
        source,
    })?;
    request.network = Some(parts.network.all().await?).into();
    let setup = match guest.setup(&request, config.agent_timeout).await {
        Ok(setup) => setup,
        Err(error) => return Err(last_words(parts, error.into()).await),
    };
    for stamp in setup.stamps.iter().take(16) {
        let name = format!("guest.{}", crate::guest::clean(&stamp.phase));
        phases.add(&name, Duration::from_micros(stamp.uptime_us));
    }
    phases.stamp("setup");
    info!(log, "guest ready";
        "kernel" => crate::guest::clean(&setup.kernel_release),
        "agent" => crate::guest::clean(&setup.agent_version));
    Ok(guest)
}

/// Returns how the VM ended, once it has; without its file share a VM is over too.
pub async fn over(parts: &Parts) -> String {
    let Some(virtiofsd) = &parts.virtiofsd else { return parts.vm.wait().await.to_string() };
    let (exit, daemon) = tokio::select! {
        exit = parts.vm.wait() => (Some(exit), timeout(LAST_WORDS, virtiofsd.wait()).await.ok()),
        ended = virtiofsd.wait() => {
            (timeout(LAST_WORDS, parts.vm.wait()).await.ok(), Some(ended))
        }
    };
    // A daemon that ends well does so because the VMM has ended; any other end may be the cause.
    let daemon = daemon.filter(|ended| exit.is_none() || ended.status != Status::Code(0));
    let daemon =
        daemon.map(|ended| format!("{} {}: {}", virtiofsd.role(), ended.status, ended.output));
    let reasons: Vec<_> = daemon.into_iter().chain(exit.map(|exit| exit.to_string())).collect();
    reasons.join("; ")
}

fn share_mount() -> Mount {
    Mount {
        source: SHARE_TAG.to_owned(),
        target: SHARE_DIR.to_owned(),
        fstype: "virtiofs".to_owned(),
        ..Default::default()
    }
}

fn silent(config: &Config, console: &Console) -> SandboxError {
    SandboxError::Silent { seconds: config.agent_timeout.as_secs(), console: console.tail() }
}

/// Without the names of the disks nobody could tell what a VMM says of them: it knows descriptors.
fn died(reason: String, parts: &Parts) -> SandboxError {
    let disks =
        parts.first.iter().map(|((path, _), name)| format!("; {name} is {}", path.display()));
    let reason = reason + &disks.collect::<String>();
    SandboxError::Died { reason, console: parts.console.tail() }
}

fn setup_request(pod: &Pod, parts: &Parts) -> io::Result<SetupRequest> {
    let mut entropy = vec![0; ENTROPY];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut entropy)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(SetupRequest {
        hostname: pod.hostname.clone(),
        sysctls: pod.sysctls.clone(),
        clock_ns: i64::try_from(now.as_nanos()).unwrap_or(0),
        entropy,
        mounts: parts.spec.share.iter().map(|_| share_mount()).collect(),
        files: pod.guest_files(),
        ..Default::default()
    })
}
