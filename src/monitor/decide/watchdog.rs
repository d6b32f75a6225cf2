//! The watchdog (`--watchdog`): a ready worker says again and again that it lives. One that does not is aborted.
//!
//! It is off while a worker starts or stops. A worker is judged only once everything that it has said has been read. A
//! monitor that was stopped, or got no processor, is late itself, and then each worker has one more period. The deadline
//! moves with what workers say, so that an armed watchdog wakes nobody who is not woken by that.

use std::time::{Duration, Instant};

use super::slot::State;
use super::slots::Slots;
use super::vocabulary::{Action, Note, Worker};
use crate::config::Escalation;
use crate::worker::cause::Cause;

impl Slots {
    pub(super) fn on_lives(&mut self, worker: Worker, now: Instant) {
        let usual = self.settings.watchdog;
        if let Some(slot) = self.slot_of(worker) {
            slot.watchdog.begin(usual, now);
        }
    }

    /// It has as much time as if it had been asked to stop.
    pub(super) fn on_stops(&mut self, worker: Worker, now: Instant) {
        let until = now + self.settings.tuning.stop.total();
        if let Some(slot) = self.slot_of(worker).filter(|slot| matches!(slot.state, State::Ready { .. })) {
            slot.watchdog.extend(until);
        }
    }

    pub(super) fn on_watched_every(&mut self, worker: Worker, period: Duration, now: Instant) {
        if let Some(slot) = self.slot_of(worker) {
            slot.watchdog.own = Some(period);
        }
        self.on_lives(worker, now);
    }

    pub(super) fn abort_the_silent(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let usual = self.settings.watchdog;
        for worker in self.workers() {
            let Some(slot) = self.slot_of(worker) else { continue };
            let (Some(due), Some(period)) = (slot.watchdog.due, slot.watchdog.period(usual)) else { continue };
            if !matches!(slot.state, State::Ready { .. }) || now < due {
                continue;
            }
            if now < due + period / 4 {
                self.abort(worker, Some(period), now, actions);
            } else {
                slot.watchdog.begin(usual, now);
            }
        }
    }

    /// ABRT, then the stop schedule.
    pub(super) fn abort(&mut self, worker: Worker, time: Option<Duration>, now: Instant, actions: &mut Vec<Action>) {
        let schedule = self.settings.tuning.stop.clone().after_abort();
        let Some(slot) = self.slot_of(worker).filter(|_| !worker.is_mold()) else { return };
        if matches!(slot.state, State::Starting { .. } | State::Ready { .. }) {
            slot.state = State::Stopping(Escalation::begin(&schedule, now));
            slot.ended_for = Some(Cause::Watchdog(time, false));
            actions.push(Action::Note(Note::Aborted(worker, time)));
        }
    }
}
