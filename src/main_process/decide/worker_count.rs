//! The wanted number of workers, and the settings that running generations get without being replaced.

use std::time::Instant;

use super::generation::{Generation, Phase};
use super::generations::Generations;
use super::vocabulary::{Action, Change, Note};
use crate::config::{MAX_WORKERS, Tuning};
use crate::control::monitor::messages::{Order, Urgency, Which};
use crate::worker::cause::Cause;

impl Generations {
    /// Whether the serving generation has all wanted workers: they have all been ready together since the last increase
    /// and since the generation or its monitor began, and one of them is ready now. Neither a respawn nor a reload
    /// changes this.
    pub fn is_ready(&self) -> bool {
        let proven = self.serving.as_ref().is_some_and(|serving| matches!(serving.phase, Phase::Proven));
        proven && !self.wanted.filling_up && self.workers() > 0 && self.at_work().any(|one| !one.shown.ready.is_empty())
    }

    /// The serving generation, and the one that serves in the place of some of its workers.
    fn at_work(&self) -> impl Iterator<Item = &Generation> {
        let rolling = self.starting.iter().map(|(starting, _)| starting).filter(|starting| starting.roll.is_some());
        self.serving.iter().chain(rolling).chain(self.falling_back.iter().map(|back| &back.failed))
    }

    /// Notes that all wanted workers are ready.
    pub(super) fn note_full(&mut self) {
        let there: usize = self.at_work().map(|one| one.shown.ready.len() + one.shown.ended.len()).sum();
        let known = self.at_work().all(|one| one.counts.retiring == 0);
        self.wanted.filling_up &= !known || there < self.workers() as usize;
    }

    /// The number of workers for a configuration. If it asks for the same number as before, changes that operators made
    /// meanwhile stay.
    pub(crate) fn count_for(&self, configured: u32) -> u32 {
        if configured == self.wanted.configured { self.wanted.settings.workers } else { configured }
    }

    pub(super) fn scale(&mut self, request: Option<u64>, change: Change, now: Instant, actions: &mut Vec<Action>) {
        let from = self.workers();
        let to = if self.is_stopping() { Err("panzer is being stopped") } else { changed(from, change) };
        actions.push(Action::Scaled { request, from, to });
        let Ok(to) = to else { return };
        if change == Change::ToNone {
            self.give_up_reloads(now, actions);
        }
        if from != to {
            actions.push(Action::Note(Note::Scaled(from, to)));
        }
        self.keep(to, change == Change::WithoutOldest, now, actions);
    }

    /// Sets the number of workers. A generation that has none gets its former number back by a reload.
    fn keep(&mut self, workers: u32, without_oldest: bool, now: Instant, actions: &mut Vec<Action>) {
        self.wanted.filling_up = workers > 0 && (self.wanted.filling_up || workers > self.workers());
        if workers > 0 {
            self.wanted.settings.workers = workers;
        }
        if self.keep_falling_back(workers, now, actions) || self.keep_rolling(workers, now, actions) {
            return;
        }
        if let Some(serving) = &mut self.serving {
            serving.scale(workers, now);
            let which = if without_oldest { Which::Oldest } else { Which::Last };
            let order = Order::Scale { workers, which };
            actions.extend(serving.monitor().map(|monitor| Action::Order(monitor, order)));
        }
        if let Some((starting, deadline)) = &mut self.starting
            && starting.is_planned()
        {
            let baked = matches!(starting.phase, Phase::Baking { .. });
            starting.scale(workers, now);
            // It was ready in time. More was asked afterwards, so the deadline moves.
            if baked && !starting.is_whole() {
                *deadline = (*deadline).max(now + starting.longest_start());
            }
            let order = Order::Scale { workers, which: Which::Last };
            actions.extend(starting.monitor().map(|monitor| Action::Order(monitor, order)));
        }
        self.settle_serving(now);
        self.settle_starting(now, actions);
    }

    /// No generation may bring back the workers that are to end now.
    fn give_up_reloads(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let cause = || Cause::CannotStart("panzer was told to end all workers meanwhile".to_owned());
        let queued = self.reload_queued.take().is_some();
        // Workers that serve in the place of others end with all.
        if let Some((starting, _)) = &mut self.starting {
            starting.roll = None;
        }
        if let Some(back) = self.falling_back.take() {
            self.drain(back.failed, false, Urgency::Graceful, now, actions);
        }
        self.reject(None, cause(), now, actions);
        if queued {
            self.last_number += 1;
            self.reject_unbegun(self.last_number, cause(), actions);
        }
    }

    /// Applies a configuration that was read again. No worker is replaced. The number of workers follows from it like
    /// this:
    ///
    /// | a generation is starting | the configured number | the new number |
    /// | --- | --- | --- |
    /// | yes | is that generation's | the number that it is to have in the end; operators may have changed it |
    /// | no, or the row above does not apply | is the same as before | the number that is wanted now; they may have changed it |
    /// | the same | is another one | the configured number |
    pub(super) fn on_reread(&mut self, configured: u32, tuning: Tuning, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let (from, mut to) = (self.workers(), self.count_for(configured));
        let mut changes = configured != std::mem::replace(&mut self.wanted.configured, configured);
        self.wanted.settings.tuning = tuning.clone();
        let starting = self.starting.as_mut().map(|(starting, _)| starting).filter(|starting| starting.is_planned());
        if let Some(starting) = &starting {
            changes |= configured != starting.counts.configured;
            // The starting generation is newer, and operators may have changed its number.
            to = if configured == starting.counts.configured { starting.goal() } else { to };
        }
        for generation in self.serving.iter_mut().chain(starting) {
            generation.counts.configured = configured;
            generation.settings.tuning = tuning.clone();
            actions.push(Action::Tune(generation.number, tuning.clone()));
        }
        if changes && from != to {
            actions.push(Action::Note(Note::Scaled(from, to)));
        }
        if changes {
            self.keep(to, false, now, actions);
        }
    }
}

/// The number of workers after a change.
pub(crate) fn changed(from: u32, change: Change) -> Result<u32, &'static str> {
    const TOO_FEW: &str = "at least one worker is kept; panzerctl quiet ends them all";
    let to = match change {
        Change::ToNone => return Ok(0),
        Change::To(workers) => Some(workers),
        Change::By(more) => from.checked_add_signed(more),
        Change::WithoutOldest => from.checked_sub(1),
    };
    match to {
        None | Some(0) => Err(TOO_FEW),
        Some(to) if to > MAX_WORKERS => Err("more than 4096 workers are never kept"),
        Some(to) => Ok(to),
    }
}
