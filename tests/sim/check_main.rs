//! The invariants of main: follows its events and actions with a book of its own, and compares.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use panzer::config::{Ready, Schedule, Tuning};
use panzer::control::messages::{Order, Report, Urgency};
use panzer::main_process::state::{Action, Change, Event, Monitor, Note, Settings, Verdict};

use crate::check::{Checked, PaceWatch, SLACK, StopTimes, Violation, hold};
use crate::check_count::Count;
use crate::check_renewal::RenewalWatch;
use crate::check_settings::Wanted;
use crate::kernel::Time;

/// What a monitor gets beyond its workers' schedule, as the state has it.
const GRACE: Time = Time::from_secs(5);

/// What finding out what a generation is to be may take, as the state has it.
const LONGEST_PLANNING: Time = Time::from_secs(10);

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
    /// The slots whose worker ended for good, and its exit code.
    pub(crate) ended_for_good: BTreeMap<u32, u8>,
    pub(crate) committed: bool,
    /// It is said to serve.
    pub(crate) proven: bool,
    pub(crate) ordered: StopTimes,
    /// It was told to end in its own time.
    pub(crate) patient: bool,
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

/// What the history of a world was made of.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) commits: u64,
    pub(crate) rejections: u64,
    pub(crate) queued_reloads: u64,
    pub(crate) renewals: u64,
    pub(crate) adoptions: u64,
    pub(crate) monitor_restarts: u64,
    pub(crate) monitor_kills: u64,
    pub(crate) orphan_kills: u64,
    pub(crate) gave_up: u64,
    pub(crate) fatal: u64,
    pub(crate) exits: u64,
    pub(crate) seen: u64,
    pub(crate) late_listens: u64,
    pub(crate) must_accept: u64,
    pub(crate) half_listening: u64,
    pub(crate) unseeable: u64,
    pub(crate) bypasses: u64,
    pub(crate) scaled: u64,
    pub(crate) quiet: u64,
    pub(crate) tuned: u64,
    pub(crate) tuned_while_starting: u64,
    pub(crate) recounted: u64,
    pub(crate) replanned: u64,
    pub(crate) finished: u64,
    pub(crate) finished_by_one: u64,
    pub(crate) ended_before: u64,
    pub(crate) hastened: u64,
    pub(crate) shares: u64,
    pub(crate) fall_backs: u64,
    pub(crate) patient: u64,
    pub(crate) restarts: u64,
}

impl Tally {
    /// Whether everything happened that is to be tested.
    pub(crate) fn covers_all(self) -> bool {
        let reloads = [self.commits, self.rejections, self.queued_reloads, self.renewals];
        let deaths = [self.adoptions, self.monitor_restarts, self.monitor_kills, self.orphan_kills];
        let ends = [self.gave_up, self.fatal, self.exits];
        let watching = [self.seen, self.late_listens, self.must_accept, self.unseeable, self.scaled, self.quiet];
        let limits = [self.finished, self.finished_by_one, self.ended_before, self.hastened];
        let half = [self.half_listening];
        let rolling = [self.shares, self.fall_backs, self.patient, self.restarts, self.bypasses];
        let configuration = [self.tuned, self.tuned_while_starting, self.recounted, self.replanned];
        let further = limits.iter().chain(&rolling).chain(&configuration).chain(&half);
        !reloads.iter().chain(&deaths).chain(&ends).chain(&watching).chain(further).any(|count| *count == 0)
    }

