//! What the containers of a sandbox share.

pub mod forward;
pub mod pause;
mod shared;
pub mod volume;

pub use shared::Shared;
