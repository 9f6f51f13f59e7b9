//! Storage: scratch disks, and what lies on them.

mod attack;
mod block;
mod device;
mod disk;
mod huge;
mod images;
mod programs;
mod share;
mod socket;

use crate::runner::Case;

/// The tests, by their files.
pub const GROUPS: [&[Case]; 9] = [
    programs::CASES,
    share::CASES,
    disk::CASES,
    block::CASES,
    device::CASES,
    socket::CASES,
    huge::CASES,
    images::CASES,
    attack::CASES,
];
