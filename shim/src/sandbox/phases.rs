//! When a cold start reached each of its phases.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::record::Phase;
use crate::sys::lock;

/// The stamps of one start, in the order in which they were made.
pub struct Phases {
    zero: Instant,
    stamps: Mutex<Vec<Phase>>,
}

impl Phases {
    /// Starts to count.
    pub fn start() -> Self {
        Self { zero: Instant::now(), stamps: Mutex::default() }
    }

    /// The phase `name` is reached now.
    pub fn stamp(&self, name: &str) {
        self.add(name, self.zero.elapsed());
    }

    /// Adds a phase of another clock: `since` is counted from where that clock starts.
    pub fn add(&self, name: &str, since: Duration) {
        lock(&self.stamps).push(Phase::new(name, since));
    }

    /// All stamps so far.
    pub fn all(&self) -> Vec<Phase> {
        lock(&self.stamps).clone()
    }

    /// All stamps so far, in milliseconds, for a log line.
    pub fn line(&self) -> String {
        let stamps = self.all();
        let words = stamps.iter().map(|phase| format!("{}={}", phase.name, phase.micros / 1000));
        words.collect::<Vec<_>>().join(" ")
    }
}
