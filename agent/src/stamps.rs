//! When the guest reached each phase of its start.

use std::sync::Mutex;

use bulkhead_protocols::agent::Stamp;
use nix::time::{ClockId, clock_gettime};

use crate::sys::lock;

/// The phases passed so far, in order.
#[derive(Debug, Default)]
pub struct Stamps(Mutex<Vec<(&'static str, u64)>>);

impl Stamps {
    /// Notes that `phase` is over now.
    pub fn mark(&self, phase: &'static str) {
        lock(&self.0).push((phase, uptime_us()));
    }

    /// All stamps, in the form that the wire carries.
    pub fn to_wire(&self) -> Vec<Stamp> {
        lock(&self.0)
            .iter()
            .map(|&(phase, uptime_us)| Stamp {
                phase: phase.to_owned(),
                uptime_us,
                ..Default::default()
            })
            .collect()
    }
}

/// Microseconds since the kernel started counting; 0 if the kernel has no such clock.
fn uptime_us() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return 0;
    };
    let micros = now.tv_sec().saturating_mul(1_000_000).saturating_add(now.tv_nsec() / 1000);
    u64::try_from(micros).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_keep_their_order_and_do_not_go_back() {
        let stamps = Stamps::default();
        stamps.mark("kernel");
        stamps.mark("mounts");
        let wire = stamps.to_wire();
        assert_eq!(wire[0].phase, "kernel");
        assert_eq!(wire[1].phase, "mounts");
        assert!(wire[0].uptime_us > 0);
        assert!(wire[0].uptime_us <= wire[1].uptime_us);
    }
}
