//! Storage: scratch disks, and what lies on them.

mod block;
mod disk;
mod share;

use crate::runner::Case;

/// The tests, by their files.
pub const GROUPS: [&[Case]; 3] = [share::CASES, disk::CASES, block::CASES];
