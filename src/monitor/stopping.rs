//! The stop of everything, of single workers, and of what they leave behind.

use std::time::Instant;

use super::state::{Action, Note, Slots, State, Worker};
use crate::config::{Escalation, Schedule};
use crate::control::messages::Urgency;

/// The stop of everything: what the workers go through, and since when.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stopping {
    pub(super) urgency: Urgency,
    schedule: Schedule,
    begun: Instant,
}

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
            Urgency::Patient => self.settings.tuning.stop.patient(),
            Urgency::Graceful => self.settings.tuning.stop.clone(),
            Urgency::Quick => self.settings.tuning.stop.quick(),
        };
        let ends = |stopping: &Stopping| stopping.begun + stopping.schedule.total();
        let end = self.stopping.as_ref().filter(|stopping| stopping.urgency != Urgency::Patient).map(ends);
        match &mut self.stopping {
            // The end of what it has begun comes sooner.
            Some(stopping) if end.is_some_and(|end| end <= now + schedule.total()) => stopping.urgency = urgency,
            _ => self.stopping = Some(Stopping { urgency, schedule: schedule.clone(), begun: now }),
        }
        for slot in &mut self.slots {
            match &mut slot.state {
                State::Empty | State::EndedForGood { .. } => {}
                State::Waiting { .. } => slot.state = State::Empty,
                State::Stopping(escalation) => {
                    slot.ended_for = None;
                    if escalation.is_patient() {
                        *escalation = Escalation::begin(&schedule, now);
                    } else if urgency != Urgency::Patient {
                        // A graceful stop may be shorter than it was when this one was begun.
                        escalation.hasten(&schedule, now);
                    }
                }
                state => *state = State::Stopping(Escalation::begin(&schedule, now)),
            }
        }
        if urgency != Urgency::Patient {
            self.groups.values_mut().for_each(|escalation| escalation.hasten(&schedule, now));
        }
    }

    pub(super) fn left_behind(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        // Told just before the worker's own end.
        if self.slot_of(worker).is_none() {
            return;
        }
        let mut escalation = match &self.stopping {
            Some(stopping) if stopping.urgency != Urgency::Patient => {
                Escalation::resume(&stopping.schedule, stopping.begun, now)
            }
            _ => Escalation::begin(&self.settings.tuning.stop, now),
        };
        actions.push(Action::Note(Note::LeftBehind(worker)));
        if escalation.deadline().is_none() {
            escalation = Escalation::begin(&Schedule::kill(), now);
        } else if let Some(stopping) = self.stopping.as_ref().filter(|stopping| stopping.urgency != Urgency::Patient) {
            // It was its worker that got this; it has as long to end as the stop still takes.
            actions.push(Action::SignalGroup(worker, stopping.schedule.first_signal()));
        }
        self.groups.insert(worker, escalation);
    }

    pub(super) fn escalate_if_due(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index as usize];
        let worker = Worker { slot: index, life: slot.life };
        let State::Stopping(escalation) = &mut slot.state else { return };
        let later_step = escalation.has_begun();
        if let Some(signal) = escalation.signal_due(now) {
            actions.push(Action::Signal(worker, signal));
            if later_step {
                actions.push(Action::Note(Note::Escalated(worker, signal)));
            }
        }
    }
}
