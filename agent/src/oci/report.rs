//! What the helper tells the agent, a line of JSON each.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// One line from the helper, or from the process that it has made and that has not executed its
/// program yet.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The process is there, under this number. The helper waits for a line before it ends.
    Pid(u32),
    /// The process has its terminal, whose master side is on its way, and waits for a line before
    /// it goes on: the terminal is to belong to this user first.
    Terminal {
        /// The user, as the guest numbers it.
        uid: u32,
    },
    /// What was asked for is done, and no process came of it.
    Done,
    /// A record of what went wrong inside libcontainer. Its own errors lose their causes on the way
    /// from process to process.
    Cause(String),
    /// It can't be done.
    Failed(Error),
}
