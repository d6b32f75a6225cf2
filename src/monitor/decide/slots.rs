//! A monitor's state, and what changes it: pure, with no clock, no IO and no pids.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::backoff::Random;
use crate::config::{Escalation, Schedule};
use crate::control::monitor::messages::{Order, Report, Urgency};
use crate::worker::cause::Cause;

use super::bypass::Suspects;
use super::limits::{AtOnce, Looking};
use super::slot::{Left, Probe, Recycler, Starts, Stopping};
use super::slot::{Slot, State};
use super::tickets::Mold;
use super::vocabulary::{Action, Event, Note, Settings, View, Watch, Worker};

/// An exec takes microseconds. If it takes this long, the file system is dead, and the process is ended.
pub(super) const EXEC_TIMEOUT: Duration = Duration::from_secs(10);

/// The slots of one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Slots {
    pub(super) settings: Settings,
    pub(super) slots: Vec<Slot>,
    pub(super) mold: Option<Mold>,
    pub(super) groups: BTreeMap<Worker, Left>,
    pub(super) probes: BTreeMap<Worker, Probe>,
    pub(super) starts: Starts,
    pub(super) at_once: AtOnce,
    pub(super) looking: Looking,
    pub(super) suspects: Suspects,
    pub(super) respawns: Respawns,
    pub(super) stopping: Option<Stopping>,
    pub(super) recycler: Recycler,
    pub(super) reported: Reported,
    pub(super) random: Random,
}

/// Facts that are reported once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reported {
    /// The program runs.
    pub(super) executed: bool,
    /// Everything has ended.
    pub(super) exited: bool,
}

/// Respawns within the time of the limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Respawns {
    pub(super) recent: VecDeque<Instant>,
    /// Whether there were too many.
    pub(super) gave_up: bool,
}

impl Slots {
    /// Empty slots. [`Event::Start`] fills them.
    pub fn new(settings: Settings, now: Instant) -> Slots {
        Slots {
            slots: (0..settings.workers).map(|_| Slot::new(now)).collect(),
            mold: settings.preload.then(|| Mold::new(now)),
            groups: BTreeMap::new(),
            probes: BTreeMap::new(),
            starts: Starts::default(),
            at_once: AtOnce::default(),
            looking: Looking::default(),
            suspects: Suspects::default(),
            respawns: Respawns::default(),
            stopping: None,
            recycler: Recycler::default(),
            reported: Reported::default(),
            random: Random::new(settings.seed),
            settings,
        }
    }

