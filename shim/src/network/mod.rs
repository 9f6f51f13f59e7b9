//! A pod's network namespace on the host.

mod forward;
mod sk_lookup;

pub use forward::{Forward, NetworkError};
