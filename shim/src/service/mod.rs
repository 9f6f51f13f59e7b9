//! What containerd talks to: requests in, sandbox calls out, errors mapped. No logic.

mod error;
mod metrics;
mod server;
mod task;

pub use server::{ServeError, serve};
