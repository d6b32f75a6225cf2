//! How many workers are wanted, and what else running generations are told without being replaced.

use std::time::Instant;

use super::generation::Phase;
use super::state::{Action, Change, Generations, Note, Settings};
use crate::config::MOST_WORKERS;
use crate::control::messages::{Order, Urgency, Which};
use crate::worker::cause::Cause;

impl Generations {
    /// A configuration that asks for the same count as before leaves it as it was changed meanwhile.
    pub(super) fn keeping_count(&mut self, settings: Settings) -> Settings {
        let configured = std::mem::replace(&mut self.configured, settings.workers);
        let workers = if settings.workers == configured { self.settings.workers } else { settings.workers };
        Settings { workers, ..settings }
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

    /// So many are kept from now on. A generation that has none comes back to the count before by a reload.
    fn keep(&mut self, workers: u32, without_oldest: bool, now: Instant, actions: &mut Vec<Action>) {
        if workers > 0 {
            self.settings.workers = workers;
        }
        if self.keep_rolling(workers, now, actions) {
            return;
        }
        if let Some(serving) = &mut self.serving {
            serving.scale(workers, now);
            let which = if without_oldest { Which::Oldest } else { Which::Last };
            let order = Order::Scale { workers, which };
            actions.extend(serving.monitor().map(|monitor| Action::Order(monitor, order)));
        }
        if let Some((starting, deadline)) = &mut self.starting
            && !matches!(starting.phase, Phase::Planning)
        {
            let baked = matches!(starting.phase, Phase::Baking { .. });
            starting.scale(workers, now);
            // It had shown in time all that was asked of it, and now there is more.
            if baked && !starting.is_whole() {
                *deadline = (*deadline).max(now + self.settings.longest_start());
            }
            let order = Order::Scale { workers, which: Which::Last };
            actions.extend(starting.monitor().map(|monitor| Action::Order(monitor, order)));
        }
        self.settle_serving(now);
        self.settle_starting(now, actions);
    }

    /// No generation may bring the workers back that are to end now.
    fn give_up_reloads(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let cause = || Cause::CannotStart("panzer was told to end all workers meanwhile".to_owned());
        let queued = self.reload_queued.take().is_some();
        // What served in the place of others ends with all.
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

    /// Delays and waits, and where another is configured the count, without new workers.
    pub(super) fn tuned(&mut self, settings: Settings, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let from = self.workers();
        let configured = self.configured;
        self.settings = self.keeping_count(settings);
        let next = self.settings.clone();
        let starting = self.starting.as_mut().map(|(starting, _)| starting);
        for generation in self.serving.iter_mut().chain(starting) {
            let Settings { workers, ready, seed, .. } = generation.settings;
            generation.settings = Settings { workers, ready, seed, ..next.clone() };
            actions.extend(generation.monitor().map(Action::Tune));
        }
        if self.configured != configured {
            let to = self.settings.workers;
            actions.push(Action::Note(Note::Scaled(from, to)));
            self.keep(to, false, now, actions);
        }
    }
}

/// What a change comes to.
pub(super) fn changed(from: u32, change: Change) -> Result<u32, &'static str> {
    const TOO_FEW: &str = "at least one worker is kept; panzerctl quiet ends them all";
    let to = match change {
        Change::ToNone => return Ok(0),
        Change::To(workers) => Some(workers),
        Change::By(more) => from.checked_add_signed(more),
        Change::WithoutOldest => from.checked_sub(1),
    };
    match to {
        None | Some(0) => Err(TOO_FEW),
        Some(to) if to > MOST_WORKERS => Err("more than 4096 workers are never kept"),
        Some(to) => Ok(to),
    }
}
