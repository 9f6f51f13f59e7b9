//! The harness of the end-to-end tests, and the tests: each states what a user relies on, and runs
//! through a real containerd.

pub mod bed;
pub mod cases;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod failure;
pub mod image;
pub mod leftovers;
pub mod measure;
pub mod network;
pub mod options;
pub mod product;
pub mod runner;
pub mod session;
pub mod shim;
pub mod spec;
pub mod ward;
