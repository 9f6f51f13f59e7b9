//! The wire between the shim on the host and the agent in the guest: `proto/agent.proto`, its
//! generated code, the numbers that both sides must agree on, and how both tell an error. Beside it, what a
//! shim must know of the CRI, in `proto/cri.proto`, and of containerd's options, in `proto/runtimeoptions.proto`.

#![forbid(unsafe_code)]

mod chain;
pub mod hybrid_vsock;
pub mod netlink;

pub use chain::chain;
pub use generated::{agent, agent_ttrpc, cri, runtimeoptions};

/// What is generated from `proto/`, which heeds no lint.
#[allow(
    missing_docs,
    nonstandard_style,
    rust_2018_idioms,
    unused,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
mod generated {
    /// The messages of `proto/agent.proto`.
    pub mod agent {
        include!(concat!(env!("OUT_DIR"), "/agent.rs"));
    }

    /// The client and the server side of the service in `proto/agent.proto`.
    pub mod agent_ttrpc {
        include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
    }

    /// The messages of `proto/cri.proto`.
    pub mod cri {
        include!(concat!(env!("OUT_DIR"), "/cri.rs"));
    }

    /// The messages of `proto/runtimeoptions.proto`.
    pub mod runtimeoptions {
        include!(concat!(env!("OUT_DIR"), "/runtimeoptions.rs"));
    }
}

/// The vsock port on the host (CID 2) that the agent dials, and on which it then serves.
pub const CONTROL_PORT: u32 = 1024;

/// The vsock port in the guest that the shim dials for each stdio stream.
pub const STREAM_PORT: u32 = 1025;

/// How many bytes of an output stream the agent may have sent without an acknowledgement.
pub const STREAM_WINDOW: usize = 48 << 10;

/// For how many bytes that it has handed on the shim sends one byte of acknowledgement.
pub const STREAM_ACK: usize = 16 << 10;

/// The hardware address with which the VM's network device of this number comes. It tells the guest which device is
/// which, and is no interface's: the agent gives each the address that the pod's interface has on the host.
#[must_use]
pub const fn device_address(number: u8) -> [u8; 6] {
    // Locally administered (IEEE 802).
    [0x02, b'b', b'u', b'l', b'k', number]
}

/// A hardware address as people and sysfs write it.
#[must_use]
pub fn address_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// The link by which the kubelet switches a volume's content at once (its AtomicWriter).
pub const VOLUME_DATA: &str = "..data";

/// Where the guest has what its containers share.
pub const SHARED_DIR: &str = "/run/bulkhead/shared";

/// Where the guest has parts of volumes that containers share, in a directory for each container that has one.
pub const PARTS_DIR: &str = "/run/bulkhead/parts";

/// Where the guest has the files that are the same for all containers of a pod.
pub const FILES_DIR: &str = "/run/bulkhead/files";

/// Where the guest has its copies of volumes, in a directory for each container.
pub const VOLUMES_DIR: &str = "/run/bulkhead/volumes";

/// Where the guest listens in the place of sockets of the host, in a directory for each container.
pub const SOCKETS_DIR: &str = "/run/bulkhead/sockets";

/// The serial number of the sandbox's scratch disk.
pub const SCRATCH_SERIAL: &str = "scratch";

/// Where the guest has its scratch disk, once a container needs it.
pub const SCRATCH_DIR: &str = "/run/bulkhead/scratch";

/// Where the guest has root file systems that it has put together itself, in a directory for each container.
pub const ROOTFS_DIR: &str = "/run/bulkhead/rootfs";

/// What a disk's serial number follows in the name of a device that a [`Mount`](agent::Mount) has as its source.
pub const DISK_BY_SERIAL: &str = "/dev/disk/by-id/virtio-";

/// The tag of the sandbox's virtiofs share.
pub const SHARE_TAG: &str = "share";

/// Where the agent mounts the sandbox's share.
pub const SHARE_DIR: &str = "/run/bulkhead/share";
