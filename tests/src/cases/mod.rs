//! The tests, by what they are about.

mod api;
mod differential;
mod events;
mod exec;
mod hostile;
mod lifecycle;
mod net;
mod pods;
mod refusals;
mod run;
mod size;
mod spare;
mod specs;
mod storage;
mod streams;
mod terminal;
mod tool;

use crate::runner::Case;

/// Every test.
pub fn all() -> Vec<&'static Case> {
    // The long ones first: then none of them is left for the end.
    pods::GROUPS
        .iter()
        .chain(&net::GROUPS)
        .chain(&storage::GROUPS)
        .copied()
        .chain([
            streams::CASES,
            refusals::CASES,
            hostile::CASES,
            lifecycle::CASES,
            api::CASES,
            size::CASES,
            spare::CASES,
            specs::CASES,
            differential::CASES,
            events::CASES,
            exec::CASES,
            terminal::CASES,
            tool::CASES,
            run::CASES,
        ])
        .flatten()
        .collect()
}
