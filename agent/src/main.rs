//! `bulkhead-agent`: PID 1 of the guest, and the helper that PID 1 executes from itself to make and
//! to enter containers.

mod boot;
mod cgroup;
mod container;
mod diagnostics;
mod disk;
mod error;
mod events;
mod jit;
mod kmsg;
mod network;
mod oci;
mod output;
mod reaper;
mod sandbox;
mod server;
mod setup;
mod shutdown;
mod stamps;
mod stdio;
mod streams;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args();
    match (args.next().as_deref(), args.next().as_deref()) {
        (Some(sandbox::pause::NAME), None) => sandbox::pause::main(),
        (_, Some("oci")) => oci::main(args),
        _ if std::process::id() == 1 => boot::main(),
        _ => {
            eprintln!("bulkhead-agent runs as PID 1 of a Bulkhead guest, and not by hand");
            ExitCode::FAILURE
        }
    }
}
