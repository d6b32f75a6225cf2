//! The watchdog by itself: a monitor's state, workers that say that they live, fall silent, are stopped by signals or
//! wedged, and a monitor that is stopped for a while. Nobody is aborted who has said in time that it lives, and whoever
//! falls silent is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use nix::sys::signal::Signal;
use panzer::config::{Schedule, Tuning};
use panzer::control::monitor::messages::{Order, Report, Urgency};
use panzer::monitor::decide::{Action, Event, Settings, Slots, Watch, Worker};
use panzer::worker::cause::Cause;

use crate::check::{Checked, Violation, hold};
use crate::choices::Choices;
use crate::configuration;
use crate::kernel::Time;

const HISTORIES: u64 = 5_000;

/// A history ends then.
const END: Time = Time::from_secs(60);

/// A worker may ask for so much more time while it is being stopped.
const MOST_EXTENSION: Time = Time::from_secs(16);

/// Bugs that are planted to check the checker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    NeverAborts,
    DoesNotHear,
    JudgesBeforeItReads,
    DoesNotKnowThatItIsLate,
    AbortsWhoWasStoppedAtATerminal,
    ForgetsContinuing,
    ForgetsTheExtension,
    WatchesWhoStarts,
    KillsAtOnce,
    HidesTheCause,
    NeverKillsTheWedged,
}

const BUGS: [Bug; 11] = [
    Bug::NeverAborts,
    Bug::DoesNotHear,
    Bug::JudgesBeforeItReads,
    Bug::DoesNotKnowThatItIsLate,
    Bug::AbortsWhoWasStoppedAtATerminal,
    Bug::ForgetsContinuing,
    Bug::ForgetsTheExtension,
    Bug::WatchesWhoStarts,
    Bug::KillsAtOnce,
    Bug::HidesTheCause,
    Bug::NeverKillsTheWedged,
];

#[derive(Debug, Clone)]
enum Happening {
    To(Event),
    /// The worker says that it lives, and when it does so next.
    Pings(Worker),
    /// The monitor is stopped until then.
    MonitorStops(Time),
    Ends(Worker, Cause),
}

/// What is known of a worker that lives.
#[derive(Debug, Clone, Default)]
struct Life {
    ready: bool,
    /// The monitor has heard, or may not expect to hear, until then.
    heard: Time,
    period: Time,
    extended_to: Time,
    /// A signal has stopped it, at a terminal or otherwise.
    halted: bool,
    stopped: bool,
    aborted: bool,
    wedged: bool,
    silent: bool,
    killed: bool,
    asked: bool,
}

struct World {
    now: Time,
    base: Instant,
    choices: Choices,
    state: Slots,
    period: Time,
    tuning: Tuning,
    agenda: BTreeMap<(Time, u64), Happening>,
    planned: u64,
    out_until: Time,
    workers: BTreeMap<Worker, Life>,
    stopping: bool,
    bug: Option<Bug>,
}

impl Life {
    /// It is to say by then that it lives.
    fn due(&self) -> Time {
        (self.heard + self.period).max(self.extended_to)
    }
}

impl World {
    fn new(mut choices: Choices, bug: Option<Bug>) -> World {
        let mut tuning = configuration::draw(&mut choices, panzer::config::Ready::Notify).tuning;
        tuning.stop = choices.among(&["TERM/2s/INT/1s/KILL", "TERM/500ms/KILL", "KILL"]).parse::<Schedule>().unwrap();
        (tuning.respawn_limit, tuning.start_delay) = (None, panzer::config::StartDelay::default());
        tuning.ready_timeout = Time::from_secs(600);
        tuning.final_exits = panzer::config::FinalExits::default();
        let period = choices.millis(&[400, 1_000, 5_000]);
        let settings = Settings {
            workers: 1 + choices.below(3) as u32,
            notify: true,
            watch: Watch::No,
            probe: false,
            has_listener: false,
            preload: false,
            refork: panzer::config::Refork::default(),
            watchdog: (bug != Some(Bug::NeverAborts)).then_some(period),
            tuning: tuning.clone(),
            ended: BTreeSet::new(),
            trial: false,
            seed: 1,
        };
        let base = Instant::now();
        World {
            now: Time::ZERO,
            base,
            choices,
            state: Slots::new(settings, base),
            period,
            tuning,
            agenda: BTreeMap::new(),
            planned: 0,
            out_until: Time::ZERO,
            workers: BTreeMap::new(),
            stopping: false,
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
            let at = self.choices.millis(&[3_000, 10_000, 25_000]);
            let length = self.choices.millis(&[100, 900, 5_000, 20_000]);
            self.plan(at, Happening::MonitorStops(at + length));
        }
        if self.choices.one_in(4) {
            let at = self.choices.millis(&[5_000, 20_000]);
            self.plan(at, Happening::To(Event::Ordered(Order::Stop(Urgency::Graceful))));
        }
        while self.now < END {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn of the loop: sleeps until something happens or is due, reads everything, and decides.
    fn turn(&mut self) -> Checked {
        let due = self.state.deadline().map(|due| due.saturating_duration_since(self.base));
        let next = self.agenda.keys().next().map(|(at, _)| *at);
        self.now = due.into_iter().chain(next).min().unwrap_or(END).max(self.now).max(self.out_until);
        let mut events = Vec::new();
        let woken_for_nothing = self.now < END && next.is_none_or(|at| at > self.now) && self.now > self.out_until;
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                Happening::To(event) => events.push(event),
                Happening::MonitorStops(until) => self.out_until = self.out_until.max(until),
                Happening::Pings(worker) => self.ping(worker, &mut events),
                Happening::Ends(worker, cause) => {
                    let alive = self.workers.contains_key(&worker);
                    events.extend(alive.then_some(Event::Ended(worker, cause)));
                }
            }
        }
        if self.bug == Some(Bug::JudgesBeforeItReads) {
            self.give(Event::Wake)?;
        }
        for event in events {
            self.note(&event);
            self.give(event)?;
        }
        let before = self.state.clone();
        self.give(Event::Wake)?;
        let idle = self.workers.values().all(|life| life.ready && !life.aborted) && !self.stopping;
        hold(!woken_for_nothing || !idle || self.state != before, 13, || "it wakes for nothing".to_owned())?;
        self.check_times()
    }

