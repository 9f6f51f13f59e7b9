//! What the sandbox needs of a virtual machine monitor, whichever it is.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

/// What a VM is made of. All of it is there before the VMM starts: nothing is plugged later.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The sandbox's own directory; the VMM's sockets go there, and nothing else does.
    pub dir: PathBuf,
    /// An uncompressed kernel with a PVH entry point.
    pub kernel: PathBuf,
    /// The initramfs that holds the agent.
    pub initramfs: PathBuf,
    /// Appended to the kernel's command line, after what the VMM itself needs there.
    pub cmdline: Vec<String>,
    /// How many vCPUs the guest has.
    pub vcpus: u32,
    /// Guest memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Whether the guest may run VMs of its own.
    pub nested: bool,
    /// A named pipe that takes the guest's serial console; the sandbox reads it.
    pub console: PathBuf,
    /// The virtiofs share.
    pub share: Share,
}

/// A vhost-user-fs device.
#[derive(Debug, Clone)]
pub struct Share {
    /// The name by which the guest mounts it.
    pub tag: String,
    /// The socket on which virtiofsd already listens.
    pub socket: PathBuf,
}

/// A process that belongs to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// What it is: `cloud-hypervisor`, `qemu`, `vhost-device-vsock`, ...
    pub role: &'static str,
    /// Its process id on the host.
    pub pid: u32,
}

/// A running VM.
#[async_trait]
pub trait Vm: Send + Sync {
    /// The VMM's process id.
    fn pid(&self) -> u32;
    /// Every process that the VM consists of, the VMM first.
    fn processes(&self) -> Vec<Process>;
    /// The hybrid vsock socket: connect and write `CONNECT <port>\n`; the guest's connections to
    /// port P of CID 2 arrive at `<socket>_<P>`.
    fn vsock(&self) -> &Path;
    /// Returns when the VM is over, however that came; any number of callers may wait.
    async fn wait(&self) -> VmExit;
    /// Ends the VM at once. The guest gets no say in it.
    fn kill(&self);
}

/// How a VM came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// `kill` was called.
    Killed,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest asked for a reset.
    GuestReset,
    /// The guest powered itself off.
    GuestPowerOff,
    /// The VMM, or a device process without which the VM cannot go on, ended with this exit code.
    Exited {
        /// Which process it was.
        role: &'static str,
        /// Its exit code.
        code: i32,
    },
    /// The VMM, or a device process, was ended by a signal that we did not send.
    Signaled {
        /// Which process it was.
        role: &'static str,
        /// The signal's number.
        signal: i32,
    },
}
