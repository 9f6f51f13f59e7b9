//! A network namespace on the host.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

use super::NetworkError;
use crate::host;
use crate::sys::in_thread;

/// The calling thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

/// `_IO(NSIO, 0x3)` of linux/nsfs.h: what kind of namespace a descriptor is.
const NS_GET_NSTYPE: libc::c_ulong = nix::request_code_none!(0xb7, 0x3);

/// A network namespace. It is there as long as this is.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// The one that a path names.
    ///
    /// # Errors
    /// [`NetworkError::Namespace`] and [`NetworkError::Refused`]
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace { path: path.to_owned(), source };
        let refused = |reason| NetworkError::Refused { path: path.to_owned(), reason };
        // The host may have made it after this process began.
        let found = host::find(path).map_err(failed)?;
        let file = File::open(host::by_descriptor(&found)).map_err(failed)?;
        // SAFETY: the request takes no argument, and is ENOTTY for other kinds of files.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if Errno::result(kind) != Ok(libc::CLONE_NEWNET) {
            return Err(refused("it is no network namespace"));
        }
        let (own, its) = (fs::metadata(OWN).map_err(failed)?, file.metadata().map_err(failed)?);
        if (own.dev(), own.ino()) == (its.dev(), its.ino()) {
            return Err(refused("it is the host's own, which cannot be shared with a guest"));
        }
        Ok(Self(file))
    }

    /// A new one, with nothing but a loopback interface that is down.
    ///
    /// # Errors
    /// What unshare(2) says.
    pub fn new() -> io::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OWN).map(Self)
        })
    }

    /// Does something inside. Sockets that it opens stay there.
    ///
    /// # Errors
    /// What setns(2) says, and what `work` says.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// A descriptor of its own for a process that is to be in it.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_of_another_is_refused() {
        for (path, text) in [
            ("/nowhere", "the pod's network namespace /nowhere: No such file"),
            ("/etc/passwd", "it is no network namespace"),
            ("/proc/self/ns/pid", "it is no network namespace"),
            ("/proc/self/ns/net", "it is the host's own"),
        ] {
            let error = Namespace::open(Path::new(path)).expect_err(path);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
