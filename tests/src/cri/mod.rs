//! Pods, through containerd's CRI: what the kubelet asks for, asked for by a test.

pub mod cgroup;
pub mod client;
pub mod config;
pub mod container;
pub mod ledger;
pub mod logs;
pub mod node;
pub mod pod;
pub mod stream;
pub mod volume;
pub mod watch;
