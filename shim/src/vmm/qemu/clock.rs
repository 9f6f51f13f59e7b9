//! The guest's clock where QEMU translates: the guest's time stamp counter is then the host's
//! own, and the guest need not measure it. On a busy host it measures wrongly or gives up, and
//! runs slow by tens of per cent.

use std::arch::x86_64::_rdtsc;

use nix::time::{ClockId, clock_gettime};

use crate::vmm::processor;

/// A moment, on the counter and on the host's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    ticks: u64,
    nanos: u64,
}

/// How often a moment is read; the quickest reading is the one that nothing interrupted.
const READINGS: usize = 5;

/// The shortest time between two moments, in nanoseconds, that says how fast the counter runs: a
/// reading is good to 100 ns, so this to 100 ppm.
const SHORTEST: u64 = 2_000_000;

impl Moment {
    /// Now; nothing where the host's counter does not run steadily.
    pub(super) fn now() -> Option<Moment> {
        // Whether the counter runs at one speed, whatever the processor's own is.
        if !processor::has(&["constant_tsc"]) {
            return None;
        }
        let mut best: Option<(u64, Moment)> = None;
        for _ in 0..READINGS {
            let before = monotonic()?;
            // SAFETY: every x86-64 processor has the counter, and reading it has no effect.
            let ticks = unsafe { _rdtsc() };
            let after = monotonic()?;
            let took = after.saturating_sub(before);
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, Moment { ticks, nanos: before + took / 2 }));
            }
        }
        best.map(|(_, moment)| moment)
    }

    /// How fast the counter has run until `later`, in kHz; nothing where that is too soon to say.
    pub(super) fn khz_until(self, later: Moment) -> Option<u64> {
        let nanos = later.nanos.checked_sub(self.nanos)?;
        let ticks = later.ticks.checked_sub(self.ticks)?;
        if nanos < SHORTEST {
            return None;
        }
        u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(nanos)).ok()
    }
}

/// Nanoseconds of a clock that nobody sets or slews.
fn monotonic() -> Option<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).ok()?;
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_ticks_over_time() {
        let start = Moment { ticks: 1000, nanos: 5 };
        let later = Moment { ticks: 1000 + 25_000_000, nanos: 5 + 10_000_000 };
        assert_eq!(start.khz_until(later), Some(2_500_000));
    }

    #[test]
    fn moments_too_near_or_out_of_order_say_nothing() {
        let start = Moment { ticks: 1000, nanos: 5 };
        assert_eq!(start.khz_until(Moment { ticks: 2000, nanos: 1000 }), None);
        let early = Moment { ticks: 0, nanos: 10_000_000 };
        assert_eq!(start.khz_until(early), None);
    }

    #[test]
    fn two_measurements_agree() {
        let wait = || std::thread::sleep(std::time::Duration::from_millis(20));
        // Nothing to measure where the counter is not steady.
        let Some(first) = Moment::now() else { return };
        wait();
        let second = Moment::now().expect("steady");
        wait();
        let third = Moment::now().expect("steady");
        let one = first.khz_until(second).expect("long enough");
        let two = second.khz_until(third).expect("long enough");
        assert!(one.abs_diff(two) < one / 1000, "{one} kHz, {two} kHz");
    }
}
