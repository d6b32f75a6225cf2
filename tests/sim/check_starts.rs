//! When a monitor starts workers, one after the other, with a reckoning of its own.

use panzer::config::StartDelay;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

#[derive(Debug, Default)]
pub(crate) struct StartsWatch {
    last: Option<Time>,
}

impl StartsWatch {
    pub(crate) fn made(&mut self, now: Time, delay: StartDelay) -> Checked {
        let paused = self.last.replace(now).is_none_or(|last| now - last >= delay.0 * 8 / 10);
        hold(paused, 5, || "two workers are started with too short a pause".to_owned())
    }

    /// What may pass until it is the turn of one among so many slots.
    pub(crate) fn longest(delay: StartDelay, slots: usize) -> Time {
        if delay.0.is_zero() { Time::ZERO } else { delay.longest(slots as u32 + 1) + SLACK }
    }
}
