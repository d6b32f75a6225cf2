//! When workers are started: one after the other, with a pause between two starts.

use std::time::Instant;

use super::slot::State;
use super::slots::Slots;
use super::vocabulary::Action;

impl Slots {
    /// Every slot is to be filled, except those whose worker ended for good under another monitor.
    pub(super) fn start(&mut self, now: Instant) {
        for (slot, index) in self.slots.iter_mut().zip(0..) {
            if matches!(slot.state, State::Empty) {
                slot.state = match self.settings.ended.contains(&index) {
                    true => State::EndedForGood { code: None },
                    false => State::Waiting { until: now },
                };
            }
        }
        if let Some(mold) = &mut self.mold {
            mold.slot.state = State::Waiting { until: now };
        }
    }

    /// Fills the slots whose time has come, beginning with the one that has waited longest.
    pub(super) fn fill_those_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // While a thousand wait, this is asked after each event.
        if !self.starts.has_one_left() {
            return;
        }
        let waiting = self.slots.iter().zip(0..).filter_map(|(slot, index)| match slot.state {
            State::Waiting { until } if until <= now => Some((until, index)),
            _ => None,
        });
        let mut due: Vec<_> = waiting.collect();
        due.sort_unstable();
        for (until, index) in due {
            if !self.may_start_workers() || self.starts.earliest(until) > now || !self.starts.take_one_of_turn() {
                return;
            }
            self.fill(index, now, actions);
        }
    }
}
