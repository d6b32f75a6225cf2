//! When a monitor starts workers, one after the other, and looks at them, with a reckoning of its own.

use panzer::config::StartDelay;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

#[derive(Debug, Default)]
pub(crate) struct StartsWatch {
    last: Option<Time>,
    /// The pause after it.
    least: Time,
    /// The longest pause that was ever configured.
    longest: StartDelay,
}

impl StartsWatch {
    /// What is configured.
    pub(crate) fn goes_by(&mut self, delay: StartDelay) {
        self.longest = StartDelay(self.longest.0.max(delay.0));
    }

    /// Whether starts may ever have had to wait.
    pub(crate) fn may_wait(&self) -> bool {
        !self.longest.0.is_zero()
    }

    pub(crate) fn made(&mut self, now: Time, delay: StartDelay) -> Checked {
        let least = std::mem::replace(&mut self.least, delay.0 * 8 / 10);
        let paused = self.last.replace(now).is_none_or(|last| now - last >= least);
        hold(paused, 5, || "two workers are started with too short a pause".to_owned())
    }

    /// What may pass until it is the turn of one among so many slots.
    pub(crate) fn turn(&self, slots: usize) -> Time {
        if self.may_wait() { self.longest.longest(slots as u32 + 1) + SLACK } else { Time::ZERO }
    }
}

/// The looks at workers: one at a time, and a quarter of the time at most.
#[derive(Debug, Default)]
pub(crate) struct LooksWatch {
    under_way: bool,
    /// When the rest after all of them is over.
    rested: Time,
}

impl LooksWatch {
    pub(crate) fn begun(&mut self, now: Time) -> Checked {
        let alone = !std::mem::replace(&mut self.under_way, true);
        let rested = self.rested <= now + Time::from_millis(20);
        hold(alone && rested, 13, || "looks take more than their share of the time".to_owned())
    }

    pub(crate) fn over(&mut self, now: Time, took: Time) {
        self.under_way = false;
        self.rested = self.rested.max(now) + took * if took < Time::from_millis(1) { 2 } else { 4 };
    }
}
