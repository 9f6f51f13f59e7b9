//! `delete`: what containerd runs when a shim is gone. Ends what the sandbox's record names, and
//! prints how its task ended.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};
use thiserror::Error;

use crate::args::Args;
use crate::bootstrap::{self, BootstrapError};
use crate::config::Config;
use crate::container::LOST;
use crate::events::timestamp;
use crate::record::{Record, RecordError, reap, remove_socket};
use crate::sandbox::directory_path;
use crate::service;

/// How long a shim may take to say which containers it has, or, if it ends, for that. containerd gives `delete` five
/// seconds in all.
const LAST_WORK: Duration = Duration::from_secs(4);

/// Why the rests of a sandbox stay.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BootstrapError),
    /// A process or the directory cannot be removed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The answer cannot be written.
    #[error("talking to containerd: {0}")]
    Talk(io::Error),
}

/// Does `delete`. Nothing to clean up is fine.
pub fn delete(args: &Args) -> Result<(), CleanupError> {
    // A later container of a pod owns nothing on the host: its mounts end with the sandbox's shim.
    if bootstrap::group(&args.bundle)?.is_none_or(|group| group == args.id) {
        // One that cannot be used any more does not keep what is where the sandboxes are by default.
        let config = Config::load(None).unwrap_or_default();
        let directory = directory_path(&config.state_dir, &args.namespace, &args.id);
        let record = Record::read(&directory).ok();
        if let Some(record) = &record
            && goes_on(record, &args.id)
        {
            return answer();
        }
        reap(&directory)?;
        if record.is_none() {
            let socket = bootstrap::default_socket_path(&args.address, &args.namespace, &args.id);
            remove_socket(&socket);
        }
    }
    answer()
}

/// Whether the shim is there and has containers other than this one, which then is only the first
/// that it had. A shim that is about to end gets the time for it: containerd runs `delete` after each
/// ordinary end too.
fn goes_on(record: &Record, id: &str) -> bool {
    if !record.shim.is_alive() {
        return false;
    }
    let since = Instant::now();
    match service::containers(&record.socket, LAST_WORK) {
        Ok(ids) if !ids.is_empty() => !ids.iter().any(|other| other == id),
        // It ends, or it is stuck.
        Ok(_) | Err(_) => {
            // What it has not done by then is done here.
            let _ = record.shim.wait(LAST_WORK.saturating_sub(since.elapsed()));
            false
        }
    }
}

fn answer() -> Result<(), CleanupError> {
    let response = DeleteResponse {
        exit_status: LOST,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    };
    let written = response.write_to_writer(&mut io::stdout());
    written.map_err(|error| CleanupError::Talk(error.into()))
}
