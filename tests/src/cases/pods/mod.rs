//! Pods, through containerd's CRI.

mod basics;

use crate::runner::Case;

/// The tests of pods, by their files.
pub const GROUPS: &[&[Case]] = &[basics::CASES];
