//! How one generation follows another: asked for, planned, started, and then serving or rejected.

use std::time::{Duration, Instant};

use super::generation::{Generation, Phase};
use super::generations::Generations;
use super::vocabulary::{Action, Note, Rejected, Settings, Verdict};
use crate::control::monitor::messages::{Order, Urgency};
use crate::worker::cause::Cause;

/// Reading a configuration takes milliseconds. If it takes this long, the file system is dead.
const PLANNING_TIMEOUT: Duration = Duration::from_secs(10);

impl Generations {
    /// Promises the next generation that begins after the request. It begins now, or is queued.
    pub(super) fn reload_for(&mut self, request: u64, now: Instant, actions: &mut Vec<Action>) {
        let refused = self.stopping.is_some() || self.last_number == 0;
        let next = self.last_number + 1;
        actions.push(Action::Promise(request, (!refused).then_some(next)));
        self.reload(Urgency::Graceful, now, actions);
    }

    pub(super) fn reload(&mut self, retires: Urgency, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_some() || self.last_number == 0 {
            return;
        }
        let starting = self.starting.as_ref().map(|(starting, _)| starting);
        if let Some(busy) = starting.or(self.falling_back.as_ref().map(|back| &back.failed)) {
            if self.reload_queued.is_none() {
                actions.push(Action::Note(Note::ReloadQueued(busy.number)));
            }
            self.reload_queued = Some(retires);
            return;
        }
        self.reload_queued = None;
        self.renewal.begins(now);
        self.last_number += 1;
        actions.push(Action::Plan(self.last_number));
        let mut next = Generation::new(self.last_number, self.wanted.configured, self.wanted.settings.clone(), now);
        next.retires = retires;
        self.starting = Some((next, now + PLANNING_TIMEOUT));
    }

    /// The settings of the starting generation are known.
    pub(super) fn on_planned(&mut self, generation: u32, settings: Settings, now: Instant, actions: &mut Vec<Action>) {
        let planning = |(starting, _): &&(Generation, Instant)| starting.number == generation && !starting.is_planned();
        let Some((planned, _)) = self.starting.as_ref().filter(planning) else { return };
        let (retires, configured) = (planned.retires, settings.workers);
        let settings = Settings { workers: self.count_for(configured), ..settings };
        // It also gets the listeners that were bound anew while it was planned.
        self.renewal.begins(now);
        let mut next = Generation::new(generation, configured, settings, now);
        next.retires = retires;
        if self.serving.as_ref().is_some_and(|serving| !serving.is_quiet()) {
            next.roll(now);
        }
        self.begin(&mut next, true, now, actions);
        actions.push(Action::Note(Note::Starting(generation)));
        let due = now + next.longest_start();
        self.starting = Some((next, due));
    }

    /// Commands of the user run before the generation starts: it is waited for so much longer.
    pub(super) fn on_preparing(&mut self, generation: u32, time: Duration, now: Instant) {
        if let Some((starting, deadline)) = &mut self.starting
            && starting.number == generation
            && !starting.is_planned()
        {
            *deadline = (*deadline).max(now + time);
        }
    }

    pub(super) fn on_not_planned(&mut self, generation: u32, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        if self.starting.as_ref().is_some_and(|(starting, _)| starting.number == generation) {
            self.reject(None, cause, now, actions);
        }
    }

    pub(super) fn on_rebound(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_none() && self.last_number > 0 {
            let random = self.random.draw();
            let planned = self.starting.as_ref().is_some_and(|(starting, _)| !starting.is_planned());
            // A generation that is only planned will get the new listener.
            let newest = self.last_number - u32::from(planned);
            let wait = self.renewal.needed(newest, now, self.wanted.settings.tuning.pace, random);
            if self.starting.is_some() && !planned {
                let why = "a listener was shut down meanwhile, and it lacks the one that was bound anew";
                self.reject(None, Cause::CannotStart(why.to_owned()), now, actions);
            }
            self.tell_renewal(wait, actions);
        }
    }

    fn tell_renewal(&self, wait: Option<Duration>, actions: &mut Vec<Action>) {
        if let (Some(wait), Some(serving)) = (wait.filter(|wait| !wait.is_zero()), &self.serving) {
            actions.push(Action::Note(Note::Renewing(serving.number, wait)));
        }
    }

