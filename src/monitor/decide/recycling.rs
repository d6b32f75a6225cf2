//! Recycling (`--max-lifetime`, `--max-memory`, `--max-requests`): a worker that has reached a limit is replaced.
//!
//! The replacement starts beside the worker, in the same slot: it has the worker's number and its queue. Once it is
//! ready, it takes the place of the worker, which is then stopped as by a reload. If it fails, the worker serves on. One
//! replacement starts at a time, and none during a reload, a trial or a stop.

use std::time::{Duration, Instant};

use super::slot::{Measurement, Slot, State};
use super::slots::Slots;
use super::vocabulary::{Action, Note, Worker};
use crate::backoff::{Backoff, Pace};
use crate::config::{Escalation, Reason};
use crate::control::monitor::messages::Report;
use crate::worker::cause::Cause;

/// A replaced worker that takes longer to end does not hold up the next replacement.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Limit of the workers of one slot that are being stopped, before another one is replaced because of its memory.
const MAX_DRAINING_FOR_MEMORY: usize = 4;

/// The first delay after a replacement that failed.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A measurement that takes this long hangs. It is ended, and the next one begins once it has ended.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(10);

/// After a measurement, none begins for this many times as long as it took.
const MEASURE_REST: u32 = 50;

impl Slots {
    /// The workers in the slots, and those beside them.
    pub(super) fn workers(&self) -> Vec<Worker> {
        self.all().map(|(worker, _)| worker).collect()
    }

    pub(super) fn on_served(&mut self, worker: Worker, requests: u64) {
        if let Some(slot) = self.slot_of(worker).filter(|_| !worker.is_mold()) {
            // If several processes of a worker report, the highest number counts.
            slot.wear.requests = slot.wear.requests.max(Some(requests));
        }
    }

    pub(super) fn on_measured(&mut self, memory: &[(Worker, Option<u64>)], took: Duration, now: Instant) {
        self.recycler.measures = None;
        self.recycler.measure_after = Some(now + took * MEASURE_REST);
        let Some(limit) = self.settings.tuning.recycling.max_memory else { return };
        for (worker, bytes) in memory {
            if let Some(slot) = self.slot_of(*worker) {
                slot.wear.measured(*bytes, limit, now);
            }
        }
    }

    pub(super) fn measures(&self) -> bool {
        self.recycler.measures.is_some_and(|measurement| measurement.until.is_some())
    }

    /// Whether a worker may be replaced at all.
    fn may_recycle(&self) -> bool {
        let is_calm = !self.recycler.held && !self.settings.trial && self.stopping.is_none() && !self.respawns.gave_up;
        is_calm && (self.settings.tuning.recycling.is_on() || self.mold.is_some())
    }

    /// The workers that may reach a limit: those that serve, and are not replaced yet. Not those that a signal has
    /// stopped, because somebody looks at them.
    fn worn(&self) -> impl Iterator<Item = (Worker, &Slot)> {
        let serves = |slot: &Slot| slot.wanted && !slot.suspension.is_now && matches!(slot.state, State::Ready { .. });
        self.all().take(self.slots.len()).filter(move |(_, slot)| serves(slot))
    }

    /// When each worker is to be replaced, and why. If its slot's last worker has not ended yet, it waits for that; but
    /// memory does not wait.
    fn due_for_recycling(&self) -> impl Iterator<Item = (Instant, Worker, Reason)> {
        let (limits, least) = (self.settings.tuning.recycling, self.settings.tuning.pace.healthy_after);
        let is_free = self.may_recycle() && self.recycler.replacement.is_none() && self.may_start_workers();
        let drains = self.recycler.drains.filter(|(worker, _)| self.recycler.beside.contains_key(worker));
        let worn = is_free.then(|| self.worn()).into_iter().flatten();
        worn.filter_map(move |(worker, slot)| {
            let own = slot.wear.due(slot.since, least, limits);
            let (due, reason) = own.into_iter().chain(self.due_for_refork(slot)).min_by_key(|(due, _)| *due)?;
            let beside = self.recycler.beside.keys().filter(|beside| beside.slot == worker.slot).count();
            let (most, drained) = match reason {
                Reason::Memory(..) => (MAX_DRAINING_FOR_MEMORY, None),
                _ => (1, drains.map(|(_, until)| until)),
            };
            let earliest = self.recycler.retry_at.max(drained).map_or(due, |earliest| earliest.max(due));
            (beside < most).then(|| (self.starts.earliest(earliest), worker, reason))
        })
    }

