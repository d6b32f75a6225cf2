//! The mold of a generation that loads its program once (`--preload`): a slot of its own, whose process forks the workers
//! of the other slots. Each worker is asked for by a ticket. What is said that does not belong to an open ticket ends the
//! mold; the workers never depend on it.

use std::time::{Duration, Instant};

use super::slot::{Slot, State, Stopping};
use super::slots::{EXEC_TIMEOUT, Slots};
use super::stopping::FAREWELL_TIMEOUT;
use super::tickets::{Mold, Warmth};
use super::vocabulary::{Action, Note, View, Worker};
use crate::config::{Escalation, Reason, Refork, ReforkAfter, Schedule, duration};
use crate::control::monitor::messages::{Report, Urgency};
use crate::worker::cause::Cause;

/// A mold that has closed its socket is about to end; its end says more.
const CLOSED_TIMEOUT: Duration = Duration::from_millis(500);

/// A mold that is of no use serves nobody: each signal of the schedule gets so long at most.
const BROKEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Advice for a program that is not a mold.
const NO_CLIENT: &str = "--preload needs a program that speaks panzer-mold(7), as with one of panzer's clients; leave out \
                         --preload for any other";

impl Slots {
    /// Whether a worker can be started now: without a mold always.
    pub(super) fn may_start_workers(&self) -> bool {
        self.mold.as_ref().is_none_or(Mold::is_willing)
    }

    /// State of the mold, if there is one.
    pub fn mold(&self) -> Option<View> {
        self.mold.as_ref().map(|mold| mold.slot.view())
    }

    /// The mold that there is, or was last.
    pub fn mold_worker(&self) -> Option<Worker> {
        self.mold.as_ref().map(Mold::worker)
    }

    /// When there is something to be done about the mold.
    pub(super) fn mold_deadline(&self) -> Option<Instant> {
        let mold = self.mold.as_ref()?;
        match &mold.slot.state {
            State::Stopping(escalation) => {
                escalation.deadline().or_else(|| self.gives_up_at(mold.worker(), escalation))
            }
            _ => mold.deadline(),
        }
    }

    /// Asks the mold for this worker.
    pub(super) fn ask_for(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let due = self.mold_due(now);
        let Some(mold) = &mut self.mold else { return };
        mold.last_ticket += 1;
        mold.tickets.insert(mold.last_ticket, worker);
        mold.answer_by = mold.answer_by.or(Some(due));
        actions.push(Action::Fork(worker, mold.last_ticket));
    }

    /// By when something is to come of the mold that is asked of it now. On trial, just before main loses its patience,
    /// which does not know the cause.
    fn mold_due(&self, now: Instant) -> Instant {
        let time = self.settings.tuning.ready_timeout;
        let mold = self.mold.as_ref().filter(|_| self.settings.trial);
        mold.map_or(now + time, |mold| mold.awaited_since + time / 16 * 15)
    }

    pub(super) fn on_mold_executed(&mut self, now: Instant) {
        let Some(worker) = self.mold.as_ref().map(Mold::worker) else { return };
        let deadline = Some(if self.settings.trial { self.mold_due(now) } else { now + self.ready_time(worker) });
        let Some(mold) = &mut self.mold else { return };
        if matches!(mold.slot.state, State::Executing { .. }) {
            mold.slot.readiness.executed = Some(now);
            mold.slot.state = State::Starting { deadline, look: None, probe: None };
        }
    }

    pub(super) fn on_mold_ready(&mut self, may_refork: bool, now: Instant, actions: &mut Vec<Action>) {
        let is_wanted = self.settings.refork != Refork::default();
        let Some(mold) = &mut self.mold else { return };
        mold.spoke = true;
        match mold.slot.state {
            State::Executing { .. } | State::Starting { .. } => {}
            State::Ready { .. } => return self.break_mold("it said READY twice".to_owned(), now, actions),
            _ => return,
        }
        mold.slot.unready = 0;
        mold.slot.readiness.proven = Some(now);
        mold.slot.state = State::Ready { unproven: None };
        mold.warmth.may_refork = may_refork && is_wanted;
        if is_wanted && !may_refork {
            actions.push(Action::Note(Note::CannotRefork));
        }
        self.report_executed(actions);
    }

