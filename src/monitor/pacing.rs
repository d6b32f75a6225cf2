//! When workers are started: each in its turn, with a pause between two starts.

use std::time::Instant;

use super::state::{Action, Slots, State};
use crate::config::StartDelay;

/// Processes that are started before signals, orders and messages are read again: some milliseconds.
const MAX_STARTS_A_TURN: u32 = 8;

/// The starts that were made.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Starts {
    /// When the next may be made.
    next: Option<Instant>,
    /// Number of processes that may still be started in this turn of the loop.
    left: u32,
}

impl Starts {
    /// Everything that was ready has been read.
    pub(super) fn begin_turn(&mut self) {
        self.left = MAX_STARTS_A_TURN;
    }

    /// Whether one more process may be started in this turn, which then counts as started.
    pub(super) fn take_one_of_turn(&mut self) -> bool {
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }

    /// When a worker can be started that is to be at `wanted`.
    pub(super) fn earliest(&self, wanted: Instant) -> Instant {
        self.next.map_or(wanted, |next| next.max(wanted))
    }

    /// One is made now. `random` is any number.
    pub(super) fn made(&mut self, delay: StartDelay, random: u64, now: Instant) {
        self.next = Some(now + delay.pause(random));
    }
}

impl Slots {
    /// Every slot is to be filled, but those whose worker has ended for good under another monitor.
    pub(super) fn start(&mut self, now: Instant) {
        for (slot, index) in self.slots.iter_mut().zip(0..) {
            if matches!(slot.state, State::Empty) {
                slot.state = match self.settings.ended.contains(&index) {
                    true => State::EndedForGood { code: None },
                    false => State::Waiting { until: now },
                };
            }
        }
    }

    /// Fills the slots whose time has come, those first that have waited longest.
    pub(super) fn fill_those_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let waiting = self.slots.iter().zip(0..).filter_map(|(slot, index)| match slot.state {
            State::Waiting { until } if until <= now => Some((until, index)),
            _ => None,
        });
        let mut due: Vec<_> = waiting.collect();
        due.sort_unstable();
        for (until, index) in due {
            if self.starts.earliest(until) > now || !self.starts.take_one_of_turn() {
                return;
            }
            self.fill(index, now, actions);
        }
    }
}