    /// When there is something to be done about limits.
    pub(super) fn recycling_deadline(&self) -> Option<Instant> {
        let measure = self.recycler.measures.map_or_else(|| self.measure_next(), |measurement| measurement.until);
        let due = self.due_for_recycling().map(|(due, ..)| due).min();
        [due, measure, self.takes_place_at()].into_iter().flatten().min()
    }

    /// When the replacement takes the place of a worker that serves: once it is ready. If it need not show anything, it
    /// must live through a bake.
    fn takes_place_at(&self) -> Option<Instant> {
        let new = self.recycler.replacement?;
        let (old, replacement) = (self.slots.get(new.slot as usize)?, self.recycler.beside.get(&new)?);
        let are_ready = [old, replacement].iter().all(|slot| matches!(slot.state, State::Ready { .. }));
        let is_wanted = old.wanted && !self.respawns.gave_up;
        replacement.readiness.proven.filter(|_| are_ready && is_wanted && !replacement.suspension.is_now)
    }

    fn measure_next(&self) -> Option<Instant> {
        self.settings.tuning.recycling.max_memory.filter(|_| self.may_recycle())?;
        let next = self.worn().map(|(_, slot)| slot.wear.measured_next(slot.since)).min()?;
        Some(self.recycler.measure_after.map_or(next, |after| after.max(next)))
    }

    /// Goes on with the replacement that is starting, or begins one.
    pub(super) fn recycle(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.settle_replacement(now, actions);
        self.measure_if_due(now, actions);
        let due = self.due_for_recycling().filter(|(due, ..)| *due <= now);
        let next = due.min_by_key(|(due, _, reason)| (!matches!(reason, Reason::Memory(..)), *due));
        let Some((_, old, mut reason)) = next.filter(|_| self.starts.take_one_of_turn()) else { return };
        let state = self.first_state(now);
        let Some(slot) = self.slot_of(old) else { return };
        if let Reason::Lifetime(age, _) = &mut reason {
            *age = now.saturating_duration_since(slot.since);
        }
        slot.wear.reason = Some(reason);
        let (mut replacement, wear) = (Slot::new(now), slot.wear.clone());
        replacement.readiness.listened = slot.readiness.listened;
        replacement.wear = wear;
        replacement.begin(state, now);
        let new = Worker { slot: old.slot, life: replacement.life };
        slot.wear.last_life = new.life;
        replacement.unready = self.recycler.unready;
        self.recycler.beside.insert(new, replacement);
        self.recycler.replacement = Some(new);
        actions.push(Action::Note(Note::Recycling(old, reason)));
        self.start_process(new, now, actions);
    }

    fn settle_replacement(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(new) = self.recycler.replacement else { return };
        let Some(slot) = self.slots.get(new.slot as usize) else { return };
        let is_wanted = slot.wanted && !self.respawns.gave_up;
        match slot.state {
            // The worker has died meanwhile: the replacement stands in, whether it is ready or not.
            State::Waiting { .. } if is_wanted => self.take_place(new, now, actions),
            State::Ready { .. } if self.takes_place_at().is_some_and(|at| at <= now) => {
                self.take_place(new, now, actions)
            }
            State::Ready { .. } | State::Starting { .. } | State::Stopping(_) if is_wanted && !self.recycler.held => {}
            _ => {
                self.recycler.replacement = None;
                self.retire_beside(new, now);
            }
        }
    }