    /// Whether a generation that lacks a listener may be replaced now. A generation without workers needs no listener.
    pub(super) fn may_renew(&self) -> bool {
        let busy = self.starting.is_some() || self.falling_back.is_some();
        !busy && self.serving.as_ref().is_some_and(|serving| !serving.is_quiet())
    }

    pub(super) fn judge_starting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((starting, deadline)) = &self.starting else { return };
        let (is_late, is_halted) = (*deadline <= now, !starting.shown.suspended.is_empty());
        match starting.phase {
            Phase::Baking { until } if now < until => {}
            Phase::Baking { .. } if !is_halted && starting.must_grow() => self.roll_on(now, actions),
            Phase::Baking { .. } if !is_halted => self.commit(now, actions),
            Phase::Rolling if is_late => self.give_up_rolling(now, actions),
            Phase::Filling | Phase::Baking { .. } if is_late => {
                let (slot, cause) = starting.why_not_ready();
                self.reject(slot, cause, now, actions);
            }
            Phase::Planning if is_late => self.reject(None, Cause::HungInPlan(PLANNING_TIMEOUT), now, actions),
            _ => {}
        }
    }

    /// If the starting generation is whole, its bake begins.
    pub(super) fn settle_starting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((starting, _)) = &mut self.starting else { return };
        // By then its first share has lived for the time of a bake.
        let bake = if starting.proven() > 0 { Duration::ZERO } else { starting.settings.tuning.bake };
        if starting.settle(bake, now) && !bake.is_zero() && self.logged.baking < starting.number {
            self.logged.baking = starting.number;
            actions.push(Action::Note(Note::Baking(starting.number, bake)));
        }
    }

    fn commit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((mut proven, _)) = self.starting.take() else { return };
        proven.phase = Phase::Proven;
        proven.roll = None;
        let retires = proven.retires;
        if let Some(monitor) = proven.monitor() {
            actions.push(Action::Order(monitor, Order::Commit));
        }
        self.has_run = true;
        let took = now.saturating_duration_since(proven.begun);
        let number = proven.number;
        self.renewal.serves(number);
        (self.wanted.settings, self.wanted.configured) = (proven.settings.clone(), proven.counts.configured);
        let old = self.serving.replace(proven);
        let retired = old.as_ref().map(|old| old.number);
        actions.push(Action::Verdict(number, Verdict::Serves(retired, took)));
        actions.push(Action::Note(Note::Committed(number, retired, took)));
        if let Some(old) = old {
            let has_own = retires == Urgency::Graceful && old.settings.tuning.retire.is_some();
            let retires = if has_own { Urgency::Retiring } else { retires };
            self.drain(old, true, retires, now, actions);
        }
        // The new settings may allow fewer generations to drain.
        self.escalate_those_beyond_limit(now, actions);
        self.run_queued_reload(now, actions);
    }

    /// The new generation failed. It is stopped; the serving one is untouched.
    pub(super) fn reject(&mut self, slot: Option<u32>, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let Some((failed, _)) = self.starting.take() else { return };
        let rejected = Rejected {
            slot,
            failed: failed.why_each_failed(slot, &cause),
            cause,
            missing: failed.missing(),
            workers: failed.progress().workers,
            accept: failed.accept,
            serving: self.serving_number(),
        };
        actions.push(Action::Verdict(failed.number, Verdict::Rejected(rejected.clone())));
        actions.push(Action::Note(Note::Rejected(failed.number, rejected)));
        self.retire_failed(failed, now, actions);
        self.run_queued_reload(now, actions);
        if self.starting.is_none() {
            let random = self.random.draw();
            let wait = self.renewal.failed(now, self.wanted.settings.tuning.pace, random);
            self.tell_renewal(wait, actions);
        }
    }

    /// The generation that was only promised fails too.
    pub(super) fn reject_unbegun(&self, generation: u32, cause: Cause, actions: &mut Vec<Action>) {
        let serving = self.serving_number();
        let (failed, missing, workers) = (Vec::new(), Vec::new(), self.wanted.settings.workers);
        let rejected = Rejected { slot: None, cause, failed, missing, workers, accept: false, serving };
        actions.push(Action::Verdict(generation, Verdict::Rejected(rejected.clone())));
        actions.push(Action::Note(Note::Rejected(generation, rejected)));
        actions.push(Action::Release(generation));
    }

    fn serving_number(&self) -> u32 {
        self.serving.as_ref().map_or(0, |serving| serving.number)
    }

    pub(super) fn run_queued_reload(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(retires) = self.reload_queued {
            self.reload(retires, now, actions);
        }
    }
}