    pub(super) fn on_mold_failed(&mut self, why: &str, now: Instant, actions: &mut Vec<Action>) {
        let Some(mold) = &mut self.mold else { return };
        mold.spoke = true;
        let why = if why.is_empty() { "it did not say why" } else { why };
        self.end_mold(Cause::CannotStart(Cause::bounded(format!("the mold cannot load: {why}"))), now, actions);
    }

    /// Its socket has ended.
    pub(super) fn on_mold_closed(&mut self, now: Instant) {
        if let Some(mold) = self.mold.as_mut().filter(|mold| mold.slot.has_worker()) {
            mold.closed_until.get_or_insert(now + CLOSED_TIMEOUT);
        }
    }

    /// A process has said that it is the worker of this ticket. It is a child of ours, and none that was known.
    pub(super) fn on_born(&mut self, ticket: u64, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.close_ticket(ticket, "BORN", now, actions) else { return };
        let listens = self.mold.as_ref().is_some_and(|mold| mold.slot.readiness.listens);
        let life = self.mold.as_ref().map_or(0, |mold| mold.slot.life);
        let retirement = self.settings.tuning.retirement().clone();
        actions.push(Action::Adopt(worker));
        let Some(slot) = self.slot_of(worker) else { return };
        slot.wear.mold = life;
        if slot.retiring {
            slot.state = State::Stopping(Escalation::begin(&retirement, now));
            return;
        }
        self.on_executed(worker, now, actions);
        if listens {
            self.on_listens(worker, now, actions);
        }
    }

    pub(super) fn on_unborn(&mut self, ticket: u64, why: &str, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.close_ticket(ticket, "UNBORN", now, actions) else { return };
        let why = if why.is_empty() { "the mold did not say why" } else { why };
        self.on_ended(worker, Cause::CannotStart(Cause::bounded(format!("could not be forked: {why}"))), now, actions);
    }

    fn close_ticket(&mut self, ticket: u64, word: &str, now: Instant, actions: &mut Vec<Action>) -> Option<Worker> {
        let due = self.mold_due(now);
        let mold = self.mold.as_mut()?;
        let worker = mold.tickets.remove(&ticket);
        mold.answer_by = (!mold.tickets.is_empty()).then_some(due);
        if let Some(worker) = worker {
            return Some(worker);
        }
        let known = if (1..=mold.last_ticket).contains(&ticket) { "answered already" } else { "of nobody's" };
        self.break_mold(format!("{word} {ticket} came, a ticket {known}"), now, actions);
        None
    }

    /// It does not keep to the protocol: it is of no use any more. The workers go on, and another mold is loaded.
    pub(super) fn break_mold(&mut self, why: String, now: Instant, actions: &mut Vec<Action>) {
        let cause = Cause::bounded(format!("the mold broke its protocol: {why}; see panzer-mold(7)"));
        self.end_mold(Cause::CannotStart(cause), now, actions);
    }

    fn end_mold(&mut self, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let schedule = self.settings.tuning.stop.clone().with_waits_up_to(BROKEN_TIMEOUT);
        self.end_mold_by(cause, &schedule, now, actions);
    }

    fn end_mold_by(&mut self, cause: Cause, schedule: &Schedule, now: Instant, actions: &mut Vec<Action>) {
        let trial = self.settings.trial;
        let Some(mold) = &mut self.mold else { return };
        if !mold.slot.has_worker() || matches!(mold.slot.state, State::Stopping(_)) {
            return;
        }
        mold.slot.ended_for = Some(cause.clone());
        mold.slot.state = State::Stopping(Escalation::begin(schedule, now));
        actions.push(Action::Dismiss);
        if trial {
            actions.push(Action::Report(Report::MoldFailed(cause)));
        }
        self.take_tickets_back(now, actions);
    }