    /// It says so twice in a period, unless it cannot.
    fn ping(&mut self, worker: Worker, events: &mut Vec<Event>) {
        let Some(life) = self.workers.get(&worker).cloned() else { return };
        if life.silent || life.asked {
            return;
        }
        let again = self.choices.among(&[life.period / 2, life.period / 3, life.period * 9 / 10]);
        self.plan(again, Happening::Pings(worker));
        if !life.stopped && !life.aborted {
            events.push(Event::Lives(worker));
        }
    }

    /// What the monitor may go by from now on.
    fn note(&mut self, event: &Event) {
        let now = self.now;
        let mut heard = |worker: &Worker, change: &dyn Fn(&mut Life)| {
            if let Some(life) = self.workers.get_mut(worker) {
                change(life);
                life.heard = life.heard.max(now);
            }
        };
        match event {
            Event::Notified(worker) => heard(worker, &|life| life.ready = true),
            Event::Lives(worker) => heard(worker, &|_| ()),
            Event::WatchedEvery(worker, period) => heard(worker, &|life| life.period = *period),
            Event::Extends(worker, by) => drop(self.workers.entry(*worker).and_modify(|life| {
                life.extended_to = life.extended_to.max(now + *by);
            })),
            Event::Suspended(worker, signal) => {
                let at_a_terminal = *signal == Signal::SIGTSTP;
                self.workers.entry(*worker).and_modify(|life| {
                    (life.halted, life.stopped) = (life.halted || at_a_terminal, true);
                });
            }
            Event::Continued(worker) => heard(worker, &|life| (life.halted, life.stopped) = (false, false)),
            Event::IsBroken(worker) => heard(worker, &|life| life.asked = true),
            Event::Ordered(Order::Stop(_)) => self.stopping = true,
            _ => {}
        }
    }

    fn give(&mut self, event: Event) -> Checked {
        let event = match (self.bug, event) {
            (Some(Bug::DoesNotHear), Event::Lives(_)) => return Ok(()),
            (Some(Bug::ForgetsContinuing), Event::Continued(_)) => return Ok(()),
            (Some(Bug::ForgetsTheExtension), Event::Extends(..)) => return Ok(()),
            (Some(Bug::AbortsWhoWasStoppedAtATerminal), Event::Suspended(worker, _)) => {
                Event::Suspended(worker, Signal::SIGSTOP)
            }
            (Some(Bug::WatchesWhoStarts), Event::Executed(worker)) => {
                self.give_as_it_is(Event::Executed(worker))?;
                Event::Notified(worker)
            }
            (_, event) => event,
        };
        self.give_as_it_is(event)
    }

    fn give_as_it_is(&mut self, event: Event) -> Checked {
        let mut now = self.base + self.now;
        if let Some(due) = self.state.deadline().filter(|_| self.bug == Some(Bug::DoesNotKnowThatItIsLate)) {
            now = now.min(due);
        }
        let ended = if let Event::Ended(worker, _) = &event { self.workers.remove(worker) } else { None };
        let actions = self.state.on(now, event);
        if let Some(life) = ended.filter(|life| life.aborted && !self.stopping) {
            let told = actions.iter().any(|action| {
                let Action::Report(Report::Died { cause: Cause::Watchdog(time, _), .. }) = action else { return false };
                time.is_none() == life.asked && self.bug != Some(Bug::HidesTheCause)
            });
            hold(told, 7, || "that the watchdog ended a worker is not told".to_owned())?;
        }
        actions.into_iter().try_for_each(|action| self.perform(action))
    }

