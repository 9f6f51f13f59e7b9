//! The program that containerd runs: `start`, `delete`, and the server behind them.

use std::process::ExitCode;

use bulkhead_protocols::chain;
use bulkhead_shim::args::{Action, Args};
use bulkhead_shim::{bootstrap, cleanup, info, service};

fn main() -> ExitCode {
    let result = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => run(&args),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what stands here as the reason.
            eprintln!("containerd-shim-bulkhead-v2: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    match args.action {
        Action::Start => bootstrap::start(args)?,
        Action::Delete => cleanup::delete(args)?,
        Action::Serve => service::serve(args)?,
        Action::Spare => service::wait(args)?,
        Action::Version => info::print_version()?,
        Action::Info => info::print_info()?,
    }
    Ok(())
}
