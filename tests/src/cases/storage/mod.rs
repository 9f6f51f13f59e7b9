//! Storage: scratch disks, and what lies on them.

mod disk;

use crate::runner::Case;

/// The tests, by their files.
pub const GROUPS: [&[Case]; 1] = [disk::CASES];
