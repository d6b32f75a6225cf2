//! The invariants of one monitor: follows its events and actions with a book of its own, and compares.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use nix::sys::signal::Signal;
use panzer::config::Tuning;
use panzer::control::monitor::messages::{Order, Report, Urgency, Which};
use panzer::monitor::decide::{Action, Event, Note, Settings, Worker};
use panzer::worker::cause::Cause;

use crate::check::{Checked, PaceWatch, SLACK, StopTimes, hold};
use crate::check_bypass::Bypass;
use crate::check_probes::Probes;
use crate::check_readiness::Readiness;
use crate::check_starts::{LooksWatch, StartsWatch};
use crate::kernel::Time;

/// Processes that are started in one turn of a monitor's loop, as the state has it.
const MAX_STARTS_A_TURN: u32 = 8;

/// The longest that an exec may hang, as the state has it.
const EXEC_TIMEOUT: Time = Time::from_secs(10);

/// What is left behind may end by itself within this time, and is given up so long after its KILL.
const FAREWELL_TIMEOUT: Time = Time::from_millis(500);
const KILL_TIMEOUT: Time = Time::from_secs(4);

#[derive(Debug, Default)]
struct Slot {
    /// No worker is wanted in it.
    idle: bool,
    /// One is wanted in it anew, and is no respawn.
    anew: bool,
    /// Its worker is stopped because none was wanted.
    retiring: bool,
    life: u32,
    alive: bool,
    readiness: Readiness,
    bypass: Bypass,
    begun: Time,
    stop: StopTimes,
    signalled: bool,
    /// It asked for more time to stop, and its end has no time of its own any more.
    extended: bool,
    killed: bool,
    ended: Time,
    /// Since when it is to be filled, where that is no respawn.
    due: Time,
    /// Its worker ended for good, with this code where it was under this monitor, and that is told.
    finished: bool,
    code: Option<u8>,
    finish_told: bool,
    pace: PaceWatch,
    /// That it was stopped by a signal is told.
    halt_told: bool,
}

pub(crate) struct MonitorCheck {
    /// What main wanted, whatever the state was given.
    wanted: Settings,
    slots: Vec<Slot>,
    groups: BTreeMap<Worker, StopTimes>,
    left_since: BTreeMap<Worker, Time>,
    probes: Probes,
    stop: StopTimes,
    /// It was told to end in its own time.
    patient: bool,
    /// Its workers are stopped as what a reload ends.
    retiring: bool,
    on_trial: bool,
    committed: Time,
    respawns: VecDeque<Time>,
    starts: StartsWatch,
    executed_told: bool,
    bypass_told: bool,
    looks: LooksWatch,
    started_in_turn: u32,
    gave_up: bool,
    closed: bool,
    exited: bool,
    /// The slot whose worker ended because none was wanted, which is still to be told.
    gone: Option<u32>,
}

impl MonitorCheck {
    pub(crate) fn new(wanted: Settings) -> MonitorCheck {
        let mut starts = StartsWatch::default();
        starts.goes_by(wanted.tuning.start_delay);
        MonitorCheck {
            slots: (0..wanted.workers).map(|_| Slot::default()).collect(),
            groups: BTreeMap::new(),
            left_since: BTreeMap::new(),
            probes: Probes::default(),
            stop: StopTimes::default(),
            patient: false,
            retiring: false,
            on_trial: wanted.trial,
            committed: Time::ZERO,
            respawns: VecDeque::new(),
            starts,
            executed_told: false,
            bypass_told: false,
            looks: LooksWatch::default(),
            started_in_turn: 0,
            gave_up: false,
            closed: false,
            exited: false,
            gone: None,
            wanted,
        }
    }

    /// What it is to go by, if nothing else is checked.
    pub(crate) fn goes_by(&mut self, tuning: &Tuning) {
        self.wanted.tuning.clone_from(tuning);
    }

    /// What it is to go by now.
    pub(crate) fn wanted(&self) -> &Tuning {
        &self.wanted.tuning
    }