    pub(crate) fn add(&mut self, other: Tally) {
        self.commits += other.commits;
        self.rejections += other.rejections;
        self.queued_reloads += other.queued_reloads;
        self.renewals += other.renewals;
        self.adoptions += other.adoptions;
        self.monitor_restarts += other.monitor_restarts;
        self.monitor_kills += other.monitor_kills;
        self.orphan_kills += other.orphan_kills;
        self.gave_up += other.gave_up;
        self.fatal += other.fatal;
        self.exits += other.exits;
        self.seen += other.seen;
        self.late_listens += other.late_listens;
        self.must_accept += other.must_accept;
        self.half_listening += other.half_listening;
        self.unseeable += other.unseeable;
        self.bypasses += other.bypasses;
        self.scaled += other.scaled;
        self.quiet += other.quiet;
        self.tuned += other.tuned;
        self.tuned_while_starting += other.tuned_while_starting;
        self.recounted += other.recounted;
        self.replanned += other.replanned;
        self.finished += other.finished;
        self.finished_by_one += other.finished_by_one;
        self.ended_before += other.ended_before;
        self.hastened += other.hastened;
        self.shares += other.shares;
        self.fall_backs += other.fall_backs;
        self.patient += other.patient;
        self.restarts += other.restarts;
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
            Event::NotPlanned(generation, _) => {
                if let Some(starting) = self.starting.as_mut().filter(|known| known.monitor.generation == *generation) {
                    starting.failed = true;
                }
            }
            Event::Scale(_, change) => self.scaled(now, *change),
            Event::Planned(generation, settings) => self.planned(*generation, settings),
            Event::Tuned(workers, tuning) => self.tuned(now, *workers, tuning),
            Event::Stop(urgency) => self.stopped(now, *urgency, 0),
            Event::StopThenNow if self.is_stopping() => self.stopped(now, Urgency::Quick, 0),
            Event::StopThenNow => self.stopped(now, Urgency::Graceful, 0),
            Event::Told(monitor, report) => self.told(now, *monitor, report),
            Event::NotStarted(monitor, _) => self.ended(now, *monitor, false),
            Event::Ended(monitor, _, orphans) => self.ended(now, *monitor, *orphans),
            Event::OrphansGone(monitor) => {
                if let Some(watched) = self.monitors.get_mut(monitor) {
                    watched.orphans = Orphans::Gone;
                }
            }
            Event::Wake => {}
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
        if quick {
            for watched in self.monitors.values_mut().filter(|watched| watched.orphans == Orphans::Present) {
                watched.orphans_stop.begin(true, now, &watched.orphans_schedule);
            }
        }
    }

