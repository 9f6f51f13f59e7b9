//! What both VMMs are told of network devices.

use std::fmt::Display;
use std::os::fd::OwnedFd;

/// What a VMM inherits of its network.
#[derive(Debug)]
pub struct Wires {
    /// The queues of the tap behind each network device: descriptors of `/dev/net/tun`.
    pub taps: Vec<Vec<OwnedFd>>,
    /// The network namespace that it is to run in.
    pub namespace: OwnedFd,
}

/// Numbers with something between them.
pub(super) fn list<T: Display>(numbers: &[T], between: &str) -> String {
    numbers.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}
