//! Recycling by itself: a monitor's state, workers that grow old, use memory and report requests, replacements that fail or
//! take their time, and reloads, scaling, stops and signals in between. Nobody is stopped before the replacement is
//! ready, one is replaced at a time, and whoever has reached a limit is replaced in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use nix::sys::signal::Signal;
use panzer::backoff::Pace;
use panzer::config::{FinalExits, Ready, Recycling, StartDelay};
use panzer::control::monitor::messages::{Order, Report, Urgency, Which};
use panzer::monitor::decide::{Action, Event, Settings, Slots, Watch, Worker};
use panzer::worker::cause::Cause;

use crate::check::{Checked, SLACK, Violation, hold};
use crate::choices::Choices;
use crate::configuration;
use crate::kernel::Time;

const HISTORIES: u64 = 1_000;

/// A history ends then.
const END: Time = Time::from_secs(240);

/// The longest time that a due worker waits while nothing else is done: for one that drains, or after a failure.
const MOST_WAIT: Time = Time::from_secs(17);

/// The longest time between two measurements of a worker, including one that hangs.
const MOST_UNMEASURED: Time = Time::from_secs(75);

/// Bugs that are planted to check the checker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    ReplacesBeforeReady,
    StartsTwoAtOnce,
    RecyclesDuringReload,
    RecyclesTheSuspended,
    RecyclesTooEarly,
    NeverNoticesAge,
    NeverNoticesMemory,
    ForgetsAFailure,
    ForgetsToReport,
    ReportsAFailureAsDeath,
    StartsAfterAStop,
    WaitsForAMeasurementForEver,
}

const BUGS: [Bug; 12] = [
    Bug::ReplacesBeforeReady,
    Bug::StartsTwoAtOnce,
    Bug::RecyclesDuringReload,
    Bug::RecyclesTheSuspended,
    Bug::RecyclesTooEarly,
    Bug::NeverNoticesAge,
    Bug::NeverNoticesMemory,
    Bug::ForgetsAFailure,
    Bug::ForgetsToReport,
    Bug::ReportsAFailureAsDeath,
    Bug::StartsAfterAStop,
    Bug::WaitsForAMeasurementForEver,
];

#[derive(Debug, Clone)]
enum Happening {
    To(Event),
    Serves(Worker),
    Measured(Vec<Worker>),
    Ends(Worker, Cause),
}

/// A process that lives.
#[derive(Debug, Clone, Default)]
struct Life {
    begun: Time,
    ready: bool,
    halted: bool,
    told_to_end: bool,
    requests: u64,
    memory: u64,
    measured: Time,
    /// Bytes and requests a second.
    rate: u64,
    /// Since when it has been due.
    due: Option<Time>,
}

struct World {
    now: Time,
    base: Instant,
    choices: Choices,
    state: Slots,
    limits: Recycling,
    least: Time,
    ready_timeout: Time,
    agenda: BTreeMap<(Time, u64), Happening>,
    planned: u64,
    alive: BTreeMap<Worker, Life>,
    /// The worker of each slot, as others see it.
    present: BTreeMap<u32, Worker>,
    replacement: Option<Worker>,
    retired: BTreeSet<u32>,
    measuring: Option<(Time, Vec<Worker>)>,
    held: bool,
    stopped: Option<Time>,
    exited: bool,
    /// When something was last done about replacements.
    progress: Time,
    bug: Option<Bug>,
}