    /// The last life of a slot.
    pub(crate) fn life(&self, slot: u32) -> u32 {
        self.slots.get(slot as usize).map_or(0, |slot| slot.life)
    }

    pub(crate) fn is_halted(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|slot| slot.alive && slot.readiness.halted)
    }

    pub(crate) fn is_alive(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|slot| slot.alive)
    }

    /// Whether no worker is wanted there.
    pub(crate) fn is_idle_slot(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_none_or(|slot| slot.idle)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_ending()
    }

    fn is_ending(&self) -> bool {
        self.patient || self.stop.has_begun()
    }

    pub(crate) fn has_group(&self, worker: Worker) -> bool {
        self.groups.contains_key(&worker)
    }

    pub(crate) fn has_probe(&self, worker: Worker) -> bool {
        self.probes.has(worker)
    }

    /// `punctual` where the process was never stopped: then nothing is late.
    pub(crate) fn observe(&mut self, now: Time, event: &Event, actions: &[Action], punctual: bool) -> Checked {
        let ended = self.take_in(now, event);
        for action in actions {
            self.check_action(now, event, action, ended)?;
        }
        if let Event::Suspended(worker, _) = event
            && let Some(slot) = self.alive(*worker)
            && !std::mem::replace(&mut slot.halt_told, true)
        {
            let tells = |action: &Action| matches!(action, Action::Note(Note::Suspended(of, _)) if of == worker);
            hold(actions.iter().any(tells), 0, || format!("that {worker:?} is stopped is not told"))?;
        }
        if let (Some(worker), false) = (ended, self.is_ending()) {
            let finished = self.slots[worker.slot as usize].finished && !self.on_trial;
            let told = actions.iter().any(|action| match action {
                Action::Report(Report::Died { slot, .. }) => *slot == worker.slot && !finished,
                Action::Report(Report::EndedForGood { slot, .. }) => *slot == worker.slot && finished,
                _ => false,
            });
            hold(told, 0, || format!("the death of {worker:?} is not reported"))?;
        }
        let turn = self.starts.turn(self.slots.len());
        for index in 0..self.slots.len() {
            self.check_slot(now, index, turn, punctual)?;
        }
        self.probes.check(now, punctual, |worker| self.is_awaited(worker, true))?;
        self.check_whole(now, punctual)
    }

    /// One more process is started before everything else has its turn.
    fn count_start(&mut self) -> Checked {
        self.started_in_turn += 1;
        hold(self.started_in_turn <= MAX_STARTS_A_TURN, 13, || "too many are started in one turn".to_owned())
    }

    /// Returns the worker that ended, if it was alive.
    fn take_in(&mut self, now: Time, event: &Event) -> Option<Worker> {
        let on_trial = self.on_trial;
        if matches!(event, Event::Start | Event::Wake) {
            self.started_in_turn = 0;
        }
        match event {
            Event::Executed(worker) => {
                if let Some((slot, wanted)) = self.alive_of(*worker) {
                    slot.bypass.executed(now, slot.readiness.ready_time(wanted), wanted);
                }
                self.shows(now, *worker, |slot, wanted| slot.executed(now, wanted));
            }
            Event::Notified(worker) => self.shows(now, *worker, |slot, wanted| slot.notified(now, wanted)),
            Event::Extends(worker, by) => {
                let quick = self.stop.quick.is_some();
                if let Some(slot) = self.alive(*worker) {
                    slot.extended |= slot.signalled && !quick;
                    if !slot.signalled {
                        slot.readiness.extends(now, *by);
                    }
                }
            }
            Event::Listens(worker) => self.shows(now, *worker, |slot, wanted| slot.listens(now, on_trial, wanted)),
            Event::Seen(worker, sight) => self.shows(now, *worker, |slot, wanted| slot.seen(now, *sight, wanted)),
            Event::Examined(worker, shown) => {
                if let Some((slot, _)) = self.alive_of(*worker) {
                    slot.bypass.examined(now, shown.as_ref());
                }
            }
            Event::Probed(worker, succeeded) => {
                let ended = self.probes.over(*worker);
                self.shows(now, *worker, |slot, wanted| slot.probed(now, *succeeded, ended, wanted));
            }
            Event::Suspended(worker, _) => self.shows(now, *worker, |slot, _| slot.halted = true),
            Event::Continued(worker) => self.shows(now, *worker, |slot, wanted| slot.continued(now, wanted)),
            Event::Ended(worker, cause) => return self.ended(now, *worker, cause),
            Event::LeftBehind(worker) => {
                // During a stop it has as long as the stop still takes.
                let mut times = self.stop;
                if !times.has_begun() {
                    // What a reload or a scale ends has a schedule of its own.
                    let retiring = |slot: &Slot| slot.retiring && slot.life == worker.life;
                    let retires = self.patient || self.slots.get(worker.slot as usize).is_some_and(retiring);
                    let tuning = &self.wanted.tuning;
                    times.begin(false, now, if retires { tuning.retirement() } else { &tuning.stop });
                }
                if let Entry::Vacant(group) = self.groups.entry(*worker) {
                    group.insert(times);
                    self.left_since.insert(*worker, now);
                }
            }
            Event::GroupGone(worker) => {
                self.groups.remove(worker);
            }
            Event::Ordered(Order::Commit) => {
                if std::mem::replace(&mut self.on_trial, false) {
                    let wanted = &self.wanted;
                    self.slots.iter_mut().for_each(|slot| slot.readiness.committed(now, wanted));
                }
                self.committed = now;
            }
            Event::Ordered(Order::Tune(tuning)) => {
                self.wanted.tuning.clone_from(tuning);
                self.starts.goes_by(tuning.start_delay);
            }
            Event::Ordered(Order::Stop(urgency)) => self.stopped(now, *urgency),
            Event::MainGone => self.stopped(now, Urgency::Graceful),
            Event::Ordered(Order::Scale { workers, .. }) => self.scaled(now, *workers),
            Event::Ordered(_) => {}
            Event::MoldReady(_)
            | Event::Willing(..)
            | Event::Unwilling(..)
            | Event::MoldFailed(_)
            | Event::MoldBroke(_)
            | Event::MoldClosed => {}
            Event::Born(_) | Event::Unborn(..) => {}
            Event::Start => {
                for (slot, index) in self.slots.iter_mut().zip(0..) {
                    (slot.due, slot.finished) = (now, self.wanted.ended.contains(&index));
                }
            }
            Event::Looked(took) => self.looks.over(now, *took),
            // tests/sim/watchdog.rs has them.
            Event::Lives(_) | Event::Stops(_) | Event::IsBroken(_) | Event::WatchedEvery(..) => {}
            // tests/sim/recycling.rs has them.
            Event::Served(..) | Event::Measured(..) => {}
            Event::Wake => {}
        }
        None
    }

    fn ended(&mut self, now: Time, worker: Worker, cause: &Cause) -> Option<Worker> {
        let (pace, on_trial, stopping) = (self.wanted.tuning.pace, self.on_trial, self.is_ending());
        let is_probed = self.wanted.probe;
        let code = match cause {
            Cause::Exited(code) if self.wanted.tuning.final_exits.contains(*code) => u8::try_from(*code).ok(),
            _ => None,
        };
        let slot = self.alive(worker)?;
        slot.alive = false;
        if std::mem::take(&mut slot.retiring) {
            (slot.anew, slot.due) = (!slot.idle, now);
            slot.pace.excuse();
            self.gone = Some(worker.slot);
            return None;
        }
        // Whoever was told to end is not asked why.
        slot.code = code.filter(|_| !slot.signalled && !stopping);
        slot.finished = slot.code.is_some();
        slot.ended = now;
        let ready = slot.readiness.had_become_ready(now, is_probed);
        slot.pace.ended(now, ready, pace);
        if on_trial {
            slot.pace.excuse();
        }
        Some(worker)
    }

    /// More slots are wanted at once; of fewer it is told which.
    fn scaled(&mut self, now: Time, workers: u32) {
        if self.is_ending() || self.gave_up {
            return;
        }
        self.wanted.workers = workers;
        while self.slots_wanted() < workers {
            let free = self.slots.iter().position(|slot| slot.idle).unwrap_or(self.slots.len());
            if free == self.slots.len() {
                self.slots.push(Slot::default());
            }
            let slot = &mut self.slots[free];
            slot.idle = false;
            (slot.anew, slot.due) = (!slot.alive, now);
        }
    }

    fn slots_wanted(&self) -> u32 {
        self.slots.iter().filter(|slot| !slot.idle).count() as u32
    }

    fn check_retired(&mut self, now: Time, event: &Event, index: u32, empty: bool) -> Checked {
        let Event::Ordered(Order::Scale { which, .. }) = event else {
            return hold(false, 0, || format!("slot {index} is retired for no order"));
        };
        let wanted = || self.slots.iter().enumerate().filter(|(_, slot)| !slot.idle);
        let begun = |(_, slot): (usize, &Slot)| slot.alive.then_some(slot.begun);
        let right = match which {
            Which::Oldest => wanted().map(begun).min() == wanted().find(|(at, _)| *at == index as usize).map(begun),
            Which::First => wanted().next().is_some_and(|(at, _)| at == index as usize),
            Which::Last => wanted().next_back().is_some_and(|(at, _)| at == index as usize),
        };
        hold(right, 4, || format!("slot {index} is retired, and another one should be"))?;
        let slot = &mut self.slots[index as usize];
        hold(empty == (!slot.alive || slot.retiring), 0, || {
            format!("slot {index} is said to have a worker: {}", !empty)
        })?;
        (slot.idle, slot.anew, slot.finished) = (true, false, false);
        if slot.alive {
            slot.retiring = true;
            // Where it is being stopped already, and that would take longer, it ends by what is configured by now.
            slot.stop.begin(false, now, self.wanted.tuning.retirement());
        }
        Ok(())
    }

    fn stopped(&mut self, now: Time, urgency: Urgency) {
        if urgency == Urgency::Patient {
            self.patient |= !self.is_ending();
            return;
        }
        let retiring = urgency == Urgency::Retiring;
        if self.stop.has_begun() && (retiring || (urgency == Urgency::Graceful && !self.retiring)) {
            return;
        }
        self.retiring = retiring;
        let quick = urgency == Urgency::Quick;
        let schedule = if retiring { self.wanted.tuning.retirement() } else { &self.wanted.tuning.stop };
        self.stop.begin(quick, now, schedule);
        let slots = self.slots.iter_mut().map(|slot| &mut slot.stop);
        for times in slots.chain(self.groups.values_mut()) {
            times.begin(quick, now, schedule);
        }
    }

    fn alive(&mut self, worker: Worker) -> Option<&mut Slot> {
        self.slots.get_mut(worker.slot as usize).filter(|slot| slot.alive && slot.life == worker.life)
    }

    fn alive_of(&mut self, worker: Worker) -> Option<(&mut Slot, &Settings)> {
        let slot = self.slots.get_mut(worker.slot as usize).filter(|slot| slot.alive && slot.life == worker.life);
        slot.map(|slot| (slot, &self.wanted))
    }

    fn shows(&mut self, now: Time, worker: Worker, show: impl FnOnce(&mut Readiness, &Settings)) {
        if let Some((slot, wanted)) = self.alive_of(worker) {
            show(&mut slot.readiness, wanted);
            if slot.readiness.ready {
                slot.bypass.ready(now, slot.readiness.seen || slot.readiness.hidden, wanted);
            }
        }
    }

    /// Whether the answer of a look, or of a probe, is waited for.
    fn is_awaited(&self, worker: Worker, probe: bool) -> bool {
        self.slots.get(worker.slot as usize).is_some_and(|slot| {
            let starts = slot.alive && slot.life == worker.life && !slot.signalled;
            let Slot { readiness, .. } = slot;
            starts && if probe { readiness.is_probed(&self.wanted) } else { readiness.is_looked_at(&self.wanted) }
        })
    }

    fn check_look(&mut self, now: Time, worker: Worker, probes: bool) -> Checked {
        hold(self.is_awaited(worker, probes), 13, || format!("{worker:?} is looked at, and it need not be"))?;
        if probes {
            return self.probes.begun(now, worker);
        }
        self.slots[worker.slot as usize].readiness.looked_at(now);
        Ok(())
    }

    fn check_examination(&mut self, now: Time, worker: Worker) -> Checked {
        let meant = !self.bypass_told && self.alive(worker).is_some_and(|slot| !slot.signalled);
        hold(meant, 13, || format!("{worker:?} is examined, and it need not be"))?;
        self.slots[worker.slot as usize].bypass.looked_at(now)
    }

    fn check_action(&mut self, now: Time, event: &Event, action: &Action, ended: Option<Worker>) -> Checked {
        match action {
            Action::Spawn(worker) => {
                self.count_start()?;
                self.check_spawn(now, event, *worker)
            }
            Action::Signal(worker, signal) => self.check_signal(now, *worker, *signal),
            Action::SignalGroup(worker, signal) => self.check_group_signal(now, *worker, *signal),
            Action::GiveUp(worker) => self.check_given_up(now, *worker),
            Action::CloseListeners => {
                let first = !std::mem::replace(&mut self.closed, true);
                hold(first && self.is_ending(), 9, || "the listeners are closed twice, or for no stop".to_owned())
            }
            Action::Report(Report::Retired { slot, empty }) => self.check_retired(now, event, *slot, *empty),
            Action::Report(report) => self.check_report(now, report, ended),
            Action::Note(Note::Respawning(worker, _, delay)) => {
                let pace = self.wanted.tuning.pace;
                self.slots[worker.slot as usize].pace.told(*delay, pace)
            }
            Action::Note(Note::NotReady(worker, time, next)) => {
                let (so, wanted) = (!self.on_trial, &self.wanted);
                let so = so && self.slots[worker.slot as usize].readiness.timed_out(now, (*time, *next), wanted);
                hold(so, 7, || format!("{worker:?} is said to be late, or its slot to have another time: {action:?}"))
            }
            Action::Note(_) => Ok(()),
            Action::Fork(..)
            | Action::Adopt(_)
            | Action::Dismiss
            | Action::WantAsMold(_)
            | Action::Decline(_)
            | Action::Promote(..) => Ok(()),
            Action::Measure(_) | Action::EndMeasurement => hold(false, 13, || "nobody asked for that".to_owned()),
            Action::Look(worker) => self.looks.begun(now).and_then(|()| self.check_look(now, *worker, false)),
            Action::Examine(worker) => self.looks.begun(now).and_then(|()| self.check_examination(now, *worker)),
            Action::Probe(worker) => {
                self.count_start()?;
                self.check_look(now, *worker, true)
            }
            Action::EndProbe(worker) => {
                let awaited = self.is_awaited(*worker, true);
                self.probes.told_to_end(now, *worker, awaited)
            }
            Action::Exit => {
                let first = !std::mem::replace(&mut self.exited, true);
                hold(first && self.is_over(), 6, || "a monitor exits before its end, or twice".to_owned())
            }
        }
    }

    fn check_spawn(&mut self, now: Time, event: &Event, worker: Worker) -> Checked {
        let on_trial = self.on_trial;
        hold(!self.is_ending(), 6, || format!("{worker:?} is spawned after a stop"))?;
        hold(!self.gave_up, 5, || format!("{worker:?} is spawned after giving up"))?;
        let anew = self.slots.get(worker.slot as usize).is_some_and(|slot| slot.anew);
        if worker.life > 1 && !anew {
            self.count_respawn(now)?;
        }
        self.starts.made(now, self.wanted.tuning.start_delay)?;
        let at_once = !self.starts.may_wait();
        let slot = &mut self.slots[worker.slot as usize];
        hold(!slot.finished, 5, || format!("{worker:?} is spawned where one has ended for good"))?;
        hold(!slot.idle, 4, || format!("{worker:?} is spawned, and not wanted"))?;
        hold(!slot.alive, 4, || format!("{worker:?} is spawned into a slot that is filled"))?;
        hold(worker.life == slot.life + 1, 4, || format!("{worker:?} comes after life {}", slot.life))?;
        let first = worker.life == 1 && !anew;
        let at_start = *event == Event::Start;
        let in_time = match at_once {
            true => first == at_start || (first && *event == Event::Wake),
            false => first || !at_start,
        };
        hold(in_time, 5, || format!("{worker:?} is spawned at {event:?}"))?;
        hold(first || anew || !on_trial, 7, || format!("{worker:?} is a respawn on trial"))?;
        let mut pace = if anew { PaceWatch::default() } else { std::mem::take(&mut slot.pace) };
        pace.started(now)?;
        let readiness = slot.readiness.next();
        *slot = Slot { life: worker.life, alive: true, readiness, begun: now, pace, ..Slot::default() };
        Ok(())
    }

    fn count_respawn(&mut self, now: Time) -> Checked {
        let Some(limit) = self.wanted.tuning.respawn_limit else { return Ok(()) };
        self.respawns.retain(|then| now - *then <= limit.window);
        self.respawns.push_back(now);
        hold(self.respawns.len() <= limit.count as usize, 5, || "more respawns than the limit allows".to_owned())
    }

    fn check_signal(&mut self, now: Time, worker: Worker, signal: Signal) -> Checked {
        let overdue = self.ready_due(worker).is_some_and(|due| due <= now);
        let (schedule, patient) = (self.wanted.tuning.stop.clone(), self.patient);
        let ends_patience = self.wanted.tuning.retirement().first_signal() == Signal::SIGKILL;
        let Some(slot) = self.alive(worker) else {
            return hold(false, 3, || format!("{signal} for {worker:?}, which is not alive"));
        };
        // What has begun ends as it was to, also where a shorter schedule was configured meanwhile.
        if overdue && !slot.stop.has_begun() {
            slot.stop.begin(false, now, &schedule);
        }
        let hangs = slot.readiness.executed.is_none() && now >= slot.begun + EXEC_TIMEOUT;
        hold(!slot.killed, 3, || format!("{signal} for {worker:?} after KILL"))?;
        hold(hangs || patient || slot.stop.has_begun(), 1, || {
            format!("{signal} for {worker:?}, which nobody stopped")
        })?;
        (slot.signalled, slot.readiness.ended) = (true, true);
        if signal == Signal::SIGKILL {
            slot.killed = true;
            let due = slot.extended || slot.stop.kill_due().is_some_and(|due| due <= now);
            hold(due || hangs || (patient && ends_patience), 6, || format!("KILL for {worker:?} before it is due"))?;
        }
        Ok(())
    }

    /// When a worker that is not ready is to be stopped for it.
    fn ready_due(&self, worker: Worker) -> Option<Time> {
        let slot = &self.slots[worker.slot as usize];
        let waits = !self.on_trial && slot.alive && slot.life == worker.life;
        slot.readiness.due().filter(|_| waits)
    }

    fn check_group_signal(&mut self, now: Time, worker: Worker, signal: Signal) -> Checked {
        let Some(times) = self.groups.get(&worker) else {
            return hold(false, 3, || format!("{signal} for the group of {worker:?}, which is gone"));
        };
        let due = times.kill_due().is_some_and(|due| due <= now);
        hold(due || signal != Signal::SIGKILL, 6, || format!("KILL for the group of {worker:?} before it is due"))
    }

    /// What has not ended for long after its KILL.
    fn check_given_up(&mut self, now: Time, worker: Worker) -> Checked {
        let left = self.groups.remove(&worker);
        let stopping = self.is_ending();
        let stop = left.or_else(|| {
            let slot = self.alive(worker).filter(|_| stopping)?;
            slot.alive = false;
            Some(slot.stop)
        });
        let due = stop.and_then(StopTimes::kill_due).is_some_and(|due| due + KILL_TIMEOUT <= now);
        hold(due, 6, || format!("{worker:?} is given up before it is due"))
    }

    fn check_report(&mut self, now: Time, report: &Report, ended: Option<Worker>) -> Checked {
        match report {
            Report::Ready { slot, notified, seen } => {
                let slot = &mut self.slots[*slot as usize];
                let shown = &mut slot.readiness;
                shown.ready_told = true;
                shown.notified_told |= *notified;
                let so = slot.alive && shown.ready && (shown.notified || !notified) && (shown.seen || !seen);
                hold(so, 0, || format!("{report:?} is not true"))
            }
            Report::Suspended { slot, suspended } => {
                let slot = &self.slots[*slot as usize];
                let so = self.on_trial && slot.alive && slot.readiness.halted == *suspended;
                hold(so, 0, || format!("{report:?} is not true"))
            }
            Report::Extends { slot, .. } => {
                let slot = &self.slots[*slot as usize];
                hold(slot.alive, 0, || format!("{report:?} is of nobody"))
            }
            Report::Listens { slot, .. } => self.slots[*slot as usize].readiness.listens_is_told(),
            Report::Unseeable { slot, .. } => self.slots[*slot as usize].readiness.hidden_is_told(),
            Report::Bypasses { slot, .. } => {
                let first = !std::mem::replace(&mut self.bypass_told, true);
                let slot = &self.slots[*slot as usize];
                let so = slot.alive && !slot.signalled && slot.bypass.is_convicted();
                hold(first && so, 0, || format!("{report:?} is told twice, or is not so"))
            }
            Report::Died { slot, cause } => {
                hold(ended.is_some_and(|worker| worker.slot == *slot), 0, || format!("{report:?} is not true"))?;
                let overdue =
                    !matches!(cause, Cause::NotReady(_) | Cause::NotSeen(..)) || self.slots[*slot as usize].signalled;
                hold(overdue, 0, || format!("{report:?}, though nobody ended it"))
            }
            Report::EndedForGood { slot, code } => {
                let (on_trial, slot) = (self.on_trial, &mut self.slots[*slot as usize]);
                let first = !std::mem::replace(&mut slot.finish_told, true);
                let so = slot.finished && slot.code == Some(*code) && !on_trial;
                hold(first && so, 0, || format!("{report:?} is told twice, or is not true"))
            }
            Report::GaveUp => {
                let first = !std::mem::replace(&mut self.gave_up, true);
                let limit = self.wanted.tuning.respawn_limit;
                let within = |then: &&Time| limit.is_some_and(|limit| now - **then <= limit.window);
                let recent = self.respawns.iter().filter(within).count();
                let reached = limit.is_some_and(|limit| recent >= limit.count as usize);
                hold(first && reached, 5, || "gives up twice, or before the limit".to_owned())
            }
            Report::Executed => {
                let first = !std::mem::replace(&mut self.executed_told, true);
                let shown = self.slots.iter().any(|slot| slot.readiness.executed.is_some());
                hold(first && shown, 0, || "tells of an exec twice, or of none".to_owned())
            }
            Report::Gone { slot } => {
                let so = self.gone.take() == Some(*slot);
                hold(so, 0, || format!("{report:?} is not true"))
            }
            other => hold(false, 0, || format!("{other:?} is nothing that the state tells")),
        }
    }

    /// What must have been done about a slot by now.
    fn check_slot(&self, now: Time, index: usize, turn: Time, punctual: bool) -> Checked {
        let slot = &self.slots[index];
        let worker = Worker { slot: index as u32, life: slot.life };
        let stopping = self.is_ending();
        hold(!slot.retiring || slot.signalled || !slot.alive, 6, || format!("{worker:?} is not retired"))?;
        let goes_on = !stopping && !self.gave_up;
        let waits_long = punctual && now >= slot.due + turn && self.started_in_turn < MAX_STARTS_A_TURN;
        hold(!slot.anew || !goes_on || !waits_long, 5, || format!("the slot of {worker:?} is not filled"))?;
        let untold = slot.code.is_some() && !slot.finish_told && slot.finished && !self.on_trial;
        hold(!untold || stopping, 0, || format!("that {worker:?} has ended for good is not told"))?;
        if !slot.alive && (slot.idle || slot.finished || slot.anew) {
            return Ok(());
        }
        if slot.life == 0 {
            let waits = !turn.is_zero() && (!goes_on || !waits_long);
            let next_turn = self.started_in_turn >= MAX_STARTS_A_TURN;
            return hold(waits || next_turn, 5, || format!("slot {index} is not filled"));
        }
        if !slot.alive {
            let wanted = !stopping && !self.on_trial && !self.gave_up && punctual;
            let now = now.saturating_sub(turn);
            let late = wanted && now > self.committed + SLACK && slot.pace.is_late(now);
            return hold(slot.life > 0 && !late, 5, || format!("the slot of {worker:?} is not filled again"));
        }
        hold(!stopping || slot.signalled, 6, || format!("{worker:?} is not stopped"))?;
        let hangs = slot.readiness.executed.is_none() && !slot.signalled && now >= slot.begun + EXEC_TIMEOUT;
        hold(!hangs, 6, || format!("{worker:?} hangs in exec for ever"))?;
        let overdue = self.ready_due(worker).is_some_and(|due| due <= now);
        hold(!overdue || slot.signalled, 7, || format!("{worker:?} may take for ever to be ready"))?;
        let kill_due = slot.stop.kill_due();
        let late = punctual && !slot.killed && !slot.extended && kill_due.is_some_and(|due| due + SLACK < now);
        hold(!late, 6, || format!("{worker:?} is not killed"))?;
        if slot.signalled {
            return Ok(());
        }
        let probe_runs = self.probes.has(worker);
        let neglected = punctual && slot.readiness.is_neglected(now, probe_runs, &self.wanted);
        hold(!neglected, 13, || format!("{worker:?} is not looked at"))?;
        let unexamined = punctual && !self.bypass_told && slot.bypass.is_late(now);
        hold(!unexamined, 13, || format!("{worker:?} is not examined"))?;
        let told = self.bypass_told || !slot.bypass.is_convicted();
        hold(told, 0, || format!("that {worker:?} bypasses its listener is not told"))?;
        slot.readiness.check_told(&self.wanted)
    }

    fn check_whole(&self, now: Time, punctual: bool) -> Checked {
        let stopping = self.is_ending();
        // A worker may have been given more time than the stop, and have left it behind only then.
        let killed = |worker: &Worker, times: &StopTimes| Some(times.kill_due()?.max(*self.left_since.get(worker)?));
        let killed = self.groups.iter().filter_map(|(worker, times)| killed(worker, times));
        let late = killed.map(|killed| killed + FAREWELL_TIMEOUT + KILL_TIMEOUT + SLACK).any(|due| due < now);
        hold(!late || !punctual, 6, || "what is left behind is waited for for ever".to_owned())?;
        hold(self.gone.is_none(), 0, || format!("that slot {:?} is empty is not told", self.gone))?;
        let right = stopping || self.gave_up || self.slots_wanted() == self.wanted.workers;
        hold(right, 13, || format!("{} slots are kept, of {}", self.slots_wanted(), self.wanted.workers))?;
        hold(!stopping || self.closed, 9, || "a stop does not close the listeners".to_owned())?;
        hold(self.exited == self.is_over(), 6, || "a monitor stays though everything has ended".to_owned())
    }

    fn is_over(&self) -> bool {
        self.is_ending()
            && self.groups.is_empty()
            && self.probes.is_empty()
            && !self.slots.iter().any(|slot| slot.alive)
    }

    /// Whether every slot holds a worker that is ready.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_idle() && !self.on_trial
    }

    /// Whether there is nothing to do, nor to wait for.
    pub(crate) fn is_idle(&self) -> bool {
        let ready = |slot: &Slot| match slot.idle || slot.finished {
            true => !slot.alive,
            false => slot.alive && slot.readiness.ready_told && !slot.signalled,
        };
        let all_ready = self.slots.iter().all(ready);
        let examined = self.bypass_told || !self.slots.iter().any(|slot| slot.alive && slot.bypass.is_pending());
        all_ready && examined && self.groups.is_empty() && self.probes.is_empty() && !self.is_ending()
    }
}
