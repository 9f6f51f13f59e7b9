//! The host side of Bulkhead.

pub mod args;
pub mod bootstrap;
mod cgroup;
pub mod cleanup;
pub mod config;
pub mod container;
pub mod events;
pub mod guest;
pub mod helper;
mod host;
pub mod info;
pub mod logging;
pub mod network;
mod options;
pub mod process;
pub mod record;
pub mod sandbox;
pub mod service;
pub mod spare;
mod sparse;
pub mod storage;
mod sys;
pub mod version;
pub mod vmm;
