//! What the containers of a sandbox share.

pub mod forward;
pub mod pause;
mod shared;
mod submounts;
pub mod volume;

pub use shared::Shared;
pub use submounts::Submounts;
