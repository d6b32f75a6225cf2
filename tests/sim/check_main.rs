//! The invariants of main: follows its events and actions with a book of its own, and compares.

use std::collections::{BTreeMap, BTreeSet};

use panzer::config::{Schedule, Tuning};
use panzer::control::monitor::messages::{Order, Report, Urgency};
use panzer::main_process::decide::{Action, Change, Event, Monitor, Note, Settings};

use crate::check::{Checked, PaceWatch, SLACK, StopTimes, Violation, hold};
use crate::check_count::Count;
use crate::check_renewal::RenewalWatch;
use crate::check_settings::Wanted;
use crate::kernel::Time;
use crate::tally::Tally;

/// What a monitor gets beyond its workers' schedule, as the state has it.
pub(crate) const GRACE: Time = Time::from_secs(5);

/// What finding out what a generation is to be may take, as the state has it.
pub(crate) const PLANNING_TIMEOUT: Time = Time::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphans {
    None,
    Present,
    Gone,
}

/// One monitor, from the order to start it until its last orphan is gone.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) trial: bool,
    /// So many workers are wanted of it, and of so many it is to say that they are no more.
    pub(crate) workers: u32,
    pub(crate) retiring: u32,
    /// So many are to end because there are to be fewer, and have not.
    pub(crate) leaving: u32,
    pub(crate) ready: BTreeSet<u32>,
    /// The slots whose workers were seen accepting.
    pub(crate) seen: BTreeSet<u32>,
    /// Since when all its workers are ready, and for how long they must live on.
    pub(crate) whole_since: Option<Time>,
    pub(crate) bake: Time,
    /// The slots whose workers a signal has stopped, as far as it is told.
    pub(crate) halted: BTreeSet<u32>,
    /// The slots whose worker ended for good, and its exit code.
    pub(crate) ended_for_good: BTreeMap<u32, u8>,
    pub(crate) committed: bool,
    /// It is said to serve.
    pub(crate) proven: bool,
    pub(crate) ordered: StopTimes,
    /// One of its workers asked for more time to stop.
    pub(crate) extended: bool,
    /// It was told to end in its own time.
    pub(crate) patient: bool,
    /// It is stopped as what a reload ends, and nothing else has been ordered since.
    pub(crate) by_retire: bool,
    /// An operator wants its end.
    pub(crate) hurried: bool,
    /// It was told to replace no workers that have reached a limit.
    pub(crate) holds_recycling: bool,
    pub(crate) killed: bool,
    pub(crate) ended: bool,
    pub(crate) orphans: Orphans,
    /// The stop of what outlived it.
    pub(crate) orphans_stop: StopTimes,
    pub(crate) orphans_schedule: Schedule,
    pub(crate) orphans_killed: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Starting {
    pub(crate) monitor: Monitor,
    /// What it is to be is known, and its monitor started.
    pub(crate) begun: bool,
    pub(crate) since: Time,
    /// By when it must be ready.
    pub(crate) due: Time,
    /// Something happened by which it fails.
    pub(crate) failed: bool,
    /// It has been begun with a share of its workers; so many have been ready together.
    pub(crate) rolls: bool,
    pub(crate) proven: u32,
    /// Until when workers of the other one may take to make room.
    pub(crate) room_due: Option<Time>,
    /// How it retires the one before it.
    pub(crate) retires: Urgency,
}

impl Watched {
    /// Something outlived it, whose stop goes on from here.
    fn adopted(&mut self, now: Time, stop_so_far: StopTimes, (quick, schedule): (bool, &Schedule)) {
        self.orphans = Orphans::Present;
        self.orphans_killed = false;
        self.orphans_stop = stop_so_far;
        self.orphans_stop.begin(quick, now, schedule);
        self.orphans_schedule = schedule.clone();
    }

    /// Notes since when it is whole.
    fn settle(&mut self, now: Time, wanted: &Settings) {
        if self.whole_since.is_none() {
            self.bake = wanted.tuning.bake;
        }
        self.whole_since = self.has(self.ready.len()).then(|| self.whole_since.unwrap_or(now));
    }

    /// Whether so many, and those that ended for good, are all that are wanted.
    pub(crate) fn has(&self, workers: usize) -> bool {
        self.retiring == 0 && self.workers > 0 && workers + self.ended_for_good.len() >= self.workers as usize
    }

