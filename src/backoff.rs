//! How long to wait before something that ended is started again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The limits of a [`Backoff`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The first wait.
    pub delay: Duration,
    /// No wait is longer.
    pub delay_max: Duration,
    /// A life of at least this length starts over.
    pub healthy_after: Duration,
}

/// The waits between the starts of one slot: none after a healthy life, then doubling with jitter.
///
/// Until a healthy life no wait is shorter than the one before.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Backoff {
    failures: u32,
    last: Duration,
}

impl Backoff {
    /// The wait after a life of `lived`. `random` is any number, and makes the slots differ.
    #[must_use]
    pub fn after(&mut self, lived: Duration, pace: Pace, random: u64) -> Duration {
        if lived >= pace.healthy_after {
            *self = Backoff::default();
            return Duration::ZERO;
        }
        let doubled = pace.delay.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        // The longest of one step is still shorter than the shortest of the next.
        let jittered = jittered(doubled.min(pace.delay_max), random);
        self.last = jittered.clamp(self.last.min(pace.delay_max), pace.delay_max);
        self.last
    }
}

/// `duration` ±20 %. `random` is any number.
pub fn jittered(duration: Duration, random: u64) -> Duration {
    let percent = 80 + (random % 41) as u32;
    duration.saturating_mul(percent) / 100
}

/// A small generator of random numbers (xorshift64*) for jitter; its seed makes a history repeatable.
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

    #[test]
    fn waits_grow_to_the_limit_and_a_healthy_life_resets_them() {
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let mut backoff = Backoff::default();
            let mut last = Duration::ZERO;
            for life in 0..100 {
                let wait = backoff.after(Duration::from_secs(1), PACE, random.draw());
                assert!(wait >= last && wait <= PACE.delay_max, "life {life}: {wait:?} after {last:?}");
                last = wait;
            }
            assert!(last > PACE.delay_max / 2);
            assert_eq!(backoff.after(PACE.healthy_after, PACE, random.draw()), Duration::ZERO);
            assert!(backoff.after(Duration::ZERO, PACE, random.draw()) <= PACE.delay * 12 / 10);
        }
    }

    #[test]
    fn the_largest_delays_do_not_overflow() {
        let pace = Pace { delay: Duration::MAX, delay_max: Duration::MAX, healthy_after: Duration::MAX };
        let mut backoff = Backoff::default();
        for _ in 0..50 {
            assert!(backoff.after(Duration::ZERO, pace, 0) > Duration::ZERO);
        }
    }
}
