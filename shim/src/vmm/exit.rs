//! How a VM came to its end, and how that reads.

use thiserror::Error;

use crate::helper::Ended;

/// How a VM came to its end. Its text is a sentence without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VmExit {
    /// `kill` was called.
    #[error("the VM was ended by the shim")]
    Killed,
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked")]
    GuestPanic,
    /// The guest asked for a reset. Where the VMM has no panic device for the guest, a panic
    /// ends in this as well.
    #[error("the guest reset itself, as its kernel does after a panic")]
    GuestReset,
    /// The guest powered itself off.
    #[error("the guest powered itself off")]
    GuestPowerOff,
    /// The VMM, or a device process without which the VM cannot go on, ended by itself or by a
    /// signal that is not ours.
    #[error("{role} {}{}", ended.status, after_colon(&ended.output))]
    Ended {
        /// Which process it was.
        role: &'static str,
        /// How it ended, and what it printed last.
        ended: Ended,
    },
}

fn after_colon(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}
