//! `bulkhead`, the operator's tool: whether this host can run sandboxes, which ones it runs, what
//! one of them consists of, and the removal of what a dead shim left over.

#![forbid(unsafe_code)]

mod args;
mod check;
mod find;
mod gc;
mod inspect;
mod list;
mod memory;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_protocols::chain;
use bulkhead_shim::config::{Config, ConfigError};
use bulkhead_shim::record::{self, Entry, RecordError};
use bulkhead_shim::spare::Place;
use bulkhead_shim::storage::scratch;
use thiserror::Error;

use args::{Args, Command};

/// The command line is not understood.
const USAGE: u8 = 2;

/// Why a command failed.
#[derive(Debug, Error)]
enum CommandError {
    /// The configuration says where the sandboxes are.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A record, or what it names, cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The sandbox that is asked for is not there.
    #[error(transparent)]
    Find(#[from] find::FindError),
    /// What is kept for later sandboxes cannot be removed.
    #[error("{} cannot be emptied", dir.display())]
    Disks {
        /// The directory of scratch disks.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer cannot be written.
    #[error("the answer cannot be written")]
    Output(#[from] io::Error),
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("bulkhead: {error}\n\n{}", args::USAGE);
            return ExitCode::from(USAGE);
        }
    };
    match run(&args) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(CommandError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let mut out = io::stdout().lock();
    match &args.command {
        Command::Help => writeln!(out, "{}", args::USAGE)?,
        Command::Version => writeln!(out, "bulkhead {}", env!("CARGO_PKG_VERSION"))?,
        Command::Check { boot } => return Ok(check::run(*boot, &mut out)),
        Command::List => list::run(&entries(&Config::load(None)?)?, args.json, &mut out)?,
        Command::Inspect { id } => {
            let entries = entries(&Config::load(None)?)?;
            let (directory, record) = find::find(entries, id, args.namespace.as_deref())?;
            inspect::run(&directory, &record, args.json, &mut out)?;
        }
        Command::Gc { dry_run, spares } => {
            let config = Config::load(None)?;
            let entries = entries(&config)?;
            let kept = if *spares { 0 } else { config.spares };
            if !dry_run {
                Place::remove_from(kept, &config);
            }
            let code = gc::run(&entries, kept > 0, *dry_run, &mut out);
            if *spares && !dry_run {
                let dir = &config.scratch.dir;
                let failed = |source| CommandError::Disks { dir: dir.clone(), source };
                scratch::clear(dir).map_err(failed)?;
                // It is there as long as a sandbox is.
                let _ = std::fs::remove_dir(&config.state_dir);
            }
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The sandboxes of this host. Who may not see what they are is told so.
fn entries(config: &Config) -> Result<Vec<Entry>, CommandError> {
    let mut entries = record::list(&config.state_dir)?;
    let denied = entries.iter().position(|entry| match &entry.record {
        Err(RecordError::Io { source, .. }) => source.kind() == io::ErrorKind::PermissionDenied,
        _ => false,
    });
    if let Some(Err(error)) = denied.map(|index| entries.swap_remove(index).record) {
        return Err(error.into());
    }
    Ok(entries)
}
