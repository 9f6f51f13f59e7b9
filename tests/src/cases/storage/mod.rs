//! Storage: scratch disks, and what lies on them.

mod attack;
mod block;
mod device;
mod disk;
mod huge;
mod programs;
mod share;
mod socket;

use crate::runner::Case;

/// The tests, by their files.
pub const GROUPS: [&[Case]; 8] = [
    programs::CASES,
    share::CASES,
    disk::CASES,
    block::CASES,
    device::CASES,
    socket::CASES,
    huge::CASES,
    attack::CASES,
];