impl World {
    fn new(mut choices: Choices, bug: Option<Bug>) -> World {
        let mut tuning = configuration::draw(&mut choices, Ready::Notify).tuning;
        tuning.stop = choices.among(&["TERM/2s/INT/1s/KILL", "TERM/3s/KILL"]).parse().unwrap();
        (tuning.retire, tuning.respawn_limit, tuning.start_delay) = (None, None, StartDelay::default());
        (tuning.ready_timeout, tuning.final_exits) = (Time::from_secs(5), FinalExits::default());
        let least = choices.millis(&[10_000, 1_000]);
        tuning.pace = Pace { delay: Time::from_millis(100), delay_max: Time::from_secs(4), healthy_after: least };
        let limits = Recycling {
            max_lifetime: choices.among(&[None, Some(Time::from_secs(60)), Some(Time::from_secs(20))]),
            max_memory: choices.among(&[None, Some(1_000)]),
            max_requests: choices.among(&[None, Some(500)]),
        };
        tuning.recycling = limits;
        if bug == Some(Bug::NeverNoticesAge) {
            tuning.recycling.max_lifetime = limits.max_lifetime.map(|limit| limit * 100);
        }
        let settings = Settings {
            workers: 1 + choices.below(3) as u32,
            notify: true,
            watch: Watch::No,
            probe: false,
            has_listener: false,
            preload: false,
            refork: panzer::config::Refork::default(),
            watchdog: None,
            tuning,
            ended: BTreeSet::new(),
            trial: false,
            seed: choices.below(1_000),
        };
        let base = Instant::now();
        World {
            now: Time::ZERO,
            base,
            choices,
            ready_timeout: settings.tuning.ready_timeout,
            state: Slots::new(settings, base),
            limits,
            least,
            agenda: BTreeMap::new(),
            planned: 0,
            alive: BTreeMap::new(),
            present: BTreeMap::new(),
            replacement: None,
            retired: BTreeSet::new(),
            measuring: None,
            held: false,
            stopped: None,
            exited: false,
            progress: Time::ZERO,
            bug,
        }
    }

    fn plan(&mut self, after: Time, what: Happening) {
        self.planned += 1;
        self.agenda.insert((self.now + after, self.planned), what);
    }

    fn live(&mut self) -> Checked {
        self.give(Event::Start)?;
        for _ in 0..self.choices.below(3) {
            let at = self.choices.millis(&[18_000, 20_500, 50_000, 100_000]);
            let order = |hold| Happening::To(Event::Ordered(Order::HoldRecycling(hold)));
            let length = self.choices.millis(&[200, 3_000, 20_000]);
            self.plan(at, order(true));
            self.plan(at + length, order(false));
        }
        for _ in 0..self.choices.below(3) {
            let (workers, which) = (1 + self.choices.below(4) as u32, self.choices.among(&[Which::Last, Which::First]));
            let at = self.choices.millis(&[19_000, 21_000, 60_000]);
            self.plan(at, Happening::To(Event::Ordered(Order::Scale { workers, which })));
        }
        if self.choices.one_in(3) {
            let at = self.choices.millis(&[20_300, 61_000, 120_000]);
            self.plan(at, Happening::To(Event::Ordered(Order::Stop(Urgency::Graceful))));
        }
        while self.now < END {
            self.turn()?;
        }
        let is_over = self.stopped.is_none_or(|at| at + Time::from_secs(60) > END || self.exited);
        hold(is_over, 6, || "a stopped monitor does not exit".to_owned())
    }