    fn perform(&mut self, action: Action) -> Checked {
        match action {
            Action::Spawn(worker) => self.spawn(worker),
            Action::Signal(worker, signal) => self.signal(worker, signal)?,
            _ => {}
        }
        Ok(())
    }

    fn spawn(&mut self, worker: Worker) {
        let period = self.choices.among(&[self.period, self.period, self.period * 3]);
        let life = Life { period: self.period, wedged: self.choices.one_in(4), ..Life::default() };
        self.workers.insert(worker, life);
        self.plan(Time::ZERO, Happening::To(Event::Executed(worker)));
        let ready = self.choices.millis(&[0, 300, 8_000]);
        self.plan(ready, Happening::To(Event::Notified(worker)));
        if period != self.period {
            self.plan(ready, Happening::To(Event::WatchedEvery(worker, period)));
        }
        self.plan(ready, Happening::Pings(worker));
        let at = ready + self.choices.millis(&[1_000, 7_000, 20_000]);
        let rest = self.choices.millis(&[50, 3_000, 15_000]);
        match self.choices.below(7) {
            0 => self.plan(at, Happening::To(Event::IsBroken(worker))),
            1 => {
                let signal = self.choices.among(&[Signal::SIGTSTP, Signal::SIGSTOP]);
                self.plan(at, Happening::To(Event::Suspended(worker, signal)));
                self.plan(at + rest, Happening::To(Event::Continued(worker)));
            }
            2 => {
                self.plan(ready + Time::from_millis(50), Happening::To(Event::Extends(worker, rest)));
                self.workers.entry(worker).and_modify(|life| life.silent = true);
            }
            3 => self.plan(at, Happening::Ends(worker, Cause::Exited(1))),
            4 | 5 => {
                // Silent from the beginning, but for its word that it is ready.
                self.workers.entry(worker).and_modify(|life| life.silent = true);
            }
            _ => {}
        }
    }

    fn signal(&mut self, worker: Worker, signal: Signal) -> Checked {
        let Some(life) = self.workers.get(&worker).cloned() else { return Ok(()) };
        let signal = if self.bug == Some(Bug::KillsAtOnce) && !life.aborted { Signal::SIGKILL } else { signal };
        if !self.stopping && !life.aborted {
            hold(signal == Signal::SIGABRT, 6, || format!("{worker:?} gets {signal} before it was aborted"))?;
            hold(life.ready || life.asked, 1, || format!("{worker:?} is aborted, and is not ready"))?;
            let (now, due) = (self.now, life.due());
            let silent = life.asked || (now >= due && now < due + life.period / 4 && !life.halted);
            hold(silent, 1, || format!("{worker:?} is aborted at {now:?}: {life:?}"))?;
        }
        let ends = match signal {
            Signal::SIGKILL if self.bug != Some(Bug::NeverKillsTheWedged) => Some(Cause::Killed(9, false)),
            _ if life.wedged => None,
            Signal::SIGABRT => Some(Cause::Killed(6, true)),
            _ => Some(Cause::Exited(0)),
        };
        ends.into_iter().for_each(|cause| self.plan(Time::from_millis(10), Happening::Ends(worker, cause)));
        let now = self.now;
        self.workers.entry(worker).and_modify(|life| {
            (life.aborted, life.killed) = (true, signal == Signal::SIGKILL);
            life.heard = if signal == Signal::SIGKILL || !life.killed { now } else { life.heard };
        });
        Ok(())
    }

    /// Whoever has fallen silent is aborted in time, and whoever was aborted ends.
    fn check_times(&mut self) -> Checked {
        let (now, bound) = (self.now, self.tuning.stop.clone().after_abort().total() + MOST_EXTENSION);
        for (worker, life) in &mut self.workers {
            let silence = now.saturating_sub(life.heard);
            if life.aborted {
                hold(silence <= bound || self.out_until + bound >= now, 6, || format!("{worker:?} does not end"))?;
                continue;
            }
            if !life.ready || life.halted || self.stopping || now < life.due() {
                continue;
            }
            // A monitor that was late itself begins anew.
            hold(now >= life.due() + life.period / 4, 13, || format!("{worker:?} is silent, and not aborted"))?;
            life.heard = now;
        }
        Ok(())
    }
}

fn play(seed: u64, bug: Option<Bug>) -> Result<(), Violation> {
    World::new(Choices::from_seed(seed), bug).live()
}

#[test]
fn the_watchdog_aborts_the_silent_and_nobody_else() {
    for seed in 0..HISTORIES {
        if let Err(violation) = play(seed, None) {
            panic!("history {seed}: {violation}");
        }
    }
}

#[test]
fn every_planted_bug_of_the_watchdog_is_found() {
    for bug in BUGS {
        let found = (0..HISTORIES).find_map(|seed| play(seed, Some(bug)).err());
        println!("{bug:?}: {}", found.unwrap_or_else(|| panic!("{bug:?} is not found")).what);
    }
}