    /// One that was not seen accepting must show that now. Returns whether all were ready.
    fn listens(&mut self, slot: u32) -> bool {
        if self.committed || self.proven || self.seen.contains(&slot) {
            return false;
        }
        self.ready.remove(&slot);
        self.whole_since.take().is_some()
    }
}

pub(crate) struct MainCheck {
    /// What main is to do, whatever the state was given.
    pub(crate) wanted: Wanted,
    pub(crate) count: Count,
    /// There are to be more than there were, and they have not all been ready together.
    pub(crate) owed: bool,
    /// In this step another count is asked for, or configured.
    pub(crate) recounts: bool,
    /// The generation that was promised and will never begin.
    pub(crate) unbegun: Option<u32>,
    /// When the serving generation was last to have more again.
    pub(crate) last_raise: Time,
    /// In this step the serving generation has lost the one that served beside it, and gets its workers back.
    pub(crate) restores: bool,
    pub(crate) monitors: BTreeMap<Monitor, Watched>,
    pub(crate) last_generation: u32,
    pub(crate) serving: Option<Monitor>,
    pub(crate) starting: Option<Starting>,
    /// One that failed on its way, whose workers still serve.
    pub(crate) falling_back: Option<Monitor>,
    pub(crate) reload_queued: bool,
    /// The requests that were told which generation decides them.
    pub(crate) answered: Vec<u64>,
    /// The generations that somebody waits for.
    pub(crate) promised: BTreeSet<u32>,
    /// Those of which was told what became of them.
    pub(crate) judged: BTreeSet<u32>,
    /// So many trials must begin before this step is over.
    pub(crate) trials_due: u32,
    /// How the next generation that is asked for retires the one before it, and how the last one that serves did.
    pub(crate) next_retires: Urgency,
    pub(crate) retired: Urgency,
    /// The generation whose plan is to be given up.
    pub(crate) planned_in_vain: Option<u32>,
    pub(crate) renewal: RenewalWatch,
    pub(crate) has_run: bool,
    /// A worker has ended for good, and that ends all.
    pub(crate) finishes_all: bool,
    pub(crate) told: BTreeMap<u32, BTreeSet<u32>>,
    /// By generation, the slots whose workers have listened on a shared port.
    pub(crate) listening: BTreeMap<u32, BTreeSet<u32>>,
    /// By generation, when it last got workers more.
    pub(crate) grown: BTreeMap<u32, Time>,
    /// Some worker cannot be seen, and people have been told so.
    pub(crate) unseeable: bool,
    pub(crate) unseeable_told: bool,
    /// How a worker bypasses its listener, true where it listens elsewhere: what was told last, and is to be told now.
    pub(crate) bypass_told: Option<bool>,
    pub(crate) bypass_due: bool,
    pub(crate) restarts: PaceWatch,
    pub(crate) stop: StopTimes,
    pub(crate) stopped_with: u8,
    pub(crate) closed: bool,
    pub(crate) released: BTreeSet<u32>,
    pub(crate) exited: bool,
    pub(crate) tally: Tally,
}

