//! The way of a terminal's master side from the container to the agent.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};

/// Where these sockets are. Their names are short: the name of a socket ends at 107 bytes, and ids
/// alone may be longer.
const DIRECTORY: &str = "/run/bulkhead/consoles";

/// A socket on which libcontainer hands over the master side. Its file goes with it.
pub struct Console {
    listener: UnixListener,
    path: String,
}

impl Console {
    /// Listens under a name that no other process uses.
    ///
    /// # Errors
    /// [`Error::Internal`] if the socket can't be made.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = format!("{DIRECTORY}/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        fs::create_dir_all(DIRECTORY).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// The socket's name.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The master side, which has been sent when the process is there.
    ///
    /// # Errors
    /// [`Error::Internal`] if none arrives.
    pub async fn master(&self) -> Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await.map_err(failed)?;
        loop {
            stream.readable().await.map_err(failed)?;
            match stream.try_io(Interest::READABLE, || receive(&stream)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map_err(failed),
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It is a name without meaning from now on.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes one descriptor from a message.
fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut text = [0; 256];
    let mut iov = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just made this descriptor for this message alone, and there
            // is room for one.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no terminal came"))
}

fn failed(error: io::Error) -> Error {
    Error::io("cannot get the process's terminal", error)
}
