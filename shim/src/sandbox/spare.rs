//! A sandbox that is nobody's yet: its guest has booted and waits. What is made later for the one that it becomes is
//! what depends on that.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use bulkhead_protocols::SCRATCH_SERIAL;
use futures::future::ready;
use slog::Logger;
use thiserror::Error;
use tokio::net::UnixStream;

use super::first::First;
use super::launch::{self, Alias, Parts};
use super::phases::Phases;
use super::{Identity, Pod, SandboxError, directory};
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::network::NetworkError;
use crate::record::Record;
use crate::storage::block::Exposed;
use crate::sys::lock;
use crate::vmm::{Plug, PlugError, Selection};

/// Why a spare is not taken. The sandbox starts without it.
#[derive(Debug, Error)]
pub enum Unfit {
    /// It was made with another configuration, by the files, or by the pod's annotations and limits.
    #[error("its guest is another than the one that is asked for")]
    Other,
    /// Its VMM takes no disk while it runs.
    #[error("its VM takes no disks any more")]
    Disks,
    /// Its directory or its processes cannot become the sandbox's.
    #[error("what it has on the host")]
    Host(#[source] io::Error),
    /// Its network devices cannot become the pod's.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It does not take the scratch disk.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// What it would need cannot be had.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// A sandbox without a container, whose agent has called and waits for an answer.
pub struct Spare {
    parts: Parts,
    connection: UnixStream,
    made_of: String,
}

impl Spare {
    /// Makes one, for such a pod.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left then.
    pub async fn boot(config: &Config, pod: &Pod, log: &Logger) -> Result<Spare, SandboxError> {
        let identity = Identity {
            namespace: Record::SPARE.to_owned(),
            id: format!("spare-{}", std::process::id()),
            socket: PathBuf::new(),
        };
        let (phases, first) = (Phases::start(), ready(None));
        let (parts, listener) =
            launch::devices(config, &identity, pod, first, &phases, log).await?;
        let connection = launch::agent(&parts, listener, config).await?;
        let made_of = made_of(config, pod, &parts)?;
        Ok(Spare { parts, connection, made_of })
    }

    /// Returns how it ended, once it has.
    pub async fn over(&self) -> String {
        launch::over(&self.parts).await
    }

    /// Makes it the sandbox of this pod. `first` is what its first container sees of the host, once that is known.
    ///
    /// # Errors
    /// [`Unfit`]; nothing is left of it then.
    pub async fn adopt(
        self,
        config: &Config,
        identity: &Identity,
        pod: &Pod,
        first: impl Future<Output = Option<First>>,
        log: &Logger,
    ) -> Result<(Parts, UnixStream), Unfit> {
        let Spare { mut parts, connection, made_of: was } = self;
        if made_of(config, pod, &parts)? != was {
            return Err(Unfit::Other);
        }
        let lacks_scratch = parts.scratch.is_none() && launch::has_scratch(config, pod);
        if !parts.selection.takes_disks()
            && (lacks_scratch || first.await.is_some_and(|first| first.brings_disks()))
        {
            return Err(Unfit::Disks);
        }
        let scratch =
            if lacks_scratch { launch::scratch(config, identity, pod).await? } else { None };
        parts.cgroup = launch::join(&pod.cgroup, log);
        {
            // Written with the new name: whoever finds that finds what is left in the pod's namespace, too.
            let mut record = lock(&parts.record);
            record.cgroups = parts.cgroup.iter().flat_map(Cgroup::directories).collect();
            record.network.clone_from(&pod.network);
            if let Some((scratch, _)) = &scratch {
                record.scratch = Some(scratch.path().to_owned());
            }
        }
        rename(&mut parts, config, identity).map_err(Unfit::Host)?;
        follow(&parts).map_err(Unfit::Host)?;
        if let Some(path) = &pod.network {
            parts.network = parts.network.moved(path.clone()).await?.into();
        }
        if let Some((scratch, held)) = scratch {
            let path = parts.spec.dir.join(SCRATCH_SERIAL);
            // The VMM has it once it is plugged in.
            let exposed = Exposed::at(path, scratch.path());
            let exposed = exposed.map_err(|error| SandboxError::Share(error.into()))?;
            let (serial, path) = (SCRATCH_SERIAL.to_owned(), exposed.path.clone());
            parts.vm.plug(&Plug { serial, path, readonly: false }).await?;
            parts.scratch = Some((scratch, held));
        }
        parts.forward_sockets.clone_from(&config.forward_sockets);
        Ok((parts, connection))
    }
}

/// What its guest is made of, in words that are the same for the same. Files are what they are by their content, as far
/// as that can be seen without reading it.
fn made_of(config: &Config, pod: &Pod, parts: &Parts) -> Result<String, SandboxError> {
    let selection = Selection::of(config)?;
    let spec = launch::spec(config, pod, &selection, Path::new(""))?;
    let virtiofsd = config.files.virtiofsd()?;
    let content = |path: &Path| {
        let seen = fs::metadata(path).ok()?;
        Some((seen.dev(), seen.ino(), seen.size(), seen.ctime(), seen.ctime_nsec()))
    };
    let files = [&selection.program, &spec.kernel, &spec.initramfs, &virtiofsd];
    let files = files.map(|path| (path, content(path)));
    let daemon = (config.virtiofsd_cache, config.virtiofsd_threads, config.console_limit);
    let scratch = parts.scratch.as_ref().map(|_| (&config.scratch, config.rootfs_upper));
    let machine = (&spec.cmdline, spec.vcpus, spec.memory, spec.nested);
    Ok(format!("{:?}", (&selection, files, machine, daemon, scratch)))
}

/// Gives the directory the sandbox's name. What was told its old name still finds it. Nobody who looks for spares finds
/// one in it, at any moment.
fn rename(parts: &mut Parts, config: &Config, identity: &Identity) -> io::Result<()> {
    let dir = directory::path(&config.state_dir, &identity.namespace, &identity.id);
    let old = parts.spec.dir.clone();
    if dir.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    {
        let mut record = lock(&parts.record);
        record.namespace.clone_from(&identity.namespace);
        record.id.clone_from(&identity.id);
        record.socket.clone_from(&identity.socket);
        record.alias = Some(old.clone());
        record.write(&old).map_err(io::Error::other)?;
    }
    fs::rename(&old, &dir)?;
    parts.spec.dir.clone_from(&dir);
    let alias = Alias(old);
    symlink(dir.file_name().unwrap_or_default(), &alias.0)?;
    parts.alias = Some(alias);
    Ok(())
}

/// Has the processes be where this one is: in its control group, and as dear to the host.
fn follow(parts: &Parts) -> io::Result<()> {
    let score = fs::read_to_string("/proc/self/oom_score_adj")?;
    for process in parts.processes() {
        fs::write(format!("/proc/{}/oom_score_adj", process.pid), &score)?;
        if let Some(cgroup) = &parts.cgroup {
            cgroup.take(process.pid)?;
        }
    }
    Ok(())
}
