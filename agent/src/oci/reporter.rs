//! The helper's line to the agent.

use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use super::report::{Kind, Report};

/// The inherited end of a socket. Every process that libcontainer forks has it too, and the last
/// one keeps it until it executes its program: its end tells the agent that the program runs.
#[derive(Clone)]
pub struct Reporter(Arc<OwnedFd>);

impl Reporter {
    /// The descriptor whose number the agent has given as an argument.
    pub fn inherited(number: &str) -> Option<Self> {
        let fd: i32 = number.parse().ok().filter(|fd| *fd > 2)?;
        // SAFETY: the agent made the descriptor for this process, which uses it nowhere else.
        Some(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Says one thing. If nobody listens, the guest is at its end.
    pub fn send(&self, report: &Report) {
        let Ok(mut line) = serde_json::to_vec(report) else {
            return;
        };
        line.push(b'\n');
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match nix::unistd::write(&*self.0, rest) {
                Ok(written) => rest = &rest[written..],
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits until the agent has taken note.
    pub fn wait(&self) {
        let Ok(fd) = self.0.try_clone() else { return };
        // Whatever comes, or the end of the agent, is as good.
        let _ = std::fs::File::from(fd).read(&mut [0]);
    }

    /// Sends the text of a panic here: stderr is the container's.
    pub fn take_panics(&self) {
        let reporter = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let text = format!("the container helper panicked: {panic}");
            reporter.send(&Report::Failed { kind: Kind::Internal, text });
        }));
    }
}