    /// Nobody answers them any more: the next mold is asked for the workers that are wanted.
    pub(super) fn take_tickets_back(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(mold) = &mut self.mold else { return };
        (mold.answer_by, mold.closed_until) = (None, None);
        let (tickets, stops) = (std::mem::take(&mut mold.tickets), self.stopping.is_some());
        if !tickets.is_empty() {
            mold.ended_forking = Some(mold.slot.life);
        }
        for worker in tickets.into_values() {
            let is_beside = self.recycler.beside.contains_key(&worker);
            let Some(slot) = self.slot_of(worker) else { continue };
            if !slot.retiring && !stops && !is_beside {
                slot.state = State::Waiting { until: now };
                // It has been counted.
                slot.is_anew = true;
            } else {
                // It was to end, and there is nobody who could.
                self.on_ended(worker, Cause::CannotStart("has never begun".to_owned()), now, actions);
            }
        }
    }

    pub(super) fn mold_ended(&mut self, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let (pace, trial, stops) = (self.settings.tuning.pace, self.settings.trial, self.stopping.is_some());
        let random = self.random.draw();
        self.take_tickets_back(now, actions);
        let (first_start, end) = (self.is_first_try(), cause.clone());
        let Some(mold) = &mut self.mold else { return };
        let was_told = trial && mold.slot.ended_for.is_some();
        let lived = now.saturating_duration_since(mold.slot.since);
        let was_ready = mold.slot.readiness.proven.is_some();
        let cause =
            mold.slot.ended_for.take().unwrap_or_else(|| end_in_words(cause, was_ready, mold.spoke, first_start));
        let worker = mold.worker();
        mold.slot.since = now;
        mold.slot.state = State::Empty;
        if stops {
            return;
        }
        if !was_told {
            actions.push(Action::Report(Report::MoldFailed(cause.clone())));
        }
        if trial {
            return;
        }
        let delay = mold.slot.backoff.after(lived, was_ready, pace, random);
        mold.slot.state = State::Waiting { until: now + delay };
        // Main tells what ends panzer.
        if !first_start || cause.exit_code().is_none() {
            let serves = self.slots.iter().any(Slot::has_worker);
            actions.push(Action::Note(Note::MoldFailed { worker, why: cause, end, delay, serves }));
        }
    }

    /// Begins the stop of a mold with all the others: it is told, and has a moment to end by itself.
    pub(super) fn stop_mold(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.take_tickets_back(now, actions);
        let Some(Stopping { schedule, urgency, .. }) = &self.stopping else { return };
        // It serves nobody whose end could be waited for.
        let schedule = if *urgency == Urgency::Patient { self.settings.tuning.retirement() } else { schedule };
        let Some(mold) = &mut self.mold else { return };
        let begins = match mold.slot.state {
            State::Ready { .. } => now + FAREWELL_TIMEOUT,
            _ => now,
        };
        match &mut mold.slot.state {
            State::Waiting { .. } => mold.slot.state = State::Empty,
            State::Executing { .. } | State::Starting { .. } | State::Ready { .. } => {
                mold.slot.state = State::Stopping(Escalation::begin(schedule, begins));
                actions.push(Action::Dismiss);
            }
            State::Stopping(escalation) => {
                mold.slot.ended_for = None;
                escalation.escalate(schedule, now);
            }
            State::Empty | State::Forking | State::EndedForGood { .. } => {}
        }
    }

    /// At a first start, main ends panzer where the program can never be a mold.
    fn is_first_try(&self) -> bool {
        let is_first = self.mold.as_ref().is_some_and(|mold| mold.slot.life == 1);
        is_first && !self.reported.executed && !self.settings.trial
    }

    pub(super) fn mold_is_gone(&self) -> bool {
        !self.mold.as_ref().is_some_and(|mold| mold.slot.has_worker())
    }