    /// The only method that changes the state. Also does everything that is due by `now`.
    #[must_use]
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        // All messages that workers have sent by now have been read.
        let is_turn_over = matches!(event, Event::Wake);
        let may_end_workers =
            matches!(event, Event::Start | Event::Wake | Event::Ended(..) | Event::Ordered(_) | Event::MainGone);
        if matches!(event, Event::Start | Event::Wake) {
            self.starts.begin_turn();
        }
        match event {
            Event::Start => self.start(now),
            Event::Executed(worker) if worker.is_mold() => self.on_mold_executed(now),
            Event::Executed(worker) => self.on_executed(worker, now, &mut actions),
            Event::MoldReady(may_refork) => self.on_mold_ready(may_refork, now, &mut actions),
            Event::Willing(worker, may_refork) => self.on_willing(worker, may_refork, now, &mut actions),
            Event::Unwilling(worker, why) => self.not_reforked(worker, why, &mut actions),
            Event::MoldFailed(why) => self.on_mold_failed(&why, now, &mut actions),
            Event::MoldBroke(how) => self.break_mold(how, now, &mut actions),
            Event::MoldClosed => self.on_mold_closed(now),
            Event::Born(ticket) => self.on_born(ticket, now, &mut actions),
            Event::Unborn(ticket, why) => self.on_unborn(ticket, &why, now, &mut actions),
            Event::Notified(worker) => self.on_notified(worker, now, &mut actions),
            Event::Extends(worker, by) => self.on_extends(worker, by, now, &mut actions),
            Event::Lives(worker) => self.on_lives(worker, now),
            Event::Stops(worker) => self.on_stops(worker, now),
            Event::IsBroken(worker) => self.abort(worker, None, now, &mut actions),
            Event::WatchedEvery(worker, period) => self.on_watched_every(worker, period, now),
            Event::Served(worker, requests) => self.on_served(worker, requests),
            Event::Measured(memory, took) => self.on_measured(&memory, took, now),
            Event::Listens(worker) => self.on_listens(worker, now, &mut actions),
            Event::Seen(worker, sight) => self.on_seen(worker, sight, now, &mut actions),
            Event::Looked(took) => self.looking.looked(took, !self.starts.has_one_left(), now),
            Event::Examined(worker, shown) => self.on_examined(worker, shown, now, &mut actions),
            Event::Probed(worker, succeeded) => self.on_probed(worker, succeeded, now, &mut actions),
            Event::Ended(worker, cause) => self.on_ended(worker, cause, now, &mut actions),
            Event::Suspended(worker, signal) => self.on_suspended(worker, signal, now, &mut actions),
            Event::Continued(worker) => self.on_continued(worker, now, &mut actions),
            Event::LeftBehind(worker) => self.on_left_behind(worker, now, &mut actions),
            Event::GroupGone(worker) => drop(self.groups.remove(&worker)),
            Event::Ordered(Order::Commit) => self.commit(now, &mut actions),
            Event::Ordered(Order::Scale { workers, which }) => self.scale(workers, which, now, &mut actions),
            // Stops that are under way keep their old schedule.
            Event::Ordered(Order::Tune(tuning)) => self.settings.tuning = *tuning,
            Event::Ordered(Order::Stop(pace)) => self.stop(pace, now, &mut actions),
            Event::Ordered(Order::HoldRecycling(held)) => self.recycler.held = held,
            // Answered elsewhere: from `view`, by `sockets::sharing`, or from the roster. They change nothing here.
            Event::Ordered(
                Order::LastLines { .. }
                | Order::Status
                | Order::Own
                | Order::QueueAt { .. }
                | Order::Shared { .. }
                | Order::Bound { .. }
                | Order::Again { .. }
                | Order::Look { .. }
                | Order::NotShared { .. }
                | Order::Signal { .. },
            ) => {}
            // The descriptors follow this; the state does not change.
            Event::Ordered(Order::LeaveTerminal) => {}
            Event::MainGone => {
                if self.stopping.is_none() {
                    actions.push(Action::Note(Note::MainGone));
                }
                self.stop(Urgency::Graceful, now, &mut actions);
            }
            Event::Wake => {}
        }
        // Only after such events, because a thousand looks would make it expensive.
        if may_end_workers {
            self.forget_suspects_that_end();
        }
        if is_turn_over {
            self.abort_the_silent(now, &mut actions);
        }
        self.do_what_is_due(now, &mut actions);
        self.exit_if_done(&mut actions);
        actions
    }

    /// When to wake the monitor if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let may_start = self.may_start_workers();
        let slots = self.all().filter_map(|(worker, slot)| match &slot.state {
            State::Waiting { until } => may_start.then(|| self.starts.earliest(*until)),
            State::Executing { deadline } => Some(*deadline),
            State::Starting { deadline, look, .. } => {
                let look = look.and_then(|look| look.next).and_then(|next| self.looking.earliest(next));
                deadline.iter().copied().chain(look).min()
            }
            State::Stopping(escalation) => escalation.deadline().or_else(|| self.gives_up_at(worker, escalation)),
            State::Ready { .. } => slot.watchdog.due,
            State::Empty | State::Forking | State::EndedForGood { .. } => None,
        });
        let slots = slots.chain(self.mold_deadline()).chain(self.recycling_deadline());
        let probes = self.probes.values().map(|probe| probe.deadline);
        let groups = self.groups.values().filter_map(Left::deadline);
        let suspects = self.suspects.deadline().and_then(|deadline| self.looking.earliest(deadline));
        slots.chain(groups).chain(probes).chain(suspects).chain(self.probes_to_come().map(|(next, _)| next)).min()
    }

    /// The worker that a slot has, or had last.
    pub fn worker_in(&self, slot: u32) -> Option<Worker> {
        self.slots.get(slot as usize).map(|of| Worker { slot, life: of.life })
    }

    /// A slot as others see it.
    pub fn view(&self, slot: u32) -> View {
        self.slots[slot as usize].view()
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Number of slots.
    pub fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The slot that holds this worker. None if the worker is gone.
    pub(super) fn slot_of(&mut self, worker: Worker) -> Option<&mut Slot> {
        let of_slot = match worker.is_mold() {
            true => self.mold.as_mut().map(|mold| &mut mold.slot),
            false => self.slots.get_mut(worker.slot as usize),
        };
        let slot = self.recycler.beside.get_mut(&worker).or(of_slot);
        slot.filter(|slot| slot.life == worker.life && slot.has_worker())
    }

    /// The slot of this worker, whatever life it is in.
    pub(super) fn slot_at(&self, worker: Worker) -> Option<&Slot> {
        let of_slot = match worker.is_mold() {
            true => self.mold.as_ref().map(|mold| &mold.slot),
            false => self.slots.get(worker.slot as usize),
        };
        self.recycler.beside.get(&worker).or(of_slot)
    }

    /// The workers in the slots, and those beside them.
    pub(super) fn all(&self) -> impl Iterator<Item = (Worker, &Slot)> {
        let own = (0..).zip(&self.slots).map(|(index, slot)| (Worker { slot: index, life: slot.life }, slot));
        own.chain(self.recycler.beside.iter().map(|(worker, slot)| (*worker, slot)))
    }

    pub(super) fn spawn(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let state = self.first_state(now);
        let slot = &mut self.slots[index as usize];
        slot.begin(state, now);
        let worker = Worker { slot: index, life: slot.life };
        self.start_process(worker, now, actions);
    }

    pub(super) fn first_state(&self, now: Instant) -> State {
        if self.mold.is_some() { State::Forking } else { State::Executing { deadline: now + EXEC_TIMEOUT } }
    }

    pub(super) fn start_process(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let random = self.random.draw();
        self.starts.made(self.settings.tuning.start_delay, random, now);
        self.slot_of(worker).into_iter().for_each(|slot| slot.wear.random = random);
        match self.mold.is_some() {
            true => self.ask_for(worker, now, actions),
            false => actions.push(Action::Spawn(worker)),
        }
    }

    pub(super) fn on_ended(&mut self, worker: Worker, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let (pace, trial, stopping) = (self.settings.tuning.pace, self.settings.trial, self.stopping.is_some());
        let gave_up = self.respawns.gave_up;
        if self.slot_of(worker).is_none() {
            return;
        }
        if self.recycler.beside.contains_key(&worker) {
            return self.ended_beside(worker, cause, now, actions);
        }
        if worker.is_mold() {
            return self.mold_ended(cause, now, actions);
        }
        let random = self.random.draw();
        let Some(slot) = self.slot_of(worker) else { return };
        let lived = now.saturating_duration_since(slot.since);
        let dumped_core = matches!(cause, Cause::Killed(_, true));
        let cause = match slot.ended_for.take() {
            Some(Cause::Watchdog(time, _)) => Cause::Watchdog(time, dumped_core),
            known => known.unwrap_or(cause),
        };
        slot.since = now;
        let retired = std::mem::replace(&mut slot.retiring, false);
        if retired {
            actions.push(Action::Report(Report::Gone { slot: worker.slot }));
        }
        if stopping || (retired && (!slot.wanted || gave_up)) {
            slot.state = State::Empty;
            return;
        }
        if retired {
            // It is wanted again.
            slot.state = State::Waiting { until: now };
            slot.is_anew = true;
            return;
        }
        if let Some(code) = self.final_code(&cause) {
            return self.end_for_good(worker, code, actions);
        }
        let count = self.slots.len();
        let Some(slot) = self.slots.get_mut(worker.slot as usize) else { return };
        let was_ready = slot.readiness.proven.is_some_and(|since| since <= now);
        let mut delay = slot.backoff.after(lived, was_ready, pace, random);
        if delay.is_zero() && !trial {
            delay = self.at_once.wait(count, now);
        }
        slot.state = if trial { State::Empty } else { State::Waiting { until: now + delay } };
        actions.push(Action::Report(Report::Died { slot: worker.slot, cause: cause.clone() }));
        // If the program cannot be executed at all, and this ends panzer or a reload, main logs it once for all slots.
        let told_by_main = trial || (worker.life == 1 && cause.exit_code().is_some());
        if !told_by_main {
            actions.push(Action::Note(Note::Respawning(worker, cause, delay)));
        }
    }

    /// The release serves. Slots whose worker died during the trial are filled like any other.
    fn commit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.settings.trial, false) || self.stopping.is_some() {
            return;
        }
        let timeout = self.settings.tuning.ready_timeout;
        let mold = self.mold.as_mut().map(|mold| &mut mold.slot);
        for slot in self.slots.iter_mut().chain(mold) {
            match &mut slot.state {
                State::Empty if slot.wanted => slot.state = State::Waiting { until: now },
                // It is the first worker of its slot, because there was no respawn during the trial.
                State::Starting { deadline, .. } => *deadline = Some(now + timeout).max(slot.readiness.extended_to),
                _ => {}
            }
        }
        self.tell_those_ended_for_good(actions);
    }

    fn do_what_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Few are, and this is asked after each event of a thousand workers.
        let is_due = |slot: &Slot| slot.is_overdue(now) || matches!(slot.state, State::Stopping(_));
        let due: Vec<Worker> = self.all().filter(|(_, slot)| is_due(slot)).map(|(worker, _)| worker).collect();
        for worker in due {
            self.end_if_overdue(worker, now, actions);
            self.escalate_if_due(worker, now, actions);
        }
        self.tend_mold(now, actions);
        self.recycle(now, actions);
        self.fill_those_due(now, actions);
        self.examine_if_due(now, actions);
        self.look_if_due(now, actions);
        self.probe_if_due(now, actions);
        self.end_probes(now, actions);
        self.stop_those_left_behind(now, actions);
    }

    /// The first worker of a slot is no respawn, nor is one that was asked for.
    pub(super) fn fill(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let slot = &self.slots[index as usize];
        let is_respawn = slot.life > 0 && !slot.is_anew;
        let allowed = if is_respawn { self.respawn_allowed(now) } else { !self.respawns.gave_up };
        if allowed {
            self.slots[index as usize].respawns += u32::from(is_respawn);
            self.spawn(index, now, actions);
        } else {
            self.give_up(index, actions);
        }
    }

    fn end_if_overdue(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        if !self.slot_at(worker).is_some_and(|slot| slot.is_overdue(now)) {
            return;
        }
        let (time, stop) = (self.ready_time(worker), self.settings.tuning.stop.clone());
        let watch = self.settings.watch;
        let Some(slot) = self.slot_of(worker) else { return };
        match slot.state {
            State::Executing { .. } => {
                // There is no program yet that could react to another signal.
                slot.state = State::Stopping(Escalation::begin(&Schedule::kill(), now));
                slot.ended_for = Some(Cause::HungInExec(EXEC_TIMEOUT));
                actions.push(Action::Note(Note::HangsInExec(worker)));
            }
            State::Starting { .. } => {
                slot.state = State::Stopping(Escalation::begin(&stop, now));
                let began = slot.readiness.executed.filter(|_| slot.readiness.extended_to.is_some());
                let time = began.map_or(time, |began| now.saturating_duration_since(began));
                slot.unready = slot.unready.saturating_add(1);
                slot.ended_for = Some(match (slot.readiness.shown.hidden, slot.readiness.shown.helper_hidden) {
                    (Some(why), _) if watch == Watch::Always => Cause::NotSeen(time, why.to_string()),
                    (None, Some(why)) => Cause::NotSeen(time, why.of_helper()),
                    _ => Cause::NotReady(time),
                });
                actions.push(Action::Note(Note::NotReady(worker, time, self.ready_time(worker))));
            }
            _ => {}
        }
    }

    /// Counts the respawn that is about to happen.
    pub(super) fn respawn_allowed(&mut self, now: Instant) -> bool {
        if self.respawns.gave_up {
            return false;
        }
        let Some(limit) = self.settings.tuning.respawn_limit else { return true };
        while self.respawns.recent.front().is_some_and(|&then| now.duration_since(then) > limit.window) {
            self.respawns.recent.pop_front();
        }
        let allowed = self.respawns.recent.len() < limit.count as usize;
        if allowed {
            self.respawns.recent.push_back(now);
        }
        allowed
    }

    /// Leaves the slot empty. Reports it once, and main stops everything.
    fn give_up(&mut self, index: u32, actions: &mut Vec<Action>) {
        self.slots[index as usize].state = State::Empty;
        self.tell_that_it_gives_up(actions);
    }

    pub(super) fn tell_that_it_gives_up(&mut self, actions: &mut Vec<Action>) {
        if let Some(limit) = self.settings.tuning.respawn_limit.filter(|_| !self.respawns.gave_up) {
            self.respawns.gave_up = true;
            actions.push(Action::Note(Note::GaveUp(limit)));
            actions.push(Action::Report(Report::GaveUp));
        }
    }

    fn exit_if_done(&mut self, actions: &mut Vec<Action>) {
        let empty = !self.all().any(|(_, slot)| slot.has_worker()) && self.mold_is_gone() && !self.measures();
        if self.stopping.is_some() && empty && self.groups.is_empty() && self.probes.is_empty() && !self.reported.exited
        {
            self.reported.exited = true;
            actions.push(Action::Exit);
        }
    }
}
