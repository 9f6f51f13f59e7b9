//! Pods, through containerd's CRI.

mod basics;
mod content;
mod deploy;
mod namespaces;
mod node;
mod refusals;
mod security;
mod streams;
mod vm;
mod volumes;

use crate::runner::Case;

/// The tests of pods, by their files.
pub const GROUPS: &[&[Case]] = &[
    node::CASES,
    volumes::CASES,
    streams::CASES,
    namespaces::CASES,
    security::CASES,
    refusals::CASES,
    vm::CASES,
    content::CASES,
    deploy::CASES,
    basics::CASES,
];