    /// The replacement goes into the slot. The worker that was there, if it lives, is stopped as by a reload.
    fn take_place(&mut self, new: Worker, now: Instant, actions: &mut Vec<Action>) {
        let Some(mut replacement) = self.recycler.beside.remove(&new) else { return };
        (self.recycler.replacement, self.recycler.retry_at) = (None, None);
        (self.recycler.backoff, self.recycler.unready) = (Backoff::default(), 0);
        let slot = &mut self.slots[new.slot as usize];
        replacement.respawns = slot.respawns;
        replacement.backoff = std::mem::take(&mut slot.backoff);
        replacement.wear.last_life = slot.wear.last_life;
        let (notified, seen) = (replacement.readiness.notified, replacement.readiness.shown.accepting);
        let is_ready = matches!(replacement.state, State::Ready { .. });
        if slot.has_worker() {
            replacement.wear.recycled += 1;
        }
        let old = Worker { slot: new.slot, life: slot.life };
        let replaced = std::mem::replace(slot, replacement);
        if is_ready {
            actions.push(Action::Report(Report::Ready { slot: new.slot, notified, seen }));
        }
        if let Some(reason) = replaced.wear.reason.filter(|_| replaced.has_worker()) {
            self.recycler.drains = Some((old, now + DRAIN_PATIENCE));
            self.recycler.beside.insert(old, replaced);
            self.retire_beside(old, now);
            if matches!(reason, Reason::Warm(_)) {
                self.want_as_mold(old, actions);
            }
            actions.push(Action::Report(Report::Recycled { slot: new.slot, reason: reason.word().to_owned() }));
            actions.push(Action::Note(Note::Recycled(new, old)));
        }
    }

    fn retire_beside(&mut self, worker: Worker, now: Instant) {
        let Some(slot) = self.recycler.beside.get_mut(&worker) else { return };
        slot.retiring = true;
        // One that is asked of the mold ends once it is born.
        if matches!(slot.state, State::Executing { .. } | State::Starting { .. } | State::Ready { .. }) {
            slot.state = State::Stopping(Escalation::begin(self.settings.tuning.retirement(), now));
        }
    }

    /// A worker beside its slot has ended: one that is not needed, or a replacement that failed.
    pub(super) fn ended_beside(&mut self, worker: Worker, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let Some(gone) = self.recycler.beside.remove(&worker) else { return };
        if self.recycler.replacement != Some(worker) {
            return self.not_reforked(worker, format!("it {cause}"), actions);
        }
        if self.stopping.is_some() {
            return;
        }
        self.recycler.replacement = None;
        self.recycler.unready = gone.unready;
        let (lived, random) = (now.saturating_duration_since(gone.since), self.random.draw());
        let pace = Pace {
            // However long it has lived, it was of no use.
            healthy_after: Duration::MAX,
            delay: self.settings.tuning.pace.delay.max(MIN_RETRY_DELAY),
            delay_max: self.settings.tuning.pace.delay_max.max(MIN_RETRY_DELAY),
        };
        let delay = self.recycler.backoff.after(lived, false, pace, random);
        self.recycler.retry_at = Some(now + delay);
        actions.push(Action::Note(Note::NotRecycled(worker, gone.ended_for.unwrap_or(cause), delay)));
    }

    /// Measures the workers that are due, and those that will be soon, so that they do not wake the monitor one by one.
    fn measure_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let (stops, may_begin) = (self.stopping.is_some(), self.measure_next().is_some_and(|next| next <= now));
        match &mut self.recycler.measures {
            Some(Measurement { until: Some(until), was_told: false }) if *until <= now || stops => {
                self.recycler.measures = Some(Measurement { until: Some(now + MEASURE_TIMEOUT), was_told: true });
                actions.push(Action::EndMeasurement);
            }
            // It does not end.
            Some(Measurement { until, was_told: true }) => *until = until.filter(|until| *until > now),
            None if may_begin => {
                let is_soon = |(_, slot): &(Worker, &Slot)| {
                    let pause = slot.wear.memory.as_ref().map_or(Duration::ZERO, |memory| memory.pause / 2);
                    slot.wear.measured_next(slot.since) <= now + pause
                };
                let workers = self.worn().filter(is_soon).map(|(worker, _)| worker).collect();
                self.recycler.measures = Some(Measurement { until: Some(now + MEASURE_TIMEOUT), was_told: false });
                actions.push(Action::Measure(workers));
            }
            Some(_) | None => {}
        }
    }
}
