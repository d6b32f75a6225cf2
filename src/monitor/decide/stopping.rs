//! Stops: of everything, of single workers, and of what they leave behind.

use super::slot::{KILL_TIMEOUT, Left, Stopping};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::slot::{Slot, State};
use super::slots::Slots;
use super::vocabulary::{Action, Note, Worker};
use crate::config::{Escalation, Schedule};
use crate::control::monitor::messages::Urgency;

/// Time that a worker's own children have to notice its end, and to end by themselves.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);

impl Slots {
    pub(super) fn stop(&mut self, urgency: Urgency, now: Instant, actions: &mut Vec<Action>) {
        let before = self.stopping.as_ref().map(|stopping| stopping.urgency);
        if before >= Some(urgency) {
            return;
        }
        if before.is_none() {
            actions.push(Action::CloseListeners);
        }
        let schedule = match urgency {
            Urgency::Patient => self.settings.tuning.retirement().patient(),
            Urgency::Retiring => self.settings.tuning.retirement().clone(),
            Urgency::Graceful => self.settings.tuning.stop.clone(),
            Urgency::Quick => self.settings.tuning.stop.quick(),
        };
        let ends = |stopping: &Stopping| stopping.begun + stopping.schedule.total();
        let end = self.stopping.as_ref().filter(|stopping| stopping.urgency != Urgency::Patient).map(ends);
        match &mut self.stopping {
            // The stop that is under way ends sooner.
            Some(stopping) if end.is_some_and(|end| end <= now + schedule.total()) => stopping.urgency = urgency,
            _ => self.stopping = Some(Stopping { urgency, schedule: schedule.clone(), begun: now }),
        }
        self.stop_mold(now, actions);
        self.recycler.stop();
        for slot in self.slots.iter_mut().chain(self.recycler.beside.values_mut()) {
            match &mut slot.state {
                State::Empty | State::Forking | State::EndedForGood { .. } => {}
                State::Waiting { .. } => slot.state = State::Empty,
                State::Stopping(escalation) => {
                    slot.ended_for = None;
                    if escalation.is_patient() {
                        *escalation = Escalation::begin(&schedule, now);
                    } else if urgency != Urgency::Patient {
                        // The present stop may be shorter than the one that was begun.
                        escalation.escalate(&schedule, now);
                    }
                }
                state => *state = State::Stopping(Escalation::begin(&schedule, now)),
            }
        }
        if urgency != Urgency::Patient {
            self.groups.values_mut().for_each(|left| left.escalation.escalate(&schedule, now));
        }
    }

    pub(super) fn is_stopping_quickly(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.urgency == Urgency::Quick)
    }

    /// What a worker has left gets a moment to end by itself, and then goes through the schedule. During a stop it
    /// joins at the step that the stop has reached.
    pub(super) fn on_left_behind(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let Some(slot) = self.slot_at(worker).filter(|slot| worker.life > 0 && slot.wear.last_life >= worker.life)
        else {
            return;
        };
        if let Some(left) = self.groups.get(&worker) {
            if left.escalation.killed().is_some() {
                // It joins processes that had to be killed.
                actions.push(Action::SignalGroup(worker, Signal::SIGKILL));
            }
            return;
        }
        let heard = now + FAREWELL_TIMEOUT;
        let (schedule, escalation) = match &self.stopping {
            Some(stopping) if stopping.urgency != Urgency::Patient => {
                (&stopping.schedule, Escalation::resume(&stopping.schedule, stopping.begun, now))
            }
            is_patient => {
                // A reload or a scale ends it, which has its own schedule.
                let retires = is_patient.is_some() || (slot.retiring && slot.life == worker.life);
                let tuning = &self.settings.tuning;
                let schedule = if retires { tuning.retirement() } else { &tuning.stop };
                (schedule, Escalation::resume(schedule, heard, heard))
            }
        };
        let first = escalation.deadline().map(|_| (heard, schedule.first_signal()));
        // If the schedule is over, KILL was sent, but not to processes with a group of their own.
        let escalation = if first.is_none() { Escalation::begin(&Schedule::kill(), now) } else { escalation };
        self.groups.insert(worker, Left { first, escalation });
    }

    pub(super) fn stop_those_left_behind(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // A worker that is not born yet is not the fault of whoever wrote the program.
        let half_born = self.mold.as_ref().and_then(|mold| mold.ended_forking);
        self.groups.retain(|worker, left| {
            let due = left.deadline().is_some_and(|due| due <= now);
            if let Some((_, first)) = left.first.take_if(|_| due) {
                if !worker.is_mold() || half_born != Some(worker.life) {
                    actions.push(Action::Note(Note::LeftBehind(*worker)));
                }
                actions.push(Action::SignalGroup(*worker, first));
            }
            if let Some(signal) = left.escalation.signal_due(now) {
                actions.push(Action::SignalGroup(*worker, signal));
            }
            let given_up = left.escalation.killed().is_some_and(|killed| killed + KILL_TIMEOUT <= now);
            if given_up {
                actions.push(Action::GiveUp(*worker));
            }
            !given_up
        });
    }

    /// When a stop no longer waits for a worker that does not end. If the worker has left something behind, it has
    /// ended, and the report of that is on its way.
    pub(super) fn gives_up_at(&self, worker: Worker, escalation: &Escalation) -> Option<Instant> {
        let may_live = self.stopping.is_some() && !self.groups.contains_key(&worker);
        escalation.killed().filter(|_| may_live).map(|killed| killed + KILL_TIMEOUT)
    }

    pub(super) fn escalate_if_due(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let Some(Slot { state: State::Stopping(escalation), .. }) = self.slot_of(worker) else { return };
        let later_step = escalation.has_begun();
        if let Some(signal) = escalation.signal_due(now) {
            actions.push(Action::Signal(worker, signal));
            if later_step {
                actions.push(Action::Note(Note::Escalated(worker, signal)));
            }
        }
        let Some(Slot { state: State::Stopping(escalation), .. }) = self.slot_at(worker) else { return };
        if self.gives_up_at(worker, escalation).is_some_and(|due| due <= now) {
            self.slot_of(worker).into_iter().for_each(|slot| slot.state = State::Empty);
            actions.push(Action::GiveUp(worker));
        }
    }
}