    /// Starts the mold, or another, and ends one that keeps nobody's time.
    pub(super) fn tend_mold(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(mold) = &mut self.mold else { return };
        let worker = mold.worker();
        if mold.closed_until.is_some_and(|until| until <= now) {
            mold.closed_until = None;
            return self.break_mold("it closed its socket (PANZER_MOLD_FD)".to_owned(), now, actions);
        }
        match mold.slot.state {
            State::Waiting { until } if until <= now => self.load_mold(now, actions),
            State::Executing { deadline } if deadline <= now => {
                let cause = Cause::CannotStart(format!("the mold {}", Cause::HungInExec(EXEC_TIMEOUT)));
                self.end_mold_by(cause, &Schedule::kill(), now, actions);
                actions.push(Action::Note(Note::HangsInExec(worker)));
            }
            State::Starting { deadline: Some(deadline), .. } if deadline <= now => self.mold_is_late(now, actions),
            State::Ready { .. } if mold.answer_by.is_some_and(|due| due <= now) => {
                let time = duration::show(self.settings.tuning.ready_timeout);
                let ticket = mold.tickets.keys().next().copied().unwrap_or_default();
                self.break_mold(
                    format!("no answer came to FORK {ticket} in time (--ready-timeout {time})"),
                    now,
                    actions,
                );
            }
            State::Stopping(_) => self.escalate_if_due(worker, now, actions),
            _ => {}
        }
    }

    fn mold_is_late(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let first_start = self.is_first_try();
        let Some(mold) = &mut self.mold else { return };
        let tries = mold.slot.unready;
        mold.slot.unready = tries.saturating_add(1);
        let since = mold.slot.readiness.executed.unwrap_or(mold.slot.since);
        let time =
            if self.settings.trial { self.settings.tuning.ready_timeout } else { now.saturating_duration_since(since) };
        let why = format!(
            "the mold did not say READY within {} (--ready-timeout allows more time): {NO_CLIENT}",
            duration::show(time)
        );
        // At a first start a program is not tried again that does not speak at all.
        let cause = if first_start { Cause::CannotExecute(why) } else { Cause::CannotStart(why) };
        self.end_mold(cause, now, actions);
    }

    fn load_mold(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let serves = self.slots.iter().any(Slot::has_worker);
        let Some(mold) = &mut self.mold else { return };
        let is_respawn = mold.slot.life > 0 && !serves;
        // If workers serve, only they are counted: they do not depend on the mold.
        if is_respawn && !self.respawn_allowed(now) {
            if let Some(mold) = &mut self.mold {
                mold.slot.state = State::Empty;
            }
            return self.tell_that_it_gives_up(actions);
        }
        let Some(mold) = &mut self.mold else { return };
        mold.slot.respawns += u32::from(mold.slot.life > 0);
        mold.slot.begin(State::Executing { deadline: now + EXEC_TIMEOUT }, now);
        mold.awaited_since = now;
        mold.slot.readiness.listened = false;
        mold.spoke = false;
        mold.warmth = Warmth { candidate: mold.warmth.candidate, ..Warmth::default() };
        actions.push(Action::Spawn(mold.worker()));
    }
}

// Reforking (`--refork`): a warm worker becomes the mold, and the workers of the mold before it are replaced.
//
// The warm worker is replaced as one that has reached a limit is: another worker is ready first. Then it is told to become
// the mold, and to stop: it ends its work as at any stop. If it does not say that it is willing, the stop goes on, and
// nothing else changes. If it does, it is the mold from then on, and the old mold ends.
impl Slots {
    /// When this worker is to be replaced for the sake of the mold, and why.
    pub(super) fn due_for_refork(&self, slot: &Slot) -> Option<(Instant, Reason)> {
        let mold = self.mold.as_ref().filter(|mold| matches!(mold.slot.state, State::Ready { .. }))?;
        if mold.warmth.is_warm && slot.wear.mold < mold.slot.life {
            return Some((slot.since, Reason::OlderMold));
        }
        let rests = mold.warmth.candidate.is_some() || self.recycler.beside.keys().any(|beside| beside.is_mold());
        let is_older = |slot: &Slot| mold.warmth.is_warm && slot.has_worker() && slot.wear.mold < mold.slot.life;
        if rests || !mold.warmth.may_refork || self.slots.iter().any(is_older) {
            return None;
        }
        let after = self.settings.refork.after(mold.warmth.times)?;
        let due = match after {
            ReforkAfter::Age(age) => slot.since.checked_add(age)?,
            ReforkAfter::Requests(limit) => {
                slot.wear.requests.filter(|requests| *requests >= limit)?;
                slot.since + self.settings.tuning.pace.healthy_after
            }
        };
        Some((due, Reason::Warm(after)))
    }

