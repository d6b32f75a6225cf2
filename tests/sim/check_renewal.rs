//! Follows the generations that are started because a listener was bound anew, with a reckoning of its own.

use panzer::backoff::Pace;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

#[derive(Debug, Default)]
pub(crate) struct RenewalWatch {
    /// The newest generation that lacks a listener.
    lacking: Option<u32>,
    /// When the next one is overdue, since something happened by which it is needed, or the last one was no longer
    /// starting.
    latest: Time,
    /// The gentlest pace since then.
    pace: Option<Pace>,
    /// When the last one was started that nobody had asked for, and how many in a row came soon after the one before.
    last: Option<Time>,
    hasty: u32,
}

impl RenewalWatch {
    pub(crate) fn needed(&mut self, newest: u32, now: Time, pace: Pace) {
        self.lacking = Some(newest);
        self.excuse(now, pace);
    }

    pub(crate) fn is_needed(&self) -> bool {
        self.lacking.is_some()
    }

    /// One is started that nobody asked for.
    pub(crate) fn started(&mut self, now: Time, pace: Pace) -> Checked {
        let Some(gap) = self.last.replace(now).map(|last| now - last) else { return Ok(()) };
        self.note_pace(pace);
        let pace = self.pace.take().unwrap_or(pace);
        if gap >= pace.healthy_after {
            self.hasty = 0;
            return Ok(());
        }
        let least = pace.delay.saturating_mul(1 << self.hasty.min(20)).min(pace.delay_max) * 8 / 10;
        self.hasty += 1;
        hold(gap >= least, 5, || format!("a generation with all listeners comes {gap:?} after the last"))
    }

    /// Nobody need follow for now.
    pub(crate) fn excuse(&mut self, now: Time, pace: Pace) {
        self.latest = self.latest.max(now + pace.delay_max + SLACK);
        self.note_pace(pace);
    }

    /// How long the next one is waited for may have been decided by this pace.
    fn note_pace(&mut self, pace: Pace) {
        let known = self.pace.unwrap_or(pace);
        self.pace = Some(Pace {
            delay: pace.delay.min(known.delay),
            delay_max: pace.delay_max.min(known.delay_max),
            healthy_after: pace.healthy_after.min(known.healthy_after),
        });
    }

    pub(crate) fn failed(&mut self, now: Time, pace: Pace) {
        self.excuse(now, pace);
    }

    pub(crate) fn serves(&mut self, generation: u32, now: Time, pace: Pace) {
        self.excuse(now, pace);
        self.lacking = self.lacking.filter(|newest| *newest >= generation);
    }

    /// The next one is overdue.
    pub(crate) fn is_late(&self, now: Time) -> bool {
        self.lacking.is_some() && now > self.latest
    }
}
