//! The host side of Bulkhead.

pub mod vmm;
