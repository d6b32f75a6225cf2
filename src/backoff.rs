//! Delays before something that ended is started again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The limits of a [`Backoff`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The first delay.
    pub delay: Duration,
    /// The longest delay.
    pub delay_max: Duration,
    /// After a life of at least this length the delays start over.
    pub healthy_after: Duration,
}

/// The shortest delay from the second failure on, and the shortest `delay_max`. So nothing fails in a loop without a
/// pause.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// A life of this many first delays makes up for one failure, if the worker had become ready.
const RECOVERY: u32 = 10;

/// The delays between the starts in one slot.
///
/// There is none after a healthy life, and none after the first death of a worker that had become ready. From then on,
/// and if a worker dies before it is ready, the delays double, with jitter. Without recovery no delay is shorter than
/// the one before, except for a jitter of 20 % at the longest delay.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Backoff {
    failures: u32,
    last: Duration,
}

impl Backoff {
    /// The delay after a life of `lived`. `random` is any number; it makes the slots differ.
    #[must_use]
    pub fn after(&mut self, lived: Duration, was_ready: bool, pace: Pace, random: u64) -> Duration {
        let step = pace.delay.max(MIN_DELAY);
        if lived >= pace.healthy_after.max(MIN_DELAY * RECOVERY) {
            *self = Backoff::default();
            return Duration::ZERO;
        }
        if was_ready {
            let made_up = lived.as_nanos() / step.saturating_mul(RECOVERY).as_nanos();
            if made_up > 0 {
                self.failures = self.failures.saturating_sub(u32::try_from(made_up).unwrap_or(u32::MAX));
                self.last = Duration::ZERO;
            }
            if self.failures == 0 {
                self.failures = 1;
                return Duration::ZERO;
            }
        }
        let first = if self.failures == 0 { pace.delay } else { step };
        let failures = self.failures.max(1);
        let doubled = first.saturating_mul(1u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        self.failures = failures.saturating_add(1);
        let most = pace.delay_max.max(MIN_DELAY);
        // The longest delay of one step is shorter than the shortest of the next.
        let wait = match jittered(doubled, random) {
            wait if wait <= most => wait,
            _ => most.saturating_mul(80 + (random % 21) as u32) / 100,
        };
        self.last = wait.max(self.last.min(most / 5 * 4));
        self.last
    }
}

/// `duration` ±20 %. `random` is any number.
pub fn jittered(duration: Duration, random: u64) -> Duration {
    let percent = 80 + (random % 41) as u32;
    duration.saturating_mul(percent) / 100
}

/// A small generator of random numbers (xorshift64*) for jitter. A seed makes a history repeatable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Random(u64);

impl Random {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// Another number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        delay: Duration::from_millis(100),
        delay_max: Duration::from_secs(30),
        healthy_after: Duration::from_secs(10),
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn waits(lived: Duration, was_ready: bool, pace: Pace, count: usize) -> Vec<Duration> {
        let (mut random, mut backoff) = (Random::new(7), Backoff::default());
        (0..count).map(|_| backoff.after(lived, was_ready, pace, random.draw())).collect()
    }

    #[test]
    fn waits_grow_to_the_limit_and_a_healthy_life_resets_them() {
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let mut backoff = Backoff::default();
            let mut last = Duration::ZERO;
            for life in 0..100 {
                let wait = backoff.after(SECOND, false, PACE, random.draw());
                let least = last.min(PACE.delay_max * 8 / 10);
                assert!(wait >= least && wait <= PACE.delay_max, "life {life}: {wait:?} after {last:?}");
                last = wait;
            }
            assert!(last > PACE.delay_max / 2);
            assert_eq!(backoff.after(PACE.healthy_after, false, PACE, random.draw()), Duration::ZERO);
            assert!(backoff.after(Duration::ZERO, false, PACE, random.draw()) <= PACE.delay * 12 / 10);
        }
    }

    #[test]
    fn at_the_limit_a_fleet_is_not_respawned_in_step() {
        let longest: std::collections::BTreeSet<_> =
            waits(Duration::ZERO, false, PACE, 60).into_iter().skip(20).collect();
        assert!(longest.len() > 10 && longest.iter().all(|wait| *wait >= PACE.delay_max * 8 / 10), "{longest:?}");
    }

    #[test]
    fn the_first_death_of_a_ready_worker_is_for_nothing_and_those_that_follow_at_once_are_not() {
        let crashes = waits(Duration::from_millis(50), true, PACE, 4);
        assert!(crashes[0].is_zero() && crashes[1] >= PACE.delay * 8 / 10, "{crashes:?}");
        assert!(crashes[3] >= PACE.delay * 4 * 8 / 10, "{crashes:?}");
        // A worker that serves for a while between its deaths is started at most once a second.
        assert_eq!(waits(SECOND, true, PACE, 100), [Duration::ZERO; 100]);
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            let _ = backoff.after(Duration::ZERO, false, PACE, 0);
        }
        assert!(!backoff.after(SECOND, true, PACE, 0).is_zero());
        assert!(backoff.after(SECOND * 5, true, PACE, 0).is_zero());
    }

    #[test]
    fn nothing_fails_in_a_loop_without_a_pause() {
        let no_delay = Pace { delay: Duration::ZERO, ..PACE };
        let always_healthy = Pace { healthy_after: Duration::ZERO, ..PACE };
        let nothing = Pace { delay: Duration::ZERO, delay_max: Duration::ZERO, healthy_after: Duration::ZERO };
        for pace in [no_delay, always_healthy, nothing] {
            for was_ready in [true, false] {
                let all = waits(Duration::from_millis(1), was_ready, pace, 20);
                assert!(all.iter().skip(1).all(|wait| *wait >= MIN_DELAY * 8 / 10), "{pace:?}: {all:?}");
            }
        }
        assert_eq!(waits(Duration::ZERO, false, no_delay, 1), [Duration::ZERO]);
    }

    #[test]
    fn the_largest_delays_do_not_overflow() {
        let pace = Pace { delay: Duration::MAX, delay_max: Duration::MAX, healthy_after: Duration::MAX };
        let mut backoff = Backoff::default();
        for was_ready in [false, true].repeat(25) {
            assert!(backoff.after(Duration::ZERO, was_ready, pace, 0) > Duration::ZERO);
        }
    }
}