    fn told(&mut self, now: Time, monitor: Monitor, report: &Report) {
        let (is_serving, is_starting) = (self.serving == Some(monitor), self.starting() == Some(monitor));
        if is_serving || is_starting || self.falling_back == Some(monitor) {
            self.left(monitor, report);
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
            Report::Retired { slot, .. } => {
                watched.ready.remove(slot);
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
            Report::Unseeable { .. } => self.unseeable |= wanted.ready == Ready::Auto,
            Report::Bypasses { own, .. } => {
                self.tally.bypasses += 1;
                let before = self.bypass_told.replace(!own.is_empty());
                self.bypass_due = before != Some(!own.is_empty());
            }
            Report::Died { .. } | Report::CannotBegin(_) if is_starting => {
                self.starting = self.starting.map(|starting| Starting { failed: true, ..starting });
            }
            Report::Died { slot, cause } => {
                watched.ready.remove(slot);
                watched.seen.remove(slot);
                watched.settle(now, wanted);
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
            watched.orphans = Orphans::Present;
            // What a monitor did that had to be killed nobody knows: the stop begins anew.
            watched.orphans_stop = if watched.killed { StopTimes::default() } else { watched.ordered };
            watched.orphans_stop.begin(stop.quick.is_some(), now, &tuning.stop);
            watched.orphans_schedule = tuning.stop.clone();
        }
        if self.serving == Some(monitor) && !self.stop.has_begun() {
            self.restarts.ended(now, tuning.pace);
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
            Action::Order(_, _) => hold(false, 0, || "the state asks for a status, or answers a claim".to_owned()),
            Action::KillMonitor(monitor) => self.check_kill(now, *monitor),
            Action::SignalUnreached(monitor, _) => {
                let adopted = matches!(event, Event::Ended(ended, _, true) if ended == monitor);
                hold(adopted, 3, || format!("signals the orphans of {monitor:?} once more"))
            }
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

    fn check_trial(&mut self, now: Time, monitor: Monitor, workers: u32, notify: bool) -> Checked {
        hold(!self.is_stopping(), 6, || format!("{monitor:?} is started after a stop"))?;
        let planned = self.starting.is_some_and(|starting| starting.monitor == monitor && !starting.begun);
        hold(planned, 2, || format!("{monitor:?} is started beside {:?}", self.starting))?;
        let retires = self.starting.map_or(Urgency::Graceful, |starting| starting.retires);
        let due = now + self.longest_start(monitor.generation, self.count.next());
        let rolls = workers < self.count.next();
        self.starting = Some(Starting {
            monitor,
            begun: true,
            since: now,
            due,
            failed: false,
            rolls,
            proven: 0,
            room_due: None,
            retires,
        });
        self.add(monitor, workers, true, BTreeMap::new())?;
        self.check_notify(monitor, notify)
    }

    /// A new generation begins with this.
    fn check_plan(&mut self, now: Time, generation: u32) -> Checked {
        let monitor = Monitor { generation, life: 1 };
        hold(!self.is_stopping(), 6, || format!("generation {generation} is planned after a stop"))?;
        hold(self.starting.is_none(), 2, || format!("generation {generation} is planned beside {:?}", self.starting))?;
        hold(generation == self.last_generation + 1, 7, || format!("generation {generation} has a wrong number"))?;
        let mut retires = Urgency::Graceful;
        if self.trials_due > 0 {
            self.trials_due -= 1;
            retires = self.next_retires;
        } else {
            hold(self.renewal.is_needed(), 7, || format!("nobody asked for generation {generation}"))?;
            self.tally.renewals += 1;
            self.renewal.started(now, self.wanted.current().tuning.pace)?;
        }
        self.last_generation = generation;
        self.starting = Some(Starting {
            monitor,
            begun: false,
            since: now,
            due: now + LONGEST_PLANNING,
            failed: false,
            rolls: false,
            proven: 0,
            room_due: None,
            retires,
        });
        Ok(())
    }

    fn check_start(
        &mut self,
        now: Time,
        event: &Event,
        monitor: Monitor,
        (workers, ended): (u32, &BTreeMap<u32, u8>),
        notify: bool,
    ) -> Checked {
        hold(!self.is_stopping(), 6, || format!("{monitor:?} is started after a stop"))?;
        match self.serving {
            None => hold(*event == Event::Start, 7, || format!("{monitor:?} is started at {event:?}"))?,
            Some(last) => {
                self.tally.monitor_restarts += 1;
                let ended = self.monitors.get(&last).is_some_and(|watched| watched.ended);
                let next = Monitor { life: last.life + 1, ..last };
                hold(ended && monitor == next, 4, || format!("{monitor:?} is started in place of {last:?}"))?;
            }
        }
        self.restarts.started(now)?;
        self.serving = Some(monitor);
        self.add(monitor, workers, false, ended.clone())?;
        self.check_notify(monitor, notify)
    }

    fn add(&mut self, monitor: Monitor, workers: u32, trial: bool, ended_for_good: BTreeMap<u32, u8>) -> Checked {
        let expected = self.last_generation + u32::from(monitor.life == 1 && !trial);
        hold(monitor.life > 1 || monitor.generation == expected, 7, || format!("{monitor:?} has a wrong number"))?;
        self.last_generation = self.last_generation.max(monitor.generation);
        let new = Watched {
            trial,
            workers,
            retiring: 0,
            leaving: 0,
            ready: BTreeSet::new(),
            seen: BTreeSet::new(),
            whole_since: None,
            bake: Time::ZERO,
            ended_for_good,
            committed: false,
            proven: false,
            ordered: StopTimes::default(),
            patient: false,
            killed: false,
            ended: false,
            orphans: Orphans::None,
            orphans_stop: StopTimes::default(),
            orphans_schedule: Schedule::kill(),
            orphans_killed: false,
        };
        let known = self.monitors.insert(monitor, new).is_some();
        hold(!known, 4, || format!("{monitor:?} is started twice"))
    }

    fn check_notify(&self, monitor: Monitor, notify: bool) -> Checked {
        let told = self.serving.and_then(|serving| self.told.get(&serving.generation)).map_or(0, BTreeSet::len);
        let serving = self.is_all(told);
        let must = match self.wanted.of(monitor.generation).ready {
            Ready::Notify => true,
            Ready::Accept | Ready::Exec | Ready::Alive => false,
            Ready::Auto => serving,
        };
        hold(notify == must, 1, || format!("{monitor:?} is ready by the wrong measure"))
    }

    /// Of so many slots of the serving generation a worker has listened on a shared port.
    fn listening(&self) -> usize {
        self.serving.and_then(|serving| self.listening.get(&serving.generation)).map_or(0, BTreeSet::len)
    }

    /// Whether those are all.
    pub(crate) fn all_listen(&self) -> bool {
        self.is_all(self.listening())
    }

    /// What the serving generation listens on, the next one must accept on, also where not all have come so far.
    fn check_accept(&mut self, now: Time, monitor: Monitor, (accept, trial): (bool, bool)) -> Checked {
        let listening = self.listening();
        let is_young = |generation: u32| {
            let ready_timeout = self.wanted.of(generation).tuning.ready_timeout;
            self.grown.get(&generation).is_some_and(|grown| now < *grown + ready_timeout)
        };
        let young = self.serving.is_some_and(|serving| is_young(serving.generation));
        let some = trial && young && listening > 0 && self.is_all(usize::MAX);
        let must = self.wanted.of(monitor.generation).ready == Ready::Auto && (some || self.all_listen());
        self.tally.half_listening += u64::from(must && !self.all_listen());
        hold(accept == must, 1, || format!("{monitor:?} must accept: {accept}, and {listening} workers listen"))
    }

    pub(crate) fn live(&mut self, monitor: Monitor) -> Result<&mut Watched, Violation> {
        let watched = self.monitors.get_mut(&monitor).filter(|watched| !watched.ended);
        watched.ok_or_else(|| Violation::new(3, format!("{monitor:?} is ordered about, and is gone")))
    }

    fn check_commit_order(&mut self, monitor: Monitor, all: &[Action]) -> Checked {
        let noted = all.iter().any(|a| matches!(a, Action::Note(Note::Committed(n, ..)) if *n == monitor.generation));
        let watched = self.live(monitor)?;
        let first = !std::mem::replace(&mut watched.committed, true);
        hold(first && noted && watched.trial, 1, || format!("{monitor:?} is committed without a reason"))
    }

    fn check_stop_order(&mut self, now: Time, monitor: Monitor, urgency: Urgency, all: &[Action]) -> Checked {
        let asked = match urgency {
            Urgency::Patient => false,
            Urgency::Graceful => self.stop.graceful.is_some(),
            Urgency::Quick => self.stop.quick.is_some(),
        };
        let how = self.retired;
        let retired = |action: &Action| match action {
            Action::Note(Note::Committed(_, old, _)) => *old == Some(monitor.generation) && urgency == how,
            Action::Note(Note::Rejected(generation, _)) => {
                *generation == monitor.generation && urgency == Urgency::Graceful
            }
            _ => false,
        };
        let hastened = urgency == Urgency::Quick && !asked && self.is_beyond_limit(monitor);
        self.tally.hastened += u64::from(hastened);
        let back = self.falling_back.take_if(|back| *back == monitor).is_some();
        self.restores |= back;
        if back {
            self.note_count(now);
        }
        self.trials_due += u32::from(back && std::mem::take(&mut self.reload_queued));
        let retired = back || all.iter().any(retired);
        let schedule = self.wanted.of(monitor.generation).tuning.stop.clone();
        let watched = self.live(monitor)?;
        let repeated = watched.ordered.quick.is_some() || (watched.ordered.has_begun() && urgency == Urgency::Graceful);
        if urgency == Urgency::Patient {
            watched.patient = true;
        } else {
            watched.ordered.begin(urgency == Urgency::Quick, now, &schedule);
        }
        hold(!repeated, 3, || format!("{monitor:?} is told to stop twice"))?;
        hold(asked || retired || hastened, 1, || format!("{monitor:?} is told to stop ({urgency:?}) without a reason"))
    }

    fn check_kill(&mut self, now: Time, monitor: Monitor) -> Checked {
        self.tally.monitor_kills += 1;
        let watched = self.live(monitor)?;
        let due = watched.ordered.kill_due().is_some_and(|due| due + GRACE <= now);
        let first = !std::mem::replace(&mut watched.killed, true);
        hold(due && first, 6, || format!("{monitor:?} is killed before it is due, or twice"))
    }

    fn check_orphan_signal(&mut self, now: Time, monitor: Monitor, signal: Signal) -> Checked {
        let watched = self.monitors.get_mut(&monitor).filter(|watched| watched.orphans == Orphans::Present);
        let Some(watched) = watched else {
            return hold(false, 3, || format!("{signal} for the orphans of {monitor:?}, which has none"));
        };
        watched.orphans_killed |= signal == Signal::SIGKILL;
        let stop = watched.orphans_stop;
        self.tally.orphan_kills += u64::from(signal == Signal::SIGKILL);
        let due = stop.kill_due().is_some_and(|due| due <= now);
        hold(due || signal != Signal::SIGKILL, 6, || format!("KILL for the orphans of {monitor:?} before it is due"))
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
                    watched.whole_since.is_some()
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

    /// What decides a request has not begun when it comes.
    fn check_promise(&mut self, event: &Event, request: u64, promised: Option<u32>) -> Checked {
        hold(*event == Event::ReloadFor(request), 7, || format!("{promised:?} is promised to nobody"))?;
        hold(promised.is_none() == self.is_stopping(), 7, || format!("a reload is promised {promised:?}"))?;
        let begun_by_then = self.last_generation;
        hold(promised.is_none_or(|promised| promised > begun_by_then), 7, || format!("{promised:?} has begun before"))?;
        self.promised.extend(promised);
        self.answered.push(request);
        Ok(())
    }

    fn check_verdict(&mut self, generation: u32, verdict: &Verdict, all: &[Action]) -> Checked {
        self.promised.remove(&generation);
        let first = self.judged.insert(generation);
        hold(first, 7, || format!("there are two verdicts on generation {generation}"))?;
        let noted = |wanted: fn(&Note) -> Option<u32>| {
            let is = |action: &Action| matches!(action, Action::Note(note) if wanted(note) == Some(generation));
            all.iter().any(is)
        };
        let right = match verdict {
            Verdict::Serves(..) => noted(|note| match note {
                Note::Committed(number, ..) => Some(*number),
                _ => None,
            }),
            Verdict::Rejected(_) => noted(|note| match note {
                Note::Rejected(generation, _) => Some(*generation),
                _ => None,
            }),
            Verdict::Stopped => self.is_stopping(),
        };
        hold(right, 7, || format!("the verdict on generation {generation} is wrong: {verdict:?}"))
    }

    /// Who asked for a reload is told at once what decides it, and told what became of it once that is known.
    fn check_answers(&self, event: &Event) -> Checked {
        if let Event::ReloadFor(request) = event {
            let told = self.answered.contains(request);
            hold(told, 7, || format!("request {request} has no answer"))?;
        }
        let decided = |generation: &&u32| {
            let starts = self.starting().is_some_and(|starting| starting.generation == **generation);
            let queued = self.reload_queued && **generation == self.last_generation + 1;
            !starts && !queued
        };
        let forgotten = self.promised.iter().find(decided);
        hold(forgotten.is_none(), 7, || format!("nobody is told what became of generation {forgotten:?}"))
    }

    fn check_commit(&mut self, now: Time, generation: u32, old: Option<u32>, all: &[Action]) -> Checked {
        self.tally.commits += 1;
        let baked_at = self.starting().and_then(|monitor| self.baked_at(monitor));
        let Some(Starting { monitor, failed, since, retires, .. }) = self.starting.take() else {
            return hold(false, 1, || format!("generation {generation} is committed, and was not starting"));
        };
        let baked = baked_at.is_some_and(|baked| baked <= now);
        let whole = self.monitors.get(&monitor).is_some_and(|watched| watched.workers == self.count.next());
        hold(baked && whole && !failed, 1, || format!("generation {generation} is committed too early"))?;
        let ordered = |wanted: Action| all.contains(&wanted);
        hold(ordered(Action::Order(monitor, Order::Commit)), 7, || format!("{monitor:?} is not told of its commit"))?;
        hold(old == self.serving.map(|old| old.generation), 7, || format!("{old:?} did not serve"))?;
        if let Some(old) = self.serving.filter(|old| self.monitors.get(old).is_some_and(|watched| !watched.ended)) {
            let told = ordered(Action::Order(old, Order::Stop(retires)));
            hold(told, 7, || format!("{old:?} is not retired"))?;
        }
        self.retired = retires;
        self.tally.patient += u64::from(retires == Urgency::Patient);
        self.serving = Some(monitor);
        self.count.serves_anew();
        self.wanted.serves(generation);
        self.renewal.serves(generation, now, self.wanted.current().tuning.pace);
        self.has_run = true;
        // A generation's first monitor begins its life when it is started, not when it is committed.
        self.restarts = PaceWatch::begun(since);
        self.next_trial();
        Ok(())
    }

    fn check_rejection(&mut self, now: Time, generation: u32) -> Checked {
        self.tally.rejections += 1;
        let Some(starting) = self.starting.take().filter(|starting| starting.monitor.generation == generation) else {
            return hold(false, 8, || format!("generation {generation} is rejected, and was not starting"));
        };
        let whole = self.monitors.get(&starting.monitor).is_some_and(|watched| watched.whole_since.is_some());
        let late = match starting.room_due {
            Some(due) => now >= due,
            None => !whole && now >= starting.due,
        };
        hold(starting.failed || late, 7, || format!("generation {generation} is rejected without a reason"))?;
        self.planned_in_vain = Some(generation).filter(|_| !starting.begun);
        self.count.failed();
        self.renewal.failed(now, self.wanted.current().tuning.pace);
        let lives = self.monitors.get(&starting.monitor).is_some_and(|watched| !watched.ended);
        if starting.proven > 0 && lives && self.count.now() > 0 {
            self.tally.fall_backs += 1;
            self.falling_back = Some(starting.monitor);
        } else {
            self.restores |= starting.proven > 0;
            self.note_count(now);
            self.next_trial();
        }
        Ok(())
    }

    /// A reload that came meanwhile runs now, once.
    fn next_trial(&mut self) {
        self.trials_due += u32::from(std::mem::take(&mut self.reload_queued));
    }

    pub(crate) fn baked_at(&self, monitor: Monitor) -> Option<Time> {
        let watched = self.monitors.get(&monitor)?;
        let proven = self.starting.is_some_and(|starting| starting.monitor == monitor && starting.proven > 0);
        Some(watched.whole_since? + if proven { Time::ZERO } else { watched.bake })
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
            let forgotten = self.is_gone(generation) && !self.released.contains(&generation);
            hold(!forgotten, 9, || format!("generation {generation} is gone and not released"))?;
        }
        let waits = self.serving.filter(|serving| self.monitors.get(serving).is_some_and(|watched| watched.ended));
        let late = waits.is_some() && !self.is_stopping() && punctual && self.restarts.is_late(now);
        hold(!late, 13, || format!("nobody follows {waits:?}"))
    }

    fn check_starting(&self, now: Time) -> Checked {
        let Some(Starting { monitor, due, failed, .. }) = self.starting else { return Ok(()) };
        hold(!failed, 7, || format!("{monitor:?} has failed, and starts on"))?;
        let due = self.starting.and_then(|starting| starting.room_due).or(self.baked_at(monitor)).unwrap_or(due);
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
        hold(!must_stop || ends, 7, || format!("{monitor:?} is not stopped"))?;
        let quickly = self.stop.quick.is_none() || watched.ordered.quick.is_some();
        hold(quickly, 6, || format!("{monitor:?} is not stopped quickly"))?;
        let overdue = watched.ordered.kill_due().is_some_and(|due| due + GRACE <= now) && !watched.killed;
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