    /// A worker that is being stopped becomes the mold, if it is willing.
    pub(super) fn want_as_mold(&mut self, worker: Worker, actions: &mut Vec<Action>) {
        if let Some(mold) = &mut self.mold {
            mold.warmth.candidate = Some(worker);
            actions.push(Action::WantAsMold(worker));
        }
    }

    /// The worker is the mold from now on.
    pub(super) fn on_willing(&mut self, worker: Worker, may_refork: bool, now: Instant, actions: &mut Vec<Action>) {
        let is_candidate = self.mold.as_ref().is_some_and(|mold| mold.warmth.candidate == Some(worker));
        if !is_candidate || self.stopping.is_some() || self.recycler.beside.remove(&worker).is_none() {
            // It waits for orders, and has had the signal that would end it.
            return actions.push(Action::Decline(worker));
        }
        self.take_tickets_back(now, actions);
        let retirement = self.settings.tuning.retirement().clone();
        let Some(mold) = &mut self.mold else { return };
        let old = mold.worker();
        let mut slot = Slot::new(now);
        slot.wear = mold.slot.wear.clone();
        slot.wear.recycled += 1;
        slot.respawns = mold.slot.respawns;
        slot.begin(State::Ready { unproven: None }, now);
        slot.readiness = mold.slot.readiness.clone();
        let mut replaced = std::mem::replace(&mut mold.slot, slot);
        mold.warmth = Warmth { is_warm: true, may_refork, times: mold.warmth.times.saturating_add(1), candidate: None };
        let new = mold.worker();
        actions.push(Action::Promote(worker, new));
        actions.push(Action::Note(Note::Reforked(new, worker)));
        if replaced.has_worker() {
            replaced.retiring = true;
            if !matches!(replaced.state, State::Stopping(_)) {
                replaced.state = State::Stopping(Escalation::begin(&retirement, now + FAREWELL_TIMEOUT));
            }
            self.recycler.beside.insert(old, replaced);
        }
    }

    /// The worker that was to become the mold has ended, or does not: it is stopped as any other. Nobody is tried again
    /// until another mold is loaded.
    pub(super) fn not_reforked(&mut self, worker: Worker, why: String, actions: &mut Vec<Action>) {
        let stops = self.stopping.is_some();
        let Some(mold) = self.mold.as_mut().filter(|mold| mold.warmth.candidate == Some(worker)) else { return };
        mold.warmth = Warmth { candidate: None, may_refork: false, ..mold.warmth };
        if !stops {
            actions.push(Action::Note(Note::NotReforked(worker, why)));
        }
    }

    /// Whether the workers that are asked of the mold can become molds.
    pub fn may_refork(&self) -> bool {
        self.mold.as_ref().is_some_and(|mold| mold.warmth.may_refork)
    }

    /// Whether the mold was a worker. Then it has the listeners no more.
    pub fn has_warm_mold(&self) -> bool {
        self.mold.as_ref().is_some_and(|mold| mold.warmth.is_warm)
    }

    /// Whether this worker is there, or is asked for.
    pub fn knows(&self, worker: Worker) -> bool {
        self.slot_at(worker).is_some_and(|slot| slot.life == worker.life && slot.has_worker())
    }
}

/// How a mold ended by itself.
fn end_in_words(cause: Cause, was_ready: bool, spoke: bool, first_start: bool) -> Cause {
    let ended = match cause {
        Cause::Exited(code) => format!("exited with code {code}"),
        Cause::Killed(..) => cause.to_string(),
        _ if cause.exit_code().is_some() => return cause,
        _ => return Cause::CannotStart(format!("the mold {cause}")),
    };
    match cause {
        _ if was_ready => Cause::CannotStart(format!("the mold {ended}")),
        Cause::Killed(..) => Cause::CannotStart(format!("the mold {ended} before it said READY")),
        // It did all that it wanted, and never spoke: it would do so again.
        Cause::Exited(0) if first_start && !spoke => {
            Cause::CannotExecute(format!("the mold {ended} before it said READY: {NO_CLIENT}"))
        }
        _ => Cause::CannotStart(format!(
            "the mold {ended} before it said READY: unless its own output says why, {NO_CLIENT}"
        )),
    }
}
