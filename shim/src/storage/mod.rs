//! Root file systems and volumes: from what containerd names to what the guest is to mount.

pub mod block;
pub mod host;
pub mod mount;
pub mod scratch;
pub mod share;
pub mod virtiofsd;
pub mod volume;
