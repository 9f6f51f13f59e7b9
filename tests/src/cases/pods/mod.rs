//! Pods, through containerd's CRI.

mod basics;
mod content;
mod namespaces;
mod security;
mod streams;

use crate::runner::Case;

/// The tests of pods, by their files.
pub const GROUPS: &[&[Case]] = &[
    streams::CASES,
    namespaces::CASES,
    security::CASES,
    content::CASES,
    basics::CASES,
];
