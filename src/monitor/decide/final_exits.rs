//! Workers that ended for good. Their slots are not filled again.

use super::slot::State;
use super::slots::Slots;
use super::vocabulary::{Action, Note, Worker};
use crate::control::monitor::messages::Report;
use crate::worker::cause::Cause;

impl Slots {
    /// The exit code, if no worker is to follow.
    pub(super) fn final_code(&self, cause: &Cause) -> Option<u8> {
        match cause {
            Cause::Exited(code) if self.settings.tuning.final_exits.contains(*code) => u8::try_from(*code).ok(),
            _ => None,
        }
    }

    /// During a trial it counts and is reported like any other death. After a commit, main is told that it was the last
    /// worker in its slot.
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

    /// The trial is over: slots whose worker ended for good stay so.
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
