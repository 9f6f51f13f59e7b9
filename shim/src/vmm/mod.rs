//! What the sandbox needs of a virtual machine monitor, whichever it is.

mod cloud_hypervisor;
mod error;
mod exit;
mod machine;
mod memory;
mod net;
mod plug;
mod processor;
mod qemu;
mod select;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_protocols::SHARE_TAG;

use crate::helper::HelperCommand;
use crate::process::ProcessId;

pub use cloud_hypervisor::{ApiError, VmInfo, vm_info};
pub use error::StartError;
pub use exit::VmExit;
pub use net::Wires;
pub use plug::{Plug, PlugError};
pub use select::{Accel, Host, KvmProblem, SelectError, Selection, Vmm};

/// What every guest's kernel is told, before the sandbox's own parameters: the console, what is worth to be shown
/// there, and to reset at once on a panic, in case it cannot reach the panic device. The rest is time. With a single
/// vCPU it would take the lock prefixes out of its own code, at 8,000 places, for less than that costs; the end of an
/// RCU grace period, for which mounts and control groups wait, would take it several ticks; and a timer that is
/// late, since the host is busy, is no reason to give up. No interface is there that nobody has made. Of each
/// processor's own memory it would reserve 2 MiB at a time otherwise, and 4 MiB more to keep accounts of them. Three
/// quarters of all that sysfs holds would be about its caches of small objects; the name of what makes those files
/// depends on the kernel's version.
const KERNEL_PARAMS: [&str; 11] = [
    "console=ttyS0",
    "loglevel=3",
    "panic=-1",
    "noreplace-smp",
    "rcupdate.rcu_expedited=1",
    "no_timer_check",
    "dummy.numdummies=0",
    "ifb.numifbs=0",
    "fb_tunnels=none",
    "percpu_alloc=page",
    "initcall_blacklist=slab_late_init,slab_sysfs_init",
];

/// More pairs of queues for a network device than these are worth nothing.
const MAX_QUEUES: u32 = 8;

/// What a VM is made of when its VMM starts; disks may come and go later.
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
    /// How many network devices it has.
    pub network_devices: usize,
    /// Its disks, until the VMM has them.
    pub disks: Vec<Disk>,
    /// A named pipe that takes the guest's serial console. The sandbox has it open for reading
    /// before the VM starts, for opening it for writing waits for a reader.
    pub console: PathBuf,
    /// The socket on which virtiofsd already listens, for a vhost-user-fs device of the tag [`SHARE_TAG`]; none for no
    /// share.
    pub share: Option<PathBuf>,
}

impl VmSpec {
    /// The hybrid vsock socket: connect and write `CONNECT <port>\n`; the guest's connections to
    /// port P of CID 2 arrive at `<socket>_<P>`, on which the host listens before the VM starts.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.dir.join("vsock")
    }

    /// How many pairs of queues each network device has: one for each vCPU, within reason.
    #[must_use]
    pub fn network_queues(&self) -> u32 {
        self.vcpus.min(MAX_QUEUES)
    }

    /// What is plugged into the VM, in words for people.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        let share = self.share.iter();
        let share = share.map(|socket| format!("virtiofs {SHARE_TAG} on {}", socket.display()));
        let vsock = format!("vsock on {}", self.vsock().display());
        let console = format!("serial console on {}", self.console.display());
        let network = format!("{} virtio-net", self.network_devices);
        let disks = self.disks.iter().map(Disk::to_string);
        share.chain([vsock, network, console]).chain(disks).collect()
    }
}

/// A virtio-blk device.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The name by which the guest knows it, at most 20 bytes (virtio 1.3, 5.2.6).
    pub serial: String,
    /// Its bytes as they are: a file or a block device.
    pub file: Arc<File>,
    /// Whether the guest can only read it.
    pub readonly: bool,
    /// What it is, in words for people.
    pub what: String,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virtio-blk {}, {}", self.serial, self.what)
    }
}

/// Hands the VM's disks over to its VMM; they have the returned numbers there.
fn inherit_disks(command: &mut HelperCommand, spec: &VmSpec) -> io::Result<Vec<RawFd>> {
    spec.disks.iter().map(|disk| Ok(command.inherit(disk.file.try_clone()?))).collect()
}

/// A running VM. Dropping it ends it.
#[async_trait]
pub trait Vm: Send + Sync {
    /// The VMM's process id.
    fn pid(&self) -> u32;
    /// Every process that the VM consists of, the VMM first.
    fn processes(&self) -> Vec<ProcessId>;
    /// The hybrid vsock socket, [`VmSpec::vsock`].
    fn vsock(&self) -> &Path;
    /// Plugs a disk in; the guest has it soon.
    async fn plug(&self, disk: &Plug) -> Result<(), PlugError>;
    /// Takes a disk out that was plugged in. Returns once the guest has let go of it.
    async fn unplug(&self, serial: &str) -> Result<(), PlugError>;
    /// Returns when the VM is over, however that came, and all its processes have ended; any
    /// number of callers may wait.
    async fn wait(&self) -> VmExit;
    /// Ends the VM at once. The guest gets no say in it. Repeating it does no harm.
    fn kill(&self);
}

#[cfg(test)]
impl VmSpec {
    /// One for tests, of a sandbox in this directory.
    fn sample(dir: &Path) -> VmSpec {
        VmSpec {
            dir: dir.to_owned(),
            kernel: PathBuf::from("/k"),
            initramfs: PathBuf::from("/i"),
            cmdline: vec!["a=b".to_owned()],
            vcpus: 2,
            memory: 256 << 20,
            nested: false,
            network_devices: 1,
            disks: Vec::new(),
            console: dir.join("console"),
            share: Some(dir.join("fs")),
        }
    }
}

#[cfg(test)]
impl Disk {
    /// One for tests.
    fn sample(serial: &str, readonly: bool) -> Disk {
        let file = Arc::new(File::open("/dev/null").expect("open"));
        Disk { serial: serial.to_owned(), file, readonly, what: "1GiB".to_owned() }
    }
}
