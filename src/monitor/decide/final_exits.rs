//! Workers that ended for good: their slots are not filled again.

use super::slot::State;
use super::slots::Slots;
use super::vocabulary::{Action, Note, Worker};
use crate::control::monitor::messages::Report;
use crate::worker::cause::Cause;

impl Slots {
    /// The code of an end after which nobody is started in the worker's place.
    pub(super) fn final_code(&self, cause: &Cause) -> Option<u8> {
        match cause {
            Cause::Exited(code) if self.settings.tuning.final_exits.contains(*code) => u8::try_from(*code).ok(),
            _ => None,
        }
    }

    /// On trial it is a death like any other, and told as one; that it was the last in its slot is told after a commit.
    pub(super) fn end_for_good(&mut self, worker: Worker, code: u8, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(worker.slot as usize) else { return };
        slot.state = State::EndedForGood { code: Some(code) };
        if self.settings.trial {
            let cause = Cause::Exited(code.into());
            actions.push(Action::Report(Report::Died { slot: worker.slot, cause }));
        } else {
            actions.push(Action::Note(Note::EndedForGood(worker, code)));
            actions.push(Action::Report(Report::EndedForGood { slot: worker.slot, code }));
        }
    }

    /// The trial is over: what ended for good during it stays so.
    pub(super) fn tell_those_ended_for_good(&self, actions: &mut Vec<Action>) {
        for (slot, index) in self.slots.iter().zip(0..) {
            if let State::EndedForGood { code: Some(code) } = slot.state {
                let worker = Worker { slot: index, life: slot.life };
                actions.push(Action::Note(Note::EndedForGood(worker, code)));
                actions.push(Action::Report(Report::EndedForGood { slot: index, code }));
            }
        }
    }
}
