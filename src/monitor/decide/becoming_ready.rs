//! How workers become ready: they notify, are seen accepting, pass a probe, or are alive. Also finds workers that do
//! not accept on the listener that they were given.

use super::slot::{Probe, Watched};
use std::time::{Duration, Instant};

use super::slot::{Slot, State};
use super::slots::Slots;
use super::vocabulary::{Action, Settings, Watch, Worker};
use crate::control::monitor::messages::{MAX_EXTENSION, Report};
use crate::readiness::watch::{Bypass, Sight};

/// The longest pause between two looks at a worker. A worker that accepts is seen within this time and a little.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two probes of a worker.
const MAX_PROBE_PAUSE: Duration = Duration::from_millis(500);

/// A probe that takes this long hangs. It is ended, and has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Limit of the time between bind and listen in a worker that serves already.
const BEFORE_LISTEN: Duration = Duration::from_secs(1);

/// Limit of the time between bind and listen in a program that loads, if it is only known to be alive.
const LOADING: Duration = Duration::from_secs(5);

/// A worker that stays hidden for this long, or for half of its ready timeout, cannot be seen. Many workers are hidden
/// for a moment, for example while they drop their rights.
const HIDDEN_FOR_GOOD: Duration = Duration::from_secs(1);

/// Each time a worker was not ready in time, the next one in its slot gets twice as long. This is the limit of the
/// doublings.
const MAX_DOUBLINGS: u32 = 4;

impl Slots {
    pub(super) fn on_executed(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (watch, deadline, time) = (self.settings.watch, self.ready_deadline(worker, now), self.ready_time(worker));
        let mold_listens = self.mold.as_ref().is_some_and(|mold| mold.slot.readiness.listens);
        let Some(slot) = self.slot_of(worker) else { return };
        if !matches!(slot.state, State::Executing { .. } | State::Forking) {
            return;
        }
        let is_looked_at = match watch {
            Watch::No => false,
            Watch::IfItListens => slot.readiness.listened || mold_listens,
            Watch::IfSeeable | Watch::Always => true,
        };
        slot.readiness.executed = Some(now);
        slot.state = State::Starting { deadline, look: is_looked_at.then(|| Watched::by_looks(now)), probe: None };
        self.report_executed(actions);
        if self.settings.has_listener && matches!(watch, Watch::IfSeeable | Watch::Always) {
            self.suspects.add(worker, Some(time), now);
        }
        self.go_on(worker, now, actions);
    }

