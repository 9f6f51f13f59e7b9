//! Networks: what a pod's network namespace has on the host, its programs have.

mod interfaces;
mod programs;
mod reach;
mod refusals;
mod view;

use crate::runner::Case;

/// The tests, by their files.
pub const GROUPS: [&[Case]; 4] =
    [interfaces::CASES, reach::CASES, programs::CASES, refusals::CASES];
