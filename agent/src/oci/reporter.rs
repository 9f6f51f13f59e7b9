//! The helper's line to the agent.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::sync::Arc;

use super::report::Report;
use crate::error::Error;

/// The inherited end of a socket. Every process that libcontainer forks has it too, and the last
/// one keeps it until it executes its program: its end tells the agent that the program runs.
#[derive(Clone)]
pub struct Reporter(Arc<File>);

impl Reporter {
    /// The descriptor whose number the agent has given as an argument.
    pub fn inherited(number: &str) -> Option<Self> {
        let fd: i32 = number.parse().ok().filter(|fd| *fd > 2)?;
        // SAFETY: the agent made the descriptor for this process, which uses it nowhere else.
        Some(Self(Arc::new(unsafe { File::from_raw_fd(fd) })))
    }

    /// Says one thing. If nobody listens, the guest is at its end.
    pub fn send(&self, report: &Report) {
        let Ok(mut line) = serde_json::to_vec(report) else {
            return;
        };
        line.push(b'\n');
        let _ = (&*self.0).write_all(&line);
    }

    /// Waits until the agent has taken note.
    pub fn wait(&self) {
        // Whatever comes, or the end of the agent, is as good.
        let _ = (&*self.0).read(&mut [0]);
    }

    /// Sends the text of a panic here: stderr is the container's.
    pub fn take_panics(&self) {
        let reporter = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let text = format!("the container helper panicked: {panic}");
            reporter.send(&Report::Failed(Error::Internal(text)));
        }));
    }
}
