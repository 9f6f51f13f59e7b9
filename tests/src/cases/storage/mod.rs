//! Storage: scratch disks, and what lies on them.

mod attack;
mod block;
mod disk;
mod programs;
mod share;

use crate::runner::Case;

/// The tests, by their files.
pub const GROUPS: [&[Case]; 5] =
    [programs::CASES, share::CASES, disk::CASES, block::CASES, attack::CASES];