    fn turn(&mut self) -> Checked {
        let due = self.state.deadline().map(|due| due.saturating_duration_since(self.base));
        let next = self.agenda.keys().next().map(|(at, _)| *at);
        self.now = due.into_iter().chain(next).min().unwrap_or(END).max(self.now);
        let woken_by_itself = self.now < END && next.is_none_or(|at| at > self.now);
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                Happening::To(event) => self.give(event)?,
                Happening::Serves(worker) => self.serve(worker)?,
                Happening::Measured(workers) => self.measured(workers)?,
                Happening::Ends(worker, cause) if self.alive.contains_key(&worker) => {
                    self.give(Event::Ended(worker, cause))?;
                }
                Happening::Ends(..) => {}
            }
        }
        let before = self.state.clone();
        self.give(Event::Wake)?;
        hold(!woken_by_itself || self.state != before, 13, || "it wakes for nothing".to_owned())?;
        self.check_times()
    }

    fn serve(&mut self, worker: Worker) -> Checked {
        let Some(life) = self.alive.get_mut(&worker) else { return Ok(()) };
        life.requests += life.rate;
        let requests = life.requests;
        self.plan(Time::from_secs(1), Happening::Serves(worker));
        let told = if self.bug == Some(Bug::RecyclesTooEarly) { requests * 3 } else { requests };
        self.give(Event::Served(worker, told))
    }

    /// The child that measures has ended.
    fn measured(&mut self, workers: Vec<Worker>) -> Checked {
        if self.measuring.as_ref().is_none_or(|(_, under_way)| *under_way != workers) {
            return Ok(());
        }
        self.measuring = None;
        let now = self.now;
        let mut memory = Vec::new();
        for worker in workers {
            let bytes = self.alive.get_mut(&worker).map(|life| {
                (life.memory, life.measured) = (100 + life.rate * (now - life.begun).as_secs(), now);
                life.memory
            });
            memory.push((worker, bytes));
        }
        let memory = match self.bug {
            Some(Bug::NeverNoticesMemory) => memory.into_iter().map(|(worker, _)| (worker, Some(100))).collect(),
            _ => memory,
        };
        let took = self.choices.millis(&[1, 20, 100]);
        self.give(Event::Measured(memory, took))
    }

    fn give(&mut self, event: Event) -> Checked {
        let mut ended = None;
        match &event {
            Event::Notified(worker)
            | Event::Executed(worker)
            | Event::Suspended(worker, _)
            | Event::Continued(worker)
                if !self.alive.contains_key(worker) =>
            {
                return Ok(());
            }
            Event::Notified(worker) => drop(self.alive.entry(*worker).and_modify(|life| life.ready = true)),
            Event::Suspended(worker, _) => drop(self.alive.entry(*worker).and_modify(|life| life.halted = true)),
            Event::Continued(worker) => drop(self.alive.entry(*worker).and_modify(|life| life.halted = false)),
            Event::Ordered(Order::HoldRecycling(held)) => {
                (self.held, self.progress) = (*held, self.now);
                // One that is being ended already is given up.
                let lives = |worker: &Worker| self.alive.get(worker).is_some_and(|life| !life.told_to_end);
                self.replacement = self.replacement.filter(|it| !*held || lives(it));
            }
            Event::Ordered(Order::Stop(_)) => self.stopped = Some(self.now),
            Event::Ended(worker, _) => {
                self.alive.remove(worker);
                self.progress = self.now;
                ended = Some(*worker);
            }
            _ => {}
        }
        let failed = ended.filter(|worker| self.replacement == Some(*worker));
        if failed.is_some() {
            self.replacement = None;
        }
        let died = ended.filter(|worker| self.present.get(&worker.slot) == Some(worker));
        let event = match (self.bug, event) {
            (Some(Bug::RecyclesDuringReload), Event::Ordered(Order::HoldRecycling(_))) => return Ok(()),
            (Some(Bug::RecyclesTheSuspended), Event::Suspended(..)) => return Ok(()),
            (Some(Bug::StartsAfterAStop), Event::Ordered(Order::Stop(_))) => return Ok(()),
            (Some(Bug::ForgetsAFailure), Event::Ended(worker, _)) if failed == Some(worker) => return Ok(()),
            (_, event) => event,
        };
        let actions = self.state.on(self.base + self.now, event);
        if let Some(worker) = died {
            self.present.remove(&worker.slot);
            if let Some(stands_in) = self.replacement.take_if(|it| it.slot == worker.slot && self.stopped.is_none()) {
                let is_gone = self.retired.contains(&worker.slot);
                self.present.extend((!is_gone).then_some((worker.slot, stands_in)));
            }
        }
        for action in actions {
            self.perform(action, died, failed)?;
        }
        Ok(())
    }

    fn perform(&mut self, action: Action, died: Option<Worker>, failed: Option<Worker>) -> Checked {
        match action {
            Action::Spawn(worker) => self.spawn(worker),
            Action::Signal(worker, signal) => self.signal(worker, signal),
            Action::Measure(workers) => {
                hold(self.measuring.is_none(), 13, || "it measures twice at a time".to_owned())?;
                let after = self.choices.millis(&[5, 50, 2_000]);
                self.measuring = Some((self.now, workers.clone()));
                if !self.choices.one_in(30) {
                    self.plan(after, Happening::Measured(workers));
                }
                Ok(())
            }
            Action::EndMeasurement if self.bug == Some(Bug::WaitsForAMeasurementForEver) => Ok(()),
            Action::EndMeasurement => {
                let workers = self.measuring.as_ref().map(|(_, workers)| workers.clone()).unwrap_or_default();
                self.plan(Time::from_millis(20), Happening::Measured(workers));
                Ok(())
            }
            Action::Report(Report::Recycled { .. }) if self.bug == Some(Bug::ForgetsToReport) => Ok(()),
            Action::Report(Report::Recycled { slot, .. }) => self.recycled(slot),
            Action::Note(panzer::monitor::decide::Note::NotRecycled(worker, ..))
                if self.bug == Some(Bug::ReportsAFailureAsDeath) =>
            {
                let report = Report::Died { slot: worker.slot, cause: Cause::Exited(1) };
                self.perform(Action::Report(report), died, failed)
            }
            Action::Report(Report::Died { slot, .. }) => {
                let is_so = died.is_some_and(|worker| worker.slot == slot);
                hold(is_so, 0, || format!("the death of slot {slot} is told, and {failed:?} failed"))
            }
            Action::Report(Report::Retired { slot, .. }) => {
                self.retired.insert(slot);
                // It is not needed any more.
                self.replacement = self.replacement.filter(|it| it.slot != slot);
                Ok(())
            }
            Action::Exit => {
                self.exited = true;
                let over = self.alive.is_empty() && self.stopped.is_some();
                hold(over, 6, || "it exits before all have ended".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn is_due(&self, worker: Worker) -> bool {
        let life = &self.alive[&worker];
        let age = self.now - life.begun;
        let by_age = self.limits.max_lifetime.is_some_and(|limit| age >= limit / 100 * 80);
        let by_memory = self.limits.max_memory.is_some_and(|limit| life.memory > limit);
        let by_requests = self.limits.max_requests.is_some_and(|limit| life.requests >= limit / 100 * 80);
        by_age || (age >= self.least && (by_memory || by_requests))
    }

    fn spawn(&mut self, worker: Worker) -> Checked {
        hold(self.stopped.is_none(), 6, || format!("{worker:?} is spawned after a stop"))?;
        self.progress = self.now;
        let others = self.alive.keys().filter(|other| other.slot == worker.slot).count();
        let for_memory = |old: &Worker| self.limits.max_memory.is_some_and(|limit| self.alive[old].memory > limit);
        let most = if self.present.get(&worker.slot).filter(|old| self.alive.contains_key(old)).is_some_and(for_memory)
        {
            4
        } else {
            1
        };
        hold(others <= most, 4, || format!("{worker:?} starts beside {others} in its slot"))?;
        match self.present.get(&worker.slot).filter(|present| self.alive.contains_key(present)).copied() {
            Some(old) => {
                let life = &self.alive[&old];
                hold(self.replacement.is_none(), 2, || format!("{worker:?} beside {:?}", self.replacement))?;
                hold(!self.held, 1, || format!("{worker:?} replaces another during a reload"))?;
                let serves = life.ready && !life.told_to_end && !life.halted;
                hold(serves, 4, || format!("{worker:?} replaces {old:?}, which does not serve: {life:?}"))?;
                hold(self.is_due(old), 5, || format!("{old:?} is replaced, and not due: {life:?}"))?;
                self.replacement = Some(worker);
            }
            None => {
                self.retired.remove(&worker.slot);
                self.present.insert(worker.slot, worker);
            }
        }
        let rate = self.choices.among(&[5, 10, 50]);
        self.alive.insert(worker, Life { begun: self.now, measured: self.now, rate, ..Life::default() });
        self.plan(Time::ZERO, Happening::To(Event::Executed(worker)));
        let ready = self.choices.millis(&[0, 300, 2_000]);
        let serves = match self.choices.below(8) {
            0 => {
                self.plan(ready, Happening::Ends(worker, Cause::Exited(1)));
                return Ok(());
            }
            // It is never ready.
            1 => return Ok(()),
            2 => {
                let at = ready + self.choices.millis(&[5_000, 18_000, 20_100]);
                self.plan(at, Happening::Ends(worker, Cause::Killed(11, false)));
                true
            }
            3 => {
                let at = ready + self.choices.millis(&[100, 5_000, 15_000]);
                self.plan(at, Happening::To(Event::Suspended(worker, Signal::SIGSTOP)));
                self.plan(at + Time::from_secs(30), Happening::To(Event::Continued(worker)));
                true
            }
            _ => true,
        };
        let is_early = self.bug == Some(Bug::ReplacesBeforeReady) && self.replacement == Some(worker);
        if is_early {
            self.plan(Time::ZERO, Happening::To(Event::Notified(worker)));
        }
        let planted_failure = self.bug == Some(Bug::StartsTwoAtOnce) && self.replacement == Some(worker);
        if planted_failure {
            // The state believes that it has ended.
            let _ = self.state.on(self.base + self.now, Event::Ended(worker, Cause::Exited(1)));
        }
        if serves && !is_early {
            self.plan(ready, Happening::To(Event::Notified(worker)));
        }
        if self.limits.max_requests.is_some() {
            self.plan(ready + Time::from_secs(1), Happening::Serves(worker));
        }
        Ok(())
    }

    /// The replacement takes the place of the worker that others saw.
    fn recycled(&mut self, slot: u32) -> Checked {
        let new = self.replacement.take_if(|it| it.slot == slot);
        let Some(new) = new else { return hold(false, 0, || format!("slot {slot} is recycled, by nobody")) };
        let is_ready = self.alive.get(&new).is_some_and(|life| life.ready && !life.halted);
        let is_ready = is_ready && self.bug != Some(Bug::ReplacesBeforeReady);
        hold(is_ready, 1, || format!("{new:?} takes a place, and is not ready"))?;
        self.present.insert(slot, new);
        self.progress = self.now;
        Ok(())
    }

    fn signal(&mut self, worker: Worker, signal: Signal) -> Checked {
        let Some(life) = self.alive.get(&worker).cloned() else {
            return hold(false, 3, || format!("{signal} for {worker:?}, which has ended"));
        };
        let late = !life.ready && self.now >= life.begun + self.ready_timeout;
        let is_present = self.present.get(&worker.slot) == Some(&worker) && !self.retired.contains(&worker.slot);
        let is_needed = is_present || (self.replacement == Some(worker) && !self.held);
        let may = self.stopped.is_some() || late || life.told_to_end || !is_needed;
        hold(may, 1, || format!("{worker:?} is stopped, and needed"))?;
        if self.replacement == Some(worker) && self.held {
            self.replacement = None;
        }
        let kills = signal == Signal::SIGKILL;
        if kills || !self.choices.one_in(4) {
            let after = if kills { Time::from_millis(5) } else { self.choices.millis(&[5, 800, 2_500]) };
            self.plan(after, Happening::Ends(worker, Cause::Exited(0)));
        }
        self.alive.entry(worker).and_modify(|life| life.told_to_end = true);
        Ok(())
    }

    fn check_times(&mut self) -> Checked {
        if self.stopped.is_some() {
            return Ok(());
        }
        let (now, calm) = (self.now, !self.held && self.replacement.is_none());
        for worker in self.present.values().copied().collect::<Vec<_>>() {
            let Some(life) = self.alive.get(&worker) else { continue };
            let serves = life.ready && !life.halted && !life.told_to_end && !self.retired.contains(&worker.slot);
            let certain = self.limits.max_lifetime.is_some_and(|limit| now >= life.begun + limit)
                || (now >= life.begun + self.least
                    && (self.limits.max_memory.is_some_and(|limit| life.memory > limit)
                        || self.limits.max_requests.is_some_and(|limit| life.requests >= limit)));
            let unmeasured = now.saturating_sub(life.measured.max(self.progress)) > MOST_UNMEASURED;
            let neglected = calm && serves && self.limits.max_memory.is_some() && unmeasured;
            hold(!neglected, 13, || format!("{worker:?} is not measured: {life:?}"))?;
            let due = certain && serves && calm;
            let since = self.alive[&worker].due.filter(|_| due).unwrap_or(now);
            self.alive.entry(worker).and_modify(|life| life.due = due.then_some(since));
            let waits = now.saturating_sub(since.max(self.progress));
            hold(!due || waits <= MOST_WAIT + SLACK, 13, || format!("{worker:?} is due, and not replaced"))?;
        }
        Ok(())
    }
}

fn play(seed: u64, bug: Option<Bug>) -> Result<(), Violation> {
    World::new(Choices::from_seed(seed), bug).live()
}

#[test]
fn whoever_reaches_a_limit_is_replaced_and_never_before_the_other_is_ready() {
    for seed in 0..HISTORIES {
        if let Err(violation) = play(seed, None) {
            panic!("history {seed}: {violation}");
        }
    }
}

#[test]
fn every_planted_bug_of_recycling_is_found() {
    for bug in BUGS {
        let found = (0..HISTORIES).find_map(|seed| play(seed, Some(bug)).err());
        println!("{bug:?}: {}", found.unwrap_or_else(|| panic!("{bug:?} is not found")).what);
    }
}
