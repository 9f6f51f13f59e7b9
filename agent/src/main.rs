//! `bulkhead-agent`: PID 1 of the guest, and the helper that PID 1 executes from itself to make and
//! to enter containers.

mod boot;
mod cgroup;
mod container;
mod diagnostics;
mod error;
mod events;
mod kmsg;
mod oci;
mod output;
mod reaper;
mod server;
mod setup;
mod shutdown;
mod stamps;
mod stdio;
mod streams;
mod sys;
mod template;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return boot::main();
    }
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("oci") => oci::main(args),
        _ => {
            eprintln!("bulkhead-agent runs as PID 1 of a Bulkhead guest, and not by hand");
            ExitCode::FAILURE
        }
    }
}
