//! When the logger is started, and started again.

use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Pace};

/// The waits between two starts of the logger: the first comes at once. All are short, because a worker whose pipe is full
/// waits meanwhile.
const PACE: Pace =
    Pace { delay: Duration::from_millis(10), delay_max: Duration::from_secs(1), healthy_after: Duration::from_secs(1) };

/// The life of the logger, of which there is at most one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LoggerLife {
    backoff: Backoff,
    /// When it was started, if it runs.
    since: Option<Instant>,
    /// When it is to be started again.
    due: Option<Instant>,
}

impl LoggerLife {
    /// One that has run since before a restart in place.
    pub(crate) fn running(now: Instant) -> LoggerLife {
        LoggerLife { since: Some(now), ..LoggerLife::default() }
    }

    /// There is something to read. Returns whether to start the logger now.
    pub(crate) fn is_needed(&mut self, now: Instant) -> bool {
        let start = self.since.is_none() && self.due.is_none_or(|due| due <= now);
        if start {
            (self.since, self.due) = (Some(now), None);
        }
        start
    }

    /// It has ended, or could not be started. Returns the wait before the next start.
    pub(crate) fn on_ended(&mut self, now: Instant) -> Duration {
        let lived = self.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let wait = self.backoff.after(lived, true, PACE, u64::from(lived.subsec_nanos()));
        self.due = Some(now + wait);
        wait
    }

    /// When [`LoggerLife::is_needed`] is to be asked again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_at_once_and_then_more_and_more_slowly() {
        let mut now = Instant::now();
        let mut life = LoggerLife::default();
        assert!(life.is_needed(now) && !life.is_needed(now));
        let mut waits = Vec::new();
        for _ in 0..12 {
            let wait = life.on_ended(now);
            assert_eq!(life.deadline(), Some(now + wait));
            assert!(wait.is_zero() || !life.is_needed(now));
            now += wait;
            assert!(life.is_needed(now));
            waits.push(wait);
        }
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits[11] >= Duration::from_millis(800) && waits[11] <= Duration::from_secs(1));
        now += Duration::from_secs(2);
        assert_eq!(life.on_ended(now), Duration::ZERO);
    }
}