    /// Reports it the first time.
    pub(super) fn report_executed(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.reported.executed, true) {
            actions.push(Action::Report(Report::Executed));
        }
    }

    pub(super) fn on_notified(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        if worker.is_mold() {
            return;
        }
        let is_beside = self.recycler.beside.contains_key(&worker);
        let Some(slot) = self.slot_of(worker) else { return };
        let first_time = !std::mem::replace(&mut slot.readiness.notified, true);
        if matches!(slot.state, State::Ready { .. }) {
            slot.readiness.proven = slot.readiness.proven.min(Some(now)).or(Some(now));
        }
        match slot.state {
            State::Starting { .. } => self.go_on(worker, now, actions),
            // It was ready without that. The next release has to know that workers notify.
            State::Ready { .. } if first_time && !is_beside => {
                actions.push(Action::Report(Report::Ready { slot: worker.slot, notified: true, seen: false }));
            }
            _ => {}
        }
    }

    /// The worker asks for more time to be ready, to say that it lives, or to end at the present step of its schedule. A
    /// quick stop stays quick.
    pub(super) fn on_extends(&mut self, worker: Worker, by: Duration, now: Instant, actions: &mut Vec<Action>) {
        let by = by.min(MAX_EXTENSION);
        let is_quick = self.is_stopping_quickly();
        let Some(slot) = self.slot_of(worker) else { return };
        match &mut slot.state {
            State::Starting { deadline, .. } => {
                *deadline = deadline.map(|deadline| deadline.max(now + by));
                slot.readiness.extended_to = slot.readiness.extended_to.max(Some(now + by));
            }
            State::Stopping(escalation) if !is_quick => escalation.extend(now + by),
            State::Ready { .. } => return slot.watchdog.extend(now + by),
            _ => return,
        }
        actions.push(Action::Report(Report::Extends { slot: worker.slot, by }));
    }

    /// The time within which this worker must be ready. It grows, because a later worker may need longer than the ones
    /// before it.
    pub(super) fn ready_time(&self, worker: Worker) -> Duration {
        let tries = self.slot_at(worker).map_or(0, |slot| slot.unready);
        self.settings.tuning.ready_timeout.saturating_mul(1 << tries.min(MAX_DOUBLINGS))
    }

    /// During a trial main has a deadline for the whole generation.
    fn ready_deadline(&self, worker: Worker, now: Instant) -> Option<Instant> {
        (!self.settings.trial).then(|| now + self.ready_time(worker))
    }

    /// The worker listens on a shared port. From now on it must be seen accepting there, unless it is ready for good.
    pub(super) fn on_listens(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (watch, trial) = (self.settings.watch, self.settings.trial);
        let (deadline_anew, is_beside) = (self.ready_deadline(worker, now), self.recycler.beside.contains_key(&worker));
        let Some(slot) = self.slot_of(worker) else { return };
        let is_first = !std::mem::replace(&mut slot.readiness.listens, true);
        if worker.is_mold() {
            return;
        }
        if matches!(slot.state, State::Ready { .. }) {
            slot.readiness.serves.get_or_insert(now);
        }
        if !is_first || !matches!(watch, Watch::IfItListens | Watch::IfSeeable) {
            return;
        }
        slot.readiness.listened = true;
        let withdrawn = matches!(slot.state, State::Ready { unproven: Some(until) } if trial || now < until);
        // Nobody was told that a replacement is ready.
        actions.push(Action::Report(Report::Listens { slot: worker.slot, withdrawn: withdrawn && !is_beside }));
        let look = Some(Watched::by_looks(now));
        match slot.state {
            State::Starting { deadline, look: None, .. } if !slot.readiness.shown.accepting => {
                slot.state = State::Starting { deadline, look, probe: None };
            }
            State::Ready { .. } if withdrawn => {
                slot.readiness.proven = None;
                slot.state = State::Starting { deadline: deadline_anew, look, probe: None };
            }
            _ => {}
        }
    }

    pub(super) fn on_seen(&mut self, worker: Worker, sight: Sight, now: Instant, actions: &mut Vec<Action>) {
        let patience = HIDDEN_FOR_GOOD.min(self.settings.tuning.ready_timeout / 2);
        let Some(slot) = self.slot_of(worker) else { return };
        let State::Starting { look, probe, .. } = &mut slot.state else { return };
        // Its actions before a signal stopped it prove nothing.
        if look.is_none() || (slot.suspension.is_now && sight == Sight::Accepting) {
            return;
        }
        slot.readiness.shown.note(sight, patience, now);
        match (slot.readiness.shown.accepting, slot.readiness.shown.hidden) {
            (true, _) => *look = None,
            // While it was hidden, another worker may have answered its probe.
            (false, None) => *probe = None,
            (false, Some(_)) => {}
        }
        if let Some(why) = slot.readiness.shown.unreported() {
            actions.push(Action::Report(Report::Unseeable { slot: worker.slot, why: why.to_string() }));
        }
        self.go_on(worker, now, actions);
    }

    pub(super) fn on_probed(&mut self, worker: Worker, succeeded: bool, now: Instant, actions: &mut Vec<Action>) {
        let ended = self.probes.remove(&worker).is_some_and(|probe| probe.ended);
        let Some(slot) = self.slot_of(worker) else { return };
        let State::Starting { probe: Some(watched), .. } = &mut slot.state else { return };
        if succeeded && !ended && !slot.suspension.is_now {
            self.become_ready(worker, now, actions);
        } else {
            watched.next = Some(now + watched.pause);
            watched.pause = (watched.pause * 2).min(MAX_PROBE_PAUSE);
        }
    }

    /// A worker that was seen accepting, or that need not or cannot be seen, must pass its probe. Without a probe it is
    /// ready if it was seen accepting or has notified, or if it need not notify and is alive. Not while a signal has
    /// stopped it.
    pub(super) fn go_on(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let Settings { notify, probe: is_probed, watch, .. } = self.settings;
        let Some(slot) = self.slot_of(worker).filter(|_| !worker.is_mold()) else { return };
        let State::Starting { look, probe, .. } = &mut slot.state else { return };
        let unseeable = slot.readiness.shown.hidden.is_some() && watch != Watch::Always;
        if look.is_some() && !unseeable {
            return;
        }
        if is_probed {
            probe.get_or_insert(Watched::by_probes(now));
        } else if !slot.suspension.is_now && (slot.readiness.shown.accepting || slot.readiness.notified || !notify) {
            self.become_ready(worker, now, actions);
        }
    }

    fn become_ready(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (watch, bake, has_listener) = (self.settings.watch, self.settings.tuning.bake, self.settings.has_listener);
        let (is_probed, watchdog) = (self.settings.probe, self.settings.watchdog);
        let is_beside = self.recycler.beside.contains_key(&worker);
        let Some(slot) = self.slot_of(worker) else { return };
        let (seen, visible) = (slot.readiness.shown.accepting, slot.readiness.shown.hidden.is_none());
        let unproven = slot.readiness.executed.filter(|_| watch == Watch::IfItListens && !seen && visible);
        slot.unready = 0;
        let has_shown = seen || slot.readiness.notified || is_probed;
        slot.readiness.proven = slot.readiness.executed.map(|executed| if has_shown { now } else { executed + bake });
        slot.state = State::Ready { unproven: unproven.map(|executed| executed + bake) };
        slot.watchdog.begin(watchdog, now);
        let is_measured =
            seen || slot.readiness.listens || (watch == Watch::No && (is_probed || slot.readiness.notified));
        slot.readiness.serves = is_measured.then_some(now);
        if !is_beside {
            actions.push(Action::Report(Report::Ready { slot: worker.slot, notified: slot.readiness.notified, seen }));
        }
        match seen || !visible || !has_listener {
            true => self.suspects.remove(worker),
            false => self.suspects.add(worker, None, now),
        }
    }

    /// Whether a socket that a worker has bound at `since` may still listen, so that others wait for it. A process that
    /// has left its worker has no such sockets.
    pub fn may_listen(&self, worker: Option<Worker>, since: Instant, now: Instant) -> bool {
        let slot = worker.and_then(|worker| self.slot_at(worker).filter(|it| it.life == worker.life));
        let is_proven = |slot: &Slot| slot.readiness.serves.is_some() || slot.readiness.notified;
        match slot {
            Some(Slot { state: State::Executing { .. } | State::Forking | State::Starting { .. }, .. }) => true,
            Some(slot @ Slot { state: State::Ready { .. }, .. }) if is_proven(slot) => now < since + BEFORE_LISTEN,
            Some(Slot { state: State::Ready { .. }, .. }) | None => now < since + LOADING,
            Some(_) => false,
        }
    }

    /// Whether a worker has served so long that its start is over. What it opens now is its own.
    pub fn serves_for_long(&self, worker: Worker, now: Instant) -> bool {
        let slot = self.slots.get(worker.slot as usize).filter(|slot| slot.life == worker.life);
        let serves =
            slot.filter(|slot| matches!(slot.state, State::Ready { .. })).and_then(|slot| slot.readiness.serves);
        serves.is_some_and(|since| now >= since + self.settings.tuning.pace.healthy_after)
    }

    pub(super) fn on_examined(
        &mut self,
        worker: Worker,
        shown: Option<Bypass>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match shown {
            None => self.suspects.remove(worker),
            Some(shown) if self.suspects.note_bypass(worker, &shown, now) => {
                actions.push(Action::Report(Report::Bypasses { slot: worker.slot, own: shown.own }));
            }
            Some(_) => {}
        }
    }

    /// Looks at the worker that has waited longest. Looks take turns with everything else: see [`Looking`].
    pub(super) fn look_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.looking.may_begin(now) {
            return;
        }
        let due = self.all().filter_map(|(worker, slot)| match &slot.state {
            State::Starting { look: Some(look), .. } => Some((look.next.filter(|next| *next <= now)?, worker)),
            _ => None,
        });
        if let Some((_, worker)) = due.min()
            && let Some(Slot { state: State::Starting { look: Some(look), .. }, .. }) = self.slot_of(worker)
        {
            look.next = Some(now + look.pause);
            look.pause = (look.pause * 2).min(MAX_PAUSE);
            self.looking.begin();
            actions.push(Action::Look(worker));
        }
    }

    /// Starts as many probes as may be started in this turn.
    pub(super) fn probe_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut due: Vec<_> = self.probes_to_come().filter(|(next, _)| *next <= now).collect();
        due.sort_unstable();
        for (_, worker) in due {
            if !self.starts.take_one_of_turn() {
                return;
            }
            if let Some(Slot { state: State::Starting { probe: Some(probe), .. }, .. }) = self.slot_of(worker) {
                probe.next = None;
            }
            self.probes.insert(worker, Probe { deadline: now + PROBE_TIMEOUT, ended: false });
            actions.push(Action::Probe(worker));
        }
    }

    /// The workers to probe, and when. While a worker's last probe is ending, the worker waits.
    pub(super) fn probes_to_come(&self) -> impl Iterator<Item = (Instant, Worker)> {
        self.all().filter(|_| self.settings.probe).filter_map(|(worker, slot)| match slot.state {
            State::Starting { probe: Some(Watched { next: Some(next), .. }), .. } => {
                (!self.probes.contains_key(&worker)).then_some((next, worker))
            }
            _ => None,
        })
    }

    pub(super) fn examine_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.looking.may_begin(now) || self.suspects.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        self.forget_suspects_that_end();
        if let Some(worker) = self.suspects.due(now) {
            self.looking.begin();
            actions.push(Action::Examine(worker));
        }
    }

    /// Workers that have ended, or are being stopped, are not examined any more.
    pub(super) fn forget_suspects_that_end(&mut self) {
        let (slots, beside) = (&self.slots, &self.recycler.beside);
        self.suspects.keep(|worker| {
            let runs = |slot: &Slot| matches!(slot.state, State::Starting { .. } | State::Ready { .. });
            let slot = beside.get(&worker).or(slots.get(worker.slot as usize));
            slot.is_some_and(|slot| slot.life == worker.life && runs(slot))
        });
    }

    /// Ends the probes that hang, and those whose result is not needed any more.
    pub(super) fn end_probes(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (worker, probe) in &mut self.probes {
            let slot = self.recycler.beside.get(worker).unwrap_or(&self.slots[worker.slot as usize]);
            let awaited = slot.life == worker.life && matches!(slot.state, State::Starting { probe: Some(_), .. });
            if probe.deadline <= now || (!awaited && !probe.ended) {
                *probe = Probe { deadline: now + PROBE_TIMEOUT, ended: true };
                actions.push(Action::EndProbe(*worker));
            }
        }
    }
}
