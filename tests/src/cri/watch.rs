//! Waiting for a change in a directory of the host.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::failure::{Failure, Outcome};

/// Waits until something holds that depends on the files in a directory.
///
/// # Errors
/// It doesn't before the deadline, or can't be found out.
pub fn until(dir: &Path, deadline: Duration, holds: impl Fn() -> Outcome<bool>) -> Outcome {
    let limit = Instant::now() + deadline;
    let events = Inotify::init(InitFlags::IN_NONBLOCK)?;
    events.add_watch(
        dir,
        AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE,
    )?;
    while !holds()? {
        let left = limit.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::new("it was waited for"));
        }
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], left)?;
        // Whatever they say: what counts is looked at again.
        let _ = events.read_events();
    }
    Ok(())
}
