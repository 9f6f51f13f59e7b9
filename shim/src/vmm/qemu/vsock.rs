//! The vsock device: QEMU has no hybrid vsock of its own, so a daemon gives it one over
//! vhost-user, with the same protocol on its socket that cloud-hypervisor speaks.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use crate::helper::{Helper, HelperCommand};
use crate::sys::watcher;
use crate::vmm::{StartError, VmSpec};

/// The process's name in records and messages.
const ROLE: &str = "vhost-device-vsock";

/// The guest's context id. It is the daemon's own affair: two VMs may have the same.
const GUEST_CID: u32 = 3;

/// The name of the daemon's vhost-user socket in the sandbox's directory.
const SOCKET: &str = "vsock-device";

/// How long the daemon may take to listen. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between `bind`, which makes the socket's name, and `listen` lie microseconds without an event.
const UNTIL_LISTEN: Duration = Duration::from_micros(200);

/// Starts the daemon. Returns it with a connection to it, for QEMU.
pub(super) async fn start(
    program: &Path,
    spec: &VmSpec,
) -> Result<(Helper, UnixStream), StartError> {
    let socket = spec.dir.join(SOCKET);
    let failed = |source| StartError::Socket { what: "vsock device", path: socket.clone(), source };
    // Watched before the daemon starts, so that its socket is not missed.
    let appears = Appearance::watch(&spec.dir).map_err(failed)?;

    let mut command = HelperCommand::new(ROLE, program);
    let (path, host) = (socket.display(), spec.vsock());
    let device = format!("guest-cid={GUEST_CID},socket={path},uds-path={}", host.display());
    command.arg("--vm").arg(device);
    let daemon = command.spawn()?;

    let connected = async {
        appears.of(&socket).await?;
        connect(&socket).await
    };
    tokio::select! {
        connection = timeout(PATIENCE, connected) => match connection {
            Ok(connection) => Ok((daemon, connection.map_err(failed)?)),
            Err(_) => Err(StartError::NotReady { role: ROLE, after: PATIENCE }),
        },
        ended = daemon.wait() => Err(StartError::Ended { role: ROLE, ended }),
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => sleep(UNTIL_LISTEN).await,
            other => return other,
        }
    }
}

/// New names in a directory (inotify(7)).
struct Appearance(AsyncFd<OwnedFd>);

impl Appearance {
    fn watch(dir: &Path) -> io::Result<Appearance> {
        let watch = watcher()?;
        inotify::add_watch(watch.get_ref(), dir, WatchFlags::CREATE)?;
        Ok(Appearance(watch))
    }

    /// Returns once the path is there. Which name is new does not matter: the path is looked at again.
    async fn of(&self, path: &Path) -> io::Result<()> {
        while !path.try_exists()? {
            self.0.readable().await?.clear_ready();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn daemon(dir: &Path, script: &str) -> PathBuf {
        let program = dir.join("daemon");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        program
    }

    #[tokio::test]
    async fn a_daemon_that_ends_is_reported_with_its_words() {
        let dir = tempfile::tempdir().expect("tempdir");
        let program = daemon(dir.path(), "echo no such option; exit 0");
        let error = start(&program, &VmSpec::sample(dir.path())).await.expect_err("it ended");
        assert_eq!(
            error.to_string(),
            "vhost-device-vsock ended with exit code 0 before the VM started: no such option"
        );
    }

    #[tokio::test]
    async fn a_name_that_appears_late_is_seen() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("late");
        let appears = Appearance::watch(dir.path()).expect("watch");
        let make = async {
            fs::write(dir.path().join("other"), "").expect("write");
            sleep(Duration::from_millis(20)).await;
            fs::write(&path, "").expect("write");
        };
        let (seen, ()) = tokio::join!(timeout(Duration::from_secs(5), appears.of(&path)), make);
        seen.expect("in time").expect("seen");
    }
}