impl MainCheck {
    pub(crate) fn new(wanted: Settings) -> MainCheck {
        MainCheck {
            count: Count::new(wanted.workers),
            owed: false,
            unbegun: None,
            last_raise: Time::ZERO,
            restores: false,
            recounts: false,
            wanted: Wanted::new(wanted),
            monitors: BTreeMap::new(),
            last_generation: 0,
            serving: None,
            starting: None,
            falling_back: None,
            reload_queued: false,
            answered: Vec::new(),
            promised: BTreeSet::new(),
            judged: BTreeSet::new(),
            trials_due: 0,
            next_retires: Urgency::Graceful,
            retired: Urgency::Graceful,
            planned_in_vain: None,
            renewal: RenewalWatch::default(),
            has_run: false,
            finishes_all: false,
            told: BTreeMap::new(),
            listening: BTreeMap::new(),
            grown: BTreeMap::new(),
            unseeable: false,
            unseeable_told: false,
            bypass_told: None,
            bypass_due: false,
            restarts: PaceWatch::default(),
            stop: StopTimes::default(),
            stopped_with: 0,
            closed: false,
            released: BTreeSet::new(),
            exited: false,
            tally: Tally::default(),
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.has_begun()
    }

    /// Whether a worker asked for more time to stop.
    pub(crate) fn is_extended(&self) -> bool {
        self.monitors.values().any(|watched| watched.extended)
    }

    /// When a stop must have come to its end.
    pub(crate) fn stop_due(&self) -> Option<Time> {
        let begun = self.stop.graceful.into_iter().chain(self.stop.quick);
        let due = self.monitors.values().filter_map(|watched| watched.ordered.kill_due());
        begun.chain(due).max()
    }

    /// Whether the serving generation has not every listener. One without workers needs none.
    pub(crate) fn lacks_listener(&self) -> bool {
        self.renewal.is_needed() && self.count.now() > 0
    }

    /// So many workers are configured.
    pub(crate) fn configured(&self) -> u32 {
        self.count.configured()
    }

    /// So many workers are wanted.
    pub(crate) fn count(&self) -> u32 {
        self.count.now()
    }

    pub(crate) fn serving(&self) -> Option<Monitor> {
        self.serving
    }

    pub(crate) fn starting(&self) -> Option<Monitor> {
        self.starting.map(|starting| starting.monitor)
    }

    /// Whether this monitor was told to end in its own time.
    pub(crate) fn is_patient(&self, monitor: Monitor) -> bool {
        self.monitors.get(&monitor).is_some_and(|watched| watched.patient)
    }

    pub(crate) fn is_by_retire(&self, monitor: Monitor) -> bool {
        self.monitors.get(&monitor).is_some_and(|watched| watched.by_retire)
    }

    /// Whether main has done with this monitor and all that it left.
    pub(crate) fn is_retired(&self, monitor: Monitor) -> bool {
        self.monitors.get(&monitor).is_none_or(|watched| watched.ended && watched.orphans != Orphans::Present)
    }

    pub(crate) fn observe(&mut self, now: Time, event: &Event, actions: &[Action], punctual: bool) -> Checked {
        self.recounts = matches!(event, Event::Scale(..));
        self.take_in(now, event);
        self.note_room(now);
        for action in actions {
            self.check_action(now, event, action, actions)?;
        }
        self.restores = false;
        self.check_answers(event)?;
        self.check_whole(now, punctual)
    }

    fn take_in(&mut self, now: Time, event: &Event) {
        match event {
            Event::Start => {}
            Event::Reload | Event::ReloadFor(_) | Event::ReloadRetiring(_) if self.is_stopping() => {}
            Event::Reload | Event::ReloadFor(_) => self.reload(Urgency::Graceful),
            Event::ReloadRetiring(urgency) => self.reload(*urgency),
            Event::Rebound if self.is_stopping() => {}
            Event::Rebound => {
                // One that is only planned gets it.
                let begun = self.starting.is_none_or(|starting| starting.begun);
                let pace = self.wanted.current().tuning.pace;
                self.renewal.needed(self.last_generation - u32::from(!begun), now, pace);
                self.starting = self.starting.map(|starting| Starting { failed: starting.failed || begun, ..starting });
            }
            Event::Preparing(generation, time) => {
                let is_it = |it: &&mut Starting| it.monitor.generation == *generation && !it.begun;
                if let Some(starting) = self.starting.as_mut().filter(is_it) {
                    starting.due = starting.due.max(now + *time);
                }
            }
            Event::NotPlanned(generation, _) => {
                if let Some(starting) = self.starting.as_mut().filter(|known| known.monitor.generation == *generation) {
                    starting.failed = true;
                }
            }
            Event::Scale(_, change) => self.scaled(now, *change),
            Event::Planned(generation, settings) => self.planned(*generation, settings),
            Event::Reread(workers, tuning) => self.tuned(now, *workers, tuning),
            Event::EscalateDraining(generation) => self.hurried(now, *generation),
            Event::Stop(urgency) => self.stopped(now, *urgency, 0),
            Event::StopThenNow if self.is_stopping() => self.stopped(now, Urgency::Quick, 0),
            Event::StopThenNow => self.stopped(now, Urgency::Graceful, 0),
            Event::Reported(monitor, report) => self.told(now, *monitor, report),
            Event::NotStarted(monitor, _) => self.ended(now, *monitor, false),
            Event::Ended(monitor, _, orphans) => self.ended(now, *monitor, *orphans),
            Event::OrphansJoined(monitor) => self.joined(now, *monitor),
            Event::OrphansGone(monitor) => {
                if let Some(watched) = self.monitors.get_mut(monitor) {
                    watched.orphans = Orphans::Gone;
                }
            }
            Event::Wake => {}
        }
    }

    fn hurried(&mut self, now: Time, generation: Option<u32>) {
        for (monitor, watched) in &mut self.monitors {
            if generation.is_none_or(|only| only == monitor.generation) {
                if watched.orphans == Orphans::Present {
                    watched.orphans_stop.begin(true, now, &watched.orphans_schedule);
                }
                watched.hurried |= !watched.ended && (watched.ordered.has_begun() || watched.patient);
            }
        }
    }

    /// There is more left of a monitor than was known, or anything at all.
    fn joined(&mut self, now: Time, monitor: Monitor) {
        let quick = self.stop.quick.is_some();
        let stop = self.wanted.of(monitor.generation).tuning.stop.clone();
        if let Some(watched) = self.monitors.get_mut(&monitor).filter(|watched| watched.orphans != Orphans::Present) {
            watched.adopted(now, StopTimes::default(), (quick, &stop));
        }
    }

    pub(crate) fn stopped(&mut self, now: Time, urgency: Urgency, code: u8) {
        let quick = urgency == Urgency::Quick;
        if self.is_stopping() && !quick {
            return;
        }
        if !self.is_stopping() {
            self.stopped_with = code;
        }
        // Each generation has a schedule of its own.
        self.stop.begin(quick, now, &Schedule::kill());
        self.renewal = RenewalWatch::default();
        self.reload_queued = false;
        self.falling_back = None;
        self.count.failed();
        let starting = self.starting.take().filter(|starting| !starting.begun);
        self.planned_in_vain = starting.map(|starting| starting.monitor.generation);
        for watched in self.monitors.values_mut().filter(|watched| watched.orphans == Orphans::Present) {
            watched.orphans_stop.begin(quick, now, &watched.orphans_schedule);
        }
    }

    fn told(&mut self, now: Time, monitor: Monitor, report: &Report) {
        let (is_serving, is_starting) = (self.serving == Some(monitor), self.starting() == Some(monitor));
        if is_serving || is_starting || self.falling_back == Some(monitor) {
            self.left(monitor, report);
        }
        if let (Report::Extends { by, .. }, Some(watched)) = (report, self.monitors.get_mut(&monitor)) {
            watched.extended |= watched.ordered.has_begun();
            let filling = |starting: &&mut Starting| is_starting && starting.room_due.is_none();
            if let Some(starting) = self.starting.as_mut().filter(filling) {
                starting.due = starting.due.max(now + *by);
            }
        }
        if self.is_stopping() || !(is_serving || is_starting) {
            return;
        }
        let wanted = self.wanted.of(monitor.generation);
        let Some(watched) = self.monitors.get_mut(&monitor) else { return };
        match report {
            Report::Ready { slot, notified, seen } => {
                watched.ready.insert(*slot);
                if *seen {
                    self.tally.seen += 1;
                    self.bypass_told = None;
                    watched.seen.insert(*slot);
                }
                watched.settle(now, wanted);
                if *notified {
                    self.told.entry(monitor.generation).or_default().insert(*slot);
                }
            }
            Report::Suspended { slot, suspended: false } => drop(watched.halted.remove(slot)),
            Report::Suspended { slot, .. } => {
                watched.halted.insert(*slot);
                let bakes = watched.whole_since.is_some();
                if let Some(starting) =
                    self.starting.as_mut().filter(|it| bakes && is_starting && it.room_due.is_none())
                {
                    starting.due = starting.due.max(now + wanted.tuning.ready_timeout);
                }
            }
            Report::Retired { slot, .. } => {
                watched.ready.remove(slot);
                watched.halted.remove(slot);
                watched.seen.remove(slot);
                watched.ended_for_good.remove(slot);
                watched.settle(now, wanted);
                for slots in [&mut self.told, &mut self.listening] {
                    slots.entry(monitor.generation).or_default().remove(slot);
                }
            }
            Report::Executed => self.has_run |= is_serving,
            Report::Listens { slot, withdrawn } => {
                self.listening.entry(monitor.generation).or_default().insert(*slot);
                let was_whole = *withdrawn && watched.listens(*slot);
                self.tally.late_listens += u64::from(was_whole);
                if let Some(starting) = self.starting.as_mut().filter(|_| is_starting && was_whole) {
                    let again = now + wanted.tuning.ready_timeout;
                    let rolled = starting.room_due.take().is_some();
                    starting.due = if rolled { again } else { starting.due.max(again) };
                }
            }
            Report::Unseeable { .. } => {
                self.unseeable |= wanted.ready.looks_where_it_can();
            }
            Report::Bypasses { own, .. } => {
                self.tally.bypasses += 1;
                let before = self.bypass_told.replace(!own.is_empty());
                self.bypass_due = before != Some(!own.is_empty());
            }
            Report::Died { .. } | Report::CannotBegin(_) | Report::MoldFailed(_) if is_starting => {
                self.starting = self.starting.map(|starting| Starting { failed: true, ..starting });
            }
            Report::Died { slot, cause } => {
                watched.ready.remove(slot);
                watched.seen.remove(slot);
                watched.settle(now, wanted);
                self.end_if_first_start(now, cause.exit_code());
            }
            Report::MoldFailed(cause) => {
                self.tally.molds_failed += 1;
                self.end_if_first_start(now, cause.exit_code());
            }
            Report::CannotBegin(cause) => self.end_if_first_start(now, cause.exit_code().or(Some(125))),
            Report::EndedForGood { slot, code } if is_serving => {
                watched.ready.remove(slot);
                watched.seen.remove(slot);
                watched.ended_for_good.insert(*slot, *code);
                watched.settle(now, wanted);
                self.finishes_all = wanted.tuning.final_exits.stop;
            }
            Report::GaveUp if is_serving => {
                self.tally.gave_up += 1;
                self.stopped(now, Urgency::Graceful, 1);
            }
            _ => {}
        }
    }

    fn end_if_first_start(&mut self, now: Time, code: Option<u8>) {
        let Some(code) = code.filter(|_| !self.has_run && self.last_generation == 1) else { return };
        self.tally.fatal += 1;
        self.stopped(now, Urgency::Quick, code);
    }

    fn ended(&mut self, now: Time, monitor: Monitor, orphans: bool) {
        let stop = self.stop;
        let tuning = self.wanted.of(monitor.generation).tuning.clone();
        let Some(watched) = self.monitors.get_mut(&monitor).filter(|watched| !watched.ended) else { return };
        watched.ended = true;
        watched.renumber();
        watched.leaving = 0;
        if self.falling_back == Some(monitor) {
            self.falling_back = None;
            self.restores = true;
            self.note_count(now);
            self.trials_due += u32::from(std::mem::take(&mut self.reload_queued));
        }
        let Some(watched) = self.monitors.get_mut(&monitor) else { return };
        if orphans {
            self.tally.adoptions += 1;
            // What a monitor did that had to be killed nobody knows: the stop begins anew.
            let stop_so_far = if watched.killed { StopTimes::default() } else { watched.ordered };
            watched.adopted(now, stop_so_far, (stop.quick.is_some(), &tuning.stop));
            if watched.by_retire && !watched.killed {
                watched.orphans_stop = stop_so_far;
            }
        }
        if self.serving == Some(monitor) && !self.stop.has_begun() {
            self.restarts.ended(now, false, tuning.pace);
        }
        if let Some(starting) = self.starting.as_mut().filter(|starting| starting.monitor == monitor) {
            starting.failed = true;
        }
    }

    fn check_action(&mut self, now: Time, event: &Event, action: &Action, all: &[Action]) -> Checked {
        match action {
            Action::Plan(generation) => self.check_plan(now, *generation),
            Action::GiveUpPlan(generation) => {
                let planned = self.planned_in_vain.take() == Some(*generation);
                hold(planned, 7, || format!("the plan of generation {generation} is given up without a reason"))
            }
            Action::Tune(generation, tuning) => self.wanted.is_told(*generation, tuning),
            Action::Scaled { request, from, to } => {
                let asked = matches!(event, Event::Scale(by, _) if by == request);
                hold(asked && self.count.is_told(*from, *to), 7, || format!("{action:?} is not so"))
            }
            Action::StartMonitor { monitor, workers, ended, trial, notify, accept } => {
                self.check_ended(*workers, *trial, ended)?;
                let right = self.begins_right(monitor.generation, *trial, *workers);
                hold(right, 13, || format!("{monitor:?} is to keep {workers} workers, of {:?}", self.count))?;
                self.check_accept(now, *monitor, (*accept, *trial))?;
                self.tally.must_accept += u64::from(*accept);
                self.grown.insert(monitor.generation, now);
                match trial {
                    true => self.check_trial(now, *monitor, *workers, *notify),
                    false => self.check_start(now, event, *monitor, (*workers, ended), *notify),
                }
            }
            Action::Order(monitor, Order::Commit) => self.check_commit_order(*monitor, all),
            Action::Order(monitor, Order::Stop(urgency)) => self.check_stop_order(now, *monitor, *urgency, all),
            Action::Order(monitor, Order::Scale { workers, which }) => {
                self.check_scale(now, event, *monitor, (*workers, *which))
            }
            Action::Order(monitor, Order::HoldRecycling(held)) => {
                let watched = self.live(*monitor)?;
                let anew = std::mem::replace(&mut watched.holds_recycling, *held) != *held;
                hold(anew, 13, || format!("{monitor:?} is told again to hold recycling: {held}"))
            }
            Action::Order(_, _) => hold(false, 0, || "the state asks for a status, or answers a claim".to_owned()),
            Action::KillMonitor(monitor) => self.check_kill(now, *monitor),
            Action::SignalUnreached(monitor, _) => {
                let adopted =
                    matches!(event, Event::Ended(ended, _, true) | Event::OrphansJoined(ended) if ended == monitor);
                hold(adopted, 3, || format!("signals the orphans of {monitor:?} once more"))
            }
            Action::GiveUpOrphans(monitor) => self.check_given_up(now, *monitor),
            Action::SignalOrphans(monitor, signal) => self.check_orphan_signal(now, *monitor, *signal),
            Action::CloseListeners => {
                let first = !std::mem::replace(&mut self.closed, true);
                hold(first && self.is_stopping(), 9, || "the listeners are closed twice, or for no stop".to_owned())
            }
            Action::Release(generation) => {
                let first = self.released.insert(*generation);
                let gone = self.is_gone(*generation);
                hold(first && gone, 9, || format!("generation {generation} is released twice, or before it is gone"))
            }
            Action::Promise(request, promised) => self.check_promise(event, *request, *promised),
            Action::Verdict(generation, verdict) => self.check_verdict(*generation, verdict, all),
            Action::Note(note) => self.check_note(now, note, all),
            Action::Exit(code) => {
                let first = !std::mem::replace(&mut self.exited, true);
                self.tally.exits += 1;
                hold(first && self.is_over(), 6, || "exits before everything has ended, or twice".to_owned())?;
                let asked = self.stopped_with;
                hold(*code == asked, 6, || format!("exits with {code} instead of {asked}"))
            }
        }
    }

    pub(crate) fn live(&mut self, monitor: Monitor) -> Result<&mut Watched, Violation> {
        let watched = self.monitors.get_mut(&monitor).filter(|watched| !watched.ended);
        watched.ok_or_else(|| Violation::new(3, format!("{monitor:?} is ordered about, and is gone")))
    }

    fn check_note(&mut self, now: Time, note: &Note, all: &[Action]) -> Checked {
        match note {
            Note::Committed(generation, old, _) => self.check_commit(now, *generation, *old, all),
            Note::Rejected(generation, _) if self.unbegun == Some(*generation) => {
                self.unbegun = None;
                self.last_generation = *generation;
                Ok(())
            }
            Note::Rejected(generation, _) => self.check_rejection(now, *generation),
            Note::MonitorDied(generation, _, delay) => {
                let pace = self.wanted.of(*generation).tuning.pace;
                self.restarts.told(*delay, pace)
            }
            Note::Renewing(_, wait) => {
                let bounded = *wait <= self.wanted.current().tuning.pace.delay_max;
                hold(bounded, 5, || format!("a generation with all listeners comes after {wait:?}"))
            }
            Note::Finished { generation, slot, code } => self.check_finish(now, (*generation, *slot, *code)),
            Note::ReloadQueued(_) => {
                self.tally.queued_reloads += 1;
                Ok(())
            }
            Note::Serving(generation, ..) => {
                let serving = self.serving.and_then(|monitor| self.monitors.get_mut(&monitor));
                let whole = serving.is_some_and(|watched| {
                    watched.proven = true;
                    watched.whole_since.is_some() && !watched.ready.is_empty()
                });
                hold(whole, 1, || format!("generation {generation} is said to serve, and does not"))
            }
            Note::Bypasses(..) => {
                let due = std::mem::take(&mut self.bypass_due);
                hold(due, 0, || "that a listener is bypassed is told once more, or is not so".to_owned())
            }
            Note::Unseeable(..) => {
                self.tally.unseeable += 1;
                let first = !std::mem::replace(&mut self.unseeable_told, true);
                let so = first && self.unseeable;
                hold(so, 0, || "another measure is said to be taken, without a reason".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn reload(&mut self, retires: Urgency) {
        self.next_retires = retires;
        if self.starting.is_some() || self.falling_back.is_some() {
            self.reload_queued = true;
        } else {
            self.trials_due = 1;
        }
    }

    /// Another count is wanted.
    fn scaled(&mut self, now: Time, change: Change) {
        if self.is_stopping() {
            return self.count.refuse();
        }
        let rolls = self.starting.is_some_and(|starting| starting.rolls);
        let before = self.total();
        let allowed = self.count.change(change, rolls);
        if allowed {
            self.note_raise(before);
        }
        if change == Change::ToNone {
            self.starting = self.starting.map(|starting| Starting { failed: true, proven: 0, ..starting });
            self.unbegun = std::mem::take(&mut self.reload_queued).then_some(self.last_generation + 1);
        }
        if allowed {
            self.note_count(now);
        }
        self.tally.scaled += 1;
        self.tally.quiet += u64::from(change == Change::ToNone);
    }

    /// What the generation that is starting is to be.
    fn planned(&mut self, generation: u32, settings: &Settings) {
        let planned = |starting: &Starting| starting.monitor.generation == generation && !starting.begun;
        if self.starting.as_ref().is_some_and(planned) {
            self.tally.replanned += u64::from(*settings != *self.wanted.current());
            self.count.planned(settings.workers);
            self.wanted.planned(generation, settings.clone());
        }
    }

    /// The configuration was read again.
    fn tuned(&mut self, now: Time, workers: u32, tuning: &Tuning) {
        if self.is_stopping() {
            return;
        }
        let starting = self.starting.filter(|starting| starting.begun).map(|starting| starting.monitor);
        let going_on = self.serving.into_iter().chain(starting);
        self.wanted.tuned(tuning, going_on.map(|monitor| monitor.generation));
        let before = self.total();
        self.recounts = self.count.tuned(workers);
        self.tally.tuned += 1;
        self.tally.tuned_while_starting += u64::from(starting.is_some());
        self.tally.recounted += u64::from(self.recounts);
        if self.recounts {
            self.note_raise(before);
            self.note_count(now);
        }
    }

    pub(crate) fn baked_at(&self, monitor: Monitor) -> Option<Time> {
        let watched = self.monitors.get(&monitor)?;
        let proven = self.starting.is_some_and(|starting| starting.monitor == monitor && starting.proven > 0);
        Some(watched.whole_since? + if proven { Time::ZERO } else { watched.bake })
    }

    /// Whether a worker of it is stopped, so that it is not taken for good.
    pub(crate) fn is_halted(&self, monitor: Monitor) -> bool {
        self.monitors.get(&monitor).is_some_and(|watched| !watched.halted.is_empty())
    }

    /// What must have been done by now.
    fn check_whole(&mut self, now: Time, punctual: bool) -> Checked {
        hold(self.trials_due == 0, 7, || "a reload is lost".to_owned())?;
        hold(self.unbegun.is_none(), 7, || "nobody is told of a generation that will never begin".to_owned())?;
        hold(self.count.is_known(), 7, || "nobody is told what became of the count".to_owned())?;
        for monitor in self.serving.into_iter().chain(self.starting()) {
            let watched = self.monitors.get(&monitor).filter(|watched| !watched.ended && !self.is_stopping());
            let rolls = self.falling_back.is_some() || self.starting.is_some_and(|starting| starting.rolls);
            let wanted = self.count.of(Some(monitor) == self.serving);
            let right = watched.is_none_or(|watched| rolls || watched.workers == wanted);
            hold(right, 13, || format!("{monitor:?} keeps another count than {:?}", self.count))?;
        }
        if let Some(monitor) = self.serving.filter(|_| !self.is_stopping())
            && let Some(watched) = self.monitors.get(&monitor).filter(|watched| !watched.ended)
        {
            let reloads = self.starting.is_some() || self.falling_back.is_some();
            let holds = reloads && self.wanted.of(monitor.generation).tuning.recycling.is_on();
            let right = watched.holds_recycling == holds;
            hold(right, 1, || format!("whether {monitor:?} may replace workers one by one is not told: {reloads}"))?;
        }
        hold(self.planned_in_vain.is_none(), 7, || "a plan that nobody waits for is not given up".to_owned())?;
        self.check_limits()?;
        hold(self.closed == self.is_stopping(), 9, || "a stop does not close the listeners".to_owned())?;
        hold(self.exited == self.is_over(), 6, || "main stays though everything has ended".to_owned())?;
        self.check_starting(now)?;
        self.wanted.check_told()?;
        let told = self.unseeable_told || !self.unseeable;
        hold(told, 0, || "that workers cannot be seen is not told".to_owned())?;
        hold(!self.bypass_due, 0, || "that a listener is bypassed is not told".to_owned())?;
        if self.count.now() == 0 {
            self.renewal.excuse(now, self.wanted.current().tuning.pace);
        }
        let idle = self.starting.is_none() && self.falling_back.is_none();
        let waits = idle && punctual && self.renewal.is_late(now);
        hold(!waits, 7, || "nobody follows a generation that lacks a listener".to_owned())?;
        for (monitor, watched) in &self.monitors {
            self.check_monitor(now, *monitor, watched, punctual)?;
        }
        for generation in 1..=self.last_generation {
            let forgotten = !self.released.contains(&generation) && self.is_gone(generation);
            hold(!forgotten, 9, || format!("generation {generation} is gone and not released"))?;
        }
        let waits = self.serving.filter(|serving| self.monitors.get(serving).is_some_and(|watched| watched.ended));
        let late = waits.is_some() && !self.is_stopping() && punctual && self.restarts.is_late(now);
        hold(!late, 13, || format!("nobody follows {waits:?}"))
    }

    fn check_starting(&self, now: Time) -> Checked {
        let Some(Starting { monitor, due, failed, .. }) = self.starting else { return Ok(()) };
        hold(!failed, 7, || format!("{monitor:?} has failed, and starts on"))?;
        let longest = if self.is_halted(monitor) { due } else { Time::ZERO };
        let baked_at = self.baked_at(monitor).map(|baked| baked.max(longest));
        let due = self.starting.and_then(|starting| starting.room_due).or(baked_at).unwrap_or(due);
        hold(now < due, 7, || format!("{monitor:?} starts for ever"))
    }

    fn check_monitor(&self, now: Time, monitor: Monitor, watched: &Watched, punctual: bool) -> Checked {
        if watched.ended {
            let due = watched.orphans_stop.kill_due().map(|due| due + SLACK + SLACK);
            let left = watched.orphans == Orphans::Present && !watched.orphans_killed;
            let late = left && due.is_some_and(|due| due < now) && punctual;
            return hold(!late, 6, || format!("the orphans of {monitor:?} live on"));
        }
        let back = self.falling_back == Some(monitor);
        let goes_on = self.serving == Some(monitor) || self.starting() == Some(monitor) || back;
        let must_stop = self.is_stopping() || !goes_on;
        let ends = watched.ordered.has_begun() || (watched.patient && !self.is_stopping());
        let ends = ends && !(watched.by_retire && self.is_stopping());
        hold(!must_stop || ends, 7, || format!("{monitor:?} is not stopped"))?;
        let quickly = (self.stop.quick.is_none() && !watched.hurried) || watched.ordered.quick.is_some();
        hold(quickly, 6, || format!("{monitor:?} is not stopped quickly"))?;
        let overdue =
            watched.ordered.kill_due().is_some_and(|due| due + GRACE <= now) && !watched.killed && !watched.extended;
        hold(!overdue, 6, || format!("{monitor:?} is stuck, and not killed"))
    }

    fn is_gone(&self, generation: u32) -> bool {
        let is = |monitor: Option<Monitor>| monitor.is_some_and(|monitor| monitor.generation == generation);
        let goes_on = !self.is_stopping() && (is(self.serving) || is(self.starting()) || is(self.falling_back));
        let lives = |(monitor, watched): (&Monitor, &Watched)| {
            monitor.generation == generation && (!watched.ended || watched.orphans == Orphans::Present)
        };
        !goes_on && !self.monitors.iter().any(lives)
    }

    fn is_over(&self) -> bool {
        let over = |watched: &Watched| watched.ended && watched.orphans != Orphans::Present;
        self.is_stopping() && self.monitors.values().all(over)
    }
}
