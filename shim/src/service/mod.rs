//! What containerd talks to: requests in, sandbox calls out, errors mapped. No logic.

mod diagnostics;
mod error;
mod metrics;
mod sandbox;
mod server;
mod spare;
mod task;
mod trial;

pub use diagnostics::{AskError, containers, inspect};
pub use server::{ServeError, serve};
pub use spare::wait;
pub use trial::{TrialError, trial};
