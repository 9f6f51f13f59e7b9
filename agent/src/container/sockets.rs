//! Sockets of the host that a container reaches: the guest listens in their place, and the host takes the connections.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bulkhead_protocols::agent::Socket;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::sys::lock;

/// The sockets of one container.
#[derive(Debug, Default)]
pub struct Sockets {
    listeners: Mutex<HashMap<String, Arc<UnixListener>>>,
    gone: watch::Sender<bool>,
}

impl Sockets {
    /// Listens on them.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn listen(&self, sockets: &[Socket]) -> Result<()> {
        for socket in sockets {
            let listener = bind(socket)
                .map_err(|error| Error::io(format_args!("cannot make {}", socket.path), error))?;
            lock(&self.listeners).insert(socket.path.clone(), Arc::new(listener));
        }
        Ok(())
    }

    /// The next connection to one of them.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the container has no such socket, or has it no longer.
    pub async fn accept(&self, path: &str) -> Result<UnixStream> {
        let none = || Error::NotFound(format!("the container has no socket {path}"));
        let mut gone = self.gone.subscribe();
        let listener = lock(&self.listeners).get(path).cloned().ok_or_else(none)?;
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((connection, _)) => Ok(connection),
                Err(error) => Err(Error::io(format_args!("cannot accept on {path}"), error)),
            },
            _ = gone.wait_for(|gone| *gone) => Err(none()),
        }
    }

    /// Closes them; whoever waits for a connection is told.
    pub fn close(&self) {
        lock(&self.listeners).clear();
        self.gone.send_replace(true);
    }
}

fn bind(socket: &Socket) -> io::Result<UnixListener> {
    let path = Path::new(&socket.path);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let listener = UnixListener::bind(path)?;
    chown(path, Some(socket.uid), Some(socket.gid))?;
    fs::set_permissions(path, Permissions::from_mode(socket.mode))?;
    Ok(listener)
}
