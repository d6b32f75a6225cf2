//! More or fewer slots. Workers that stay are not touched.

use std::time::Instant;

use super::slot::{Slot, State};
use super::slots::Slots;
use super::vocabulary::{Action, Worker};
use crate::backoff::Backoff;
use crate::config::{Escalation, MAX_WORKERS};
use crate::control::monitor::messages::{Report, Which};

impl Slots {
    /// This number of workers is wanted from now on.
    pub(super) fn scale(&mut self, workers: u32, which: Which, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_some() || self.respawns.gave_up {
            return;
        }
        let workers = workers.min(MAX_WORKERS);
        self.settings.workers = workers;
        if let Some(mold) = &mut self.mold {
            mold.awaited_since = now;
        }
        while self.wanted() < workers {
            self.want_another(now);
        }
        while self.wanted() > workers {
            self.retire_one(which, now, actions);
        }
    }

    fn wanted(&self) -> u32 {
        self.slots.iter().filter(|slot| slot.wanted).count() as u32
    }

    /// Takes the first free slot.
    fn want_another(&mut self, now: Instant) {
        let index = self.slots.iter().position(|slot| !slot.wanted).unwrap_or_else(|| {
            self.slots.push(Slot::new(now));
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.wanted = true;
        // It is asked for, so it is no respawn.
        slot.backoff = Backoff::default();
        slot.respawns = 0;
        if matches!(slot.state, State::Empty) {
            slot.state = State::Waiting { until: now };
            slot.is_anew = true;
        }
    }

    fn retire_one(&mut self, which: Which, now: Instant, actions: &mut Vec<Action>) {
        let mut wanted = self.slots.iter().enumerate().filter(|(_, slot)| slot.wanted);
        let index = match which {
            // A slot without a worker goes first.
            Which::Oldest => wanted.min_by_key(|(_, slot)| (slot.has_worker(), slot.since)),
            Which::Last => wanted.next_back(),
            Which::First => wanted.next(),
        };
        let Some(index) = index.map(|(index, _)| index) else { return };
        let slot = &mut self.slots[index];
        slot.wanted = false;
        let empty = !slot.has_worker() || slot.retiring;
        match &mut slot.state {
            State::Empty => {}
            State::Waiting { .. } | State::EndedForGood { .. } => slot.state = State::Empty,
            State::Stopping(escalation) => {
                // It may have been wanted again, and its stop may have begun with a longer schedule.
                escalation.escalate(self.settings.tuning.retirement(), now);
                slot.retiring = true;
            }
            // It ends once it is born.
            State::Forking => slot.retiring = true,
            State::Executing { .. } | State::Starting { .. } | State::Ready { .. } => {
                slot.retiring = true;
                slot.state = State::Stopping(Escalation::begin(self.settings.tuning.retirement(), now));
            }
        }
        slot.ended_for = None;
        actions.push(Action::Report(Report::Retired { slot: index as u32, empty }));
    }

    /// Whether the worker is being stopped because it is not needed. Then its end is no failure.
    pub fn is_retiring(&self, worker: Worker) -> bool {
        self.slot_at(worker).is_some_and(|slot| slot.life == worker.life && slot.retiring)
    }

    /// Whether the status shows the slot: it has a worker, or gets one.
    pub fn is_shown(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|slot| slot.wanted || slot.has_worker())
    }
}

impl Slot {
    pub(super) fn has_worker(&self) -> bool {
        !matches!(self.state, State::Empty | State::Waiting { .. } | State::EndedForGood { .. })
    }
}
