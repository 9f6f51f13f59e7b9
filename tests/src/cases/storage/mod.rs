//! Storage: scratch disks, and what lies on them.

mod disk;
mod share;

use crate::runner::Case;

/// The tests, by their files.
pub const GROUPS: [&[Case]; 2] = [share::CASES, disk::CASES];
