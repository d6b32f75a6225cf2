//! Workers that ended for good. Nothing follows them in their slots. If all have ended so, or if the first one is to
//! end everything, panzer is done.

use std::collections::BTreeMap;
use std::time::Instant;

use super::generation::Generation;
use super::generations::Generations;
use super::vocabulary::{Action, Note};
use crate::control::monitor::messages::Urgency;

impl Generation {
    /// No worker follows in this slot.
    pub(super) fn note_ended_for_good(&mut self, slot: u32, code: u8) {
        if slot >= self.counts.slots {
            return;
        }
        self.shown.ready.remove(&slot);
        self.shown.seen.remove(&slot);
        self.shown.ended.insert(slot, code);
    }

    /// The next monitor numbers the slots anew. Slots that ended for good stay so. If such a slot has no counterpart,
    /// one of the first slots takes its place. If the last monitor did not report which slots were removed, it may have
    /// been those.
    pub(super) fn renumber_ended(&mut self) {
        let workers = self.settings.workers;
        for _ in 0..self.counts.retiring {
            self.shown.ended.pop_last();
        }
        let (kept, beyond): (BTreeMap<u32, u8>, BTreeMap<u32, u8>) =
            std::mem::take(&mut self.shown.ended).into_iter().partition(|(slot, _)| *slot < workers);
        let free: Vec<u32> = (0..workers).filter(|slot| !kept.contains_key(slot)).collect();
        self.shown.ended = kept.into_iter().chain(free.into_iter().zip(beyond.into_values())).collect();
    }
}

impl Generations {
    pub(super) fn on_ended_for_good(&mut self, slot: u32, code: u8, now: Instant, actions: &mut Vec<Action>) {
        let Some(serving) = &mut self.serving else { return };
        serving.note_ended_for_good(slot, code);
        let exits = &serving.settings.tuning.final_exits;
        if exits.stop {
            let code = exits.code.unwrap_or(code);
            let (generation, slot) = (serving.number, Some(slot));
            actions.push(Action::Note(Note::Finished { generation, slot, code }));
            return self.stop(Urgency::Graceful, code, now, actions);
        }
        self.settle_serving(now);
    }

    /// Ends everything if every worker of the serving generation has ended for good. Not while another generation is
    /// starting, because it may follow.
    pub(super) fn end_if_finished(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let is_alone = self.starting.is_none() && self.falling_back.is_none();
        let finished = self.serving.as_ref().filter(|serving| is_alone && serving.has_finished());
        if let Some(serving) = finished {
            let (generation, given) = (serving.number, serving.settings.tuning.final_exits.code);
            let code = given.or(serving.shown.ended.values().copied().max()).unwrap_or(0);
            actions.push(Action::Note(Note::Finished { generation, slot: None, code }));
            self.stop(Urgency::Graceful, code, now, actions);
        }
    }
}
