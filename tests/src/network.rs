//! A network namespace of the tests' own: bridges and addresses in it are not the host's.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::command::{self, Input};
use crate::failure::{Context, Failure, Outcome};

/// A network namespace. It ends with the last process in it.
pub struct Network {
    namespace: File,
}

impl Network {
    /// A new one, with nothing but a loopback device.
    ///
    /// # Errors
    /// The kernel refuses, or `ip` fails.
    pub fn new() -> Outcome<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let mut ip = Command::new("ip");
            ip.args(["link", "set", "lo", "up"]);
            command::run(ip, Input::Null, Duration::from_secs(10))?.ok()?;
            Ok(Self { namespace: File::open("/proc/thread-self/ns/net")? })
        })
    }

    /// A name by which another process finds it, as long as this is there.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// Runs a script inside, which has to succeed; returns what it printed.
    ///
    /// # Errors
    /// It fails, or takes longer than half a minute.
    pub fn sh(&self, script: &str) -> Outcome<String> {
        let mut sh = Command::new("sh");
        sh.args(["-ec", script]);
        let done = self.inside(|| command::run(sh, Input::Null, Duration::from_secs(30)))??;
        Ok(done.ok().context(format!("`{script}`"))?.out())
    }

    /// Does something inside: sockets and child processes that it makes stay there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Outcome<T> {
        in_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }
}

/// In a thread that ends afterwards, and with it its namespaces.
fn in_thread<T: Send>(work: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(Failure::new("a thread in another network namespace panicked")))
}
