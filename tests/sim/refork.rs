//! Reforking by itself: a monitor's state with workers that grow warm, of which one after the other is to become the mold: it
//! does, refuses, dies or hangs, while workers and molds die, and an operator scales and stops. Nobody is stopped before
//! another is ready in its slot, there is one mold at a time, and in the end all workers are forks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use nix::sys::signal::Signal;
use panzer::backoff::Pace;
use panzer::config::{FinalExits, Ready, Recycling, Refork, ReforkAfter, StartDelay};
use panzer::control::monitor::messages::{Order, Urgency, Which};
use panzer::monitor::decide::{Action, Event, Note, Settings, Slots, Watch, Worker};
use panzer::worker::cause::Cause;

use crate::check::{Checked, hold};
use crate::choices::Choices;
use crate::configuration;
use crate::kernel::Time;

const HISTORIES: u64 = 1_000;

/// A history ends then. Nobody is disturbed in its last minutes.
const END: Time = Time::from_secs(150);

/// A mold that was told to end is gone then.
const MOST_UNTIL_KILL: Time = Time::from_secs(12);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    NeverAsks,
    AsksTooLate,
    OverlooksTheWilling,
    PromotesAnyone,
    ForksByTheOld,
    KeepsTheOldMold,
    KeepsTheOthers,
    StopsTheOnlyOne,
    LoadsBeside,
    OverlooksACandidatesEnd,
    LeavesACandidateWaiting,
}

const BUGS: [Bug; 11] = [
    Bug::NeverAsks,
    Bug::AsksTooLate,
    Bug::OverlooksTheWilling,
    Bug::PromotesAnyone,
    Bug::ForksByTheOld,
    Bug::KeepsTheOldMold,
    Bug::KeepsTheOthers,
    Bug::StopsTheOnlyOne,
    Bug::LoadsBeside,
    Bug::OverlooksACandidatesEnd,
    Bug::LeavesACandidateWaiting,
];

#[derive(Debug, Clone)]
enum Happening {
    To(Event),
    Serves(Worker),
    Ends(Worker),
    /// A mold or a worker dies, whoever it is by then.
    Dies(bool),
}

/// What a worker does that is asked to become the mold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Candidate {
    Willing(Time),
    Refuses(Time),
    Dies(Time),
    Hangs,
}

/// A process that lives: a worker or a mold.
#[derive(Debug, Clone, Default)]
struct Life {
    /// The life of the mold that has forked it.
    mold: u32,
    ready: bool,
    told: Option<Time>,
    asked: Option<Candidate>,
    willing: bool,
    requests: u64,
}

struct World {
    now: Time,
    base: Instant,
    choices: Choices,
    state: Slots,
    agenda: BTreeMap<(Time, u64), Happening>,
    planned: u64,
    alive: BTreeMap<Worker, Life>,
    open: BTreeMap<u64, Worker>,
    wanted: u32,
    retired: BTreeSet<u32>,
    stopped: bool,
    exited: bool,
    reforked: u32,
    refused: bool,
    bug: Option<Bug>,
    trace: Option<Vec<String>>,
}

impl World {
    fn new(mut choices: Choices, bug: Option<Bug>) -> World {
        let mut tuning = configuration::draw(&mut choices, Ready::Notify).tuning;
        tuning.stop = "TERM/2s/INT/1s/KILL".parse().unwrap();
        (tuning.retire, tuning.respawn_limit, tuning.start_delay) = (None, None, StartDelay::default());
        (tuning.ready_timeout, tuning.final_exits) = (Time::from_secs(5), FinalExits::default());
        let delays = (Time::from_millis(100), Time::from_secs(4));
        tuning.pace = Pace { delay: delays.0, delay_max: delays.1, healthy_after: Time::from_secs(1) };
        tuning.recycling = Recycling::default();
        let first = choices.among(&[ReforkAfter::Age(Time::from_secs(10)), ReforkAfter::Requests(4)]);
        let later = choices.among(&[ReforkAfter::Age(Time::from_secs(86_400)), ReforkAfter::Age(Time::from_secs(40))]);
        let settings = Settings {
            workers: 1 + choices.below(3) as u32,
            notify: true,
            watch: Watch::No,
            probe: false,
            has_listener: false,
            preload: true,
            refork: Refork(vec![first, later, ReforkAfter::Age(Time::from_secs(86_400))]),
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
            wanted: settings.workers,
            state: Slots::new(settings, base),
            agenda: BTreeMap::new(),
            planned: 0,
            alive: BTreeMap::new(),
            open: BTreeMap::new(),
            retired: BTreeSet::new(),
            stopped: false,
            exited: false,
            reforked: 0,
            refused: false,
            bug,
            trace: None,
        }
    }

    fn plan(&mut self, after: Time, what: Happening) {
        self.planned += 1;
        self.agenda.insert((self.now + after, self.planned), what);
    }

    fn live(&mut self) -> Checked {
        self.give(Event::Start)?;
        for _ in 0..self.choices.below(4) {
            let at =
                self.choices.millis(&[500, 10_003, 10_060, 11_000, 50_000]) + Time::from_millis(self.choices.below(90));
            let is_mold = self.choices.below(2) == 0;
            let scaled = Event::Ordered(Order::Scale { workers: 1 + self.choices.below(4) as u32, which: Which::Last });
            let what = if self.choices.one_in(4) { Happening::To(scaled) } else { Happening::Dies(is_mold) };
            self.plan(at, what);
        }
        if self.choices.one_in(4) {
            let at = self.choices.millis(&[10_010, 10_070, 12_000, 60_000]);
            self.plan(at, Happening::To(Event::Ordered(Order::Stop(Urgency::Graceful))));
        }
        while self.now < END {
            let due = self.state.deadline().map(|due| due.saturating_duration_since(self.base));
            let next = self.agenda.keys().next().map(|(at, _)| *at);
            self.now = due.into_iter().chain(next).min().unwrap_or(END).max(self.now);
            hold(self.planned < 50_000, 13, || "never comes to rest".to_owned())?;
            while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let what = entry.remove();
                self.happen(what)?;
            }
            self.planned += 1;
            self.give(Event::Wake)?;
            self.check_times()?;
        }
        self.check_end()
    }

    fn happen(&mut self, what: Happening) -> Checked {
        match what {
            Happening::To(event) => self.give(event),
            Happening::Serves(worker) => {
                let Some(life) = self.alive.get_mut(&worker).filter(|life| life.told.is_none()) else { return Ok(()) };
                life.requests += 1;
                let served = Event::Served(worker, life.requests);
                self.plan(Time::from_secs(3), Happening::Serves(worker));
                self.give(served)
            }
            Happening::Ends(worker) if self.alive.contains_key(&worker) => self.end(worker),
            Happening::Ends(_) => Ok(()),
            Happening::Dies(is_mold) => {
                let victims: Vec<Worker> = self.alive.keys().copied().filter(|it| it.is_mold() == is_mold).collect();
                let victim = (!victims.is_empty()).then(|| self.choices.among(&victims));
                victim.map_or(Ok(()), |victim| self.end(victim))
            }
        }
    }

    fn end(&mut self, worker: Worker) -> Checked {
        let life = self.alive.remove(&worker).unwrap_or_default();
        hold(!life.willing || self.stopped, 5, || format!("{worker:?} is willing to be the mold, and is not made so"))?;
        if worker.is_mold() && life.told.is_none() {
            self.open.clear();
        }
        if self.bug == Some(Bug::OverlooksACandidatesEnd) && life.asked.is_some() {
            return Ok(());
        }
        self.give(Event::Ended(worker, Cause::Killed(9, false)))
    }

    fn mold(&self) -> Option<Worker> {
        let serves = |(worker, life): &(&Worker, &Life)| worker.is_mold() && life.told.is_none();
        self.alive.iter().filter(serves).map(|(worker, _)| *worker).next_back()
    }

    fn give(&mut self, event: Event) -> Checked {
        match &event {
            Event::Executed(worker) | Event::Notified(worker) if !self.alive.contains_key(worker) => return Ok(()),
            Event::Notified(worker) => drop(self.alive.entry(*worker).and_modify(|life| life.ready = true)),
            Event::Willing(worker, _) | Event::Unwilling(worker, _) => {
                let Some(life) = self.alive.get_mut(worker) else { return Ok(()) };
                life.willing = matches!(event, Event::Willing(..));
                if self.bug == Some(Bug::OverlooksTheWilling) {
                    return Ok(());
                }
            }
            Event::MoldReady(_) => {
                let Some(mold) = self.mold() else { return Ok(()) };
                self.alive.entry(mold).and_modify(|life| life.ready = true);
            }
            Event::Born(ticket) | Event::Unborn(ticket, _) if !self.open.contains_key(ticket) => return Ok(()),
            Event::Ordered(Order::Scale { workers, .. }) if !self.stopped => self.wanted = *workers,
            Event::Ordered(Order::Stop(_)) => self.stopped = true,
            _ => {}
        }
        let mut actions = self.state.on(self.base + self.now, event.clone());
        if let Event::Unborn(ticket, _) = event {
            self.open.remove(&ticket);
        }
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12?} {event:?} -> {actions:?}", self.now));
        }
        self.spoil(&mut actions);
        if let Event::Willing(worker, _) = &event {
            let answers =
                |action: &Action| matches!(action, Action::Promote(it, _) | Action::Decline(it) if it == worker);
            hold(actions.iter().any(answers), 6, || {
                format!("{worker:?} is willing to be the mold, and waits for ever")
            })?;
        }
        // As the monitor does.
        let is_start = |action: &Action| match action {
            Action::Promote(..) => self.bug != Some(Bug::ForksByTheOld),
            action => matches!(action, Action::Spawn(_) | Action::Fork(..)),
        };
        let (starts, others): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_start);
        starts.into_iter().chain(others).try_for_each(|action| self.perform(action, &event))
    }

    fn spoil(&mut self, actions: &mut Vec<Action>) {
        let promotes = actions.iter().any(|action| matches!(action, Action::Promote(..)));
        let ready = self.alive.iter().filter(|(worker, life)| !worker.is_mold() && life.ready && life.told.is_none());
        let anyone = ready.map(|(worker, _)| *worker).next();
        match self.bug {
            Some(Bug::LeavesACandidateWaiting) => actions.retain(|action| !matches!(action, Action::Decline(_))),
            Some(Bug::NeverAsks) => actions.retain(|action| !matches!(action, Action::WantAsMold(_))),
            Some(Bug::AsksTooLate) => actions.sort_by_key(|action| matches!(action, Action::WantAsMold(_))),
            Some(Bug::PromotesAnyone) if self.now > Time::from_secs(5) => {
                let any = anyone.filter(|_| self.reforked == 0);
                actions.extend(any.map(|any| Action::Promote(any, Worker { slot: Worker::MOLD, life: 9 })));
            }
            Some(Bug::KeepsTheOldMold) => {
                actions
                    .retain(|action| !matches!(action, Action::Signal(worker, _) if worker.is_mold() && !self.stopped));
            }
            Some(Bug::KeepsTheOthers) if self.reforked > 0 => {
                actions.retain(|action| !matches!(action, Action::Fork(..)));
            }
            Some(Bug::StopsTheOnlyOne) if promotes => {
                actions.extend(anyone.map(|any| Action::Signal(any, Signal::SIGTERM)));
            }
            Some(Bug::LoadsBeside) if promotes => {
                actions.push(Action::Spawn(Worker { slot: Worker::MOLD, life: 77 }));
            }
            _ => {}
        }
        if self.bug == Some(Bug::AsksTooLate)
            && let Some(Action::WantAsMold(worker)) = actions.last()
        {
            let signal = Action::Signal(*worker, Signal::SIGTERM);
            actions.insert(actions.len() - 1, signal);
        }
    }

    fn perform(&mut self, action: Action, event: &Event) -> Checked {
        match action {
            Action::Spawn(worker) => {
                hold(worker.is_mold() && self.mold().is_none(), 4, || format!("{worker:?} is loaded beside a mold"))?;
                hold(!self.stopped, 6, || "a mold is loaded after a stop".to_owned())?;
                self.refused = false;
                self.reforked = 0;
                self.alive.insert(worker, Life::default());
                self.plan(Time::from_millis(3), Happening::To(Event::Executed(worker)));
                self.plan(Time::from_millis(40), Happening::To(Event::MoldReady(true)));
                Ok(())
            }
            Action::Fork(worker, ticket) => {
                let mold = self.mold().filter(|mold| self.alive[mold].ready);
                hold(mold.is_some(), 4, || format!("{worker:?} is asked of nobody"))?;
                hold(!matches!(event, Event::Willing(..)) || self.alive.values().all(|life| !life.willing), 4, || {
                    format!("{worker:?} is asked of a mold that is about to end")
                })?;
                self.open.insert(ticket, worker);
                let answer = if self.choices.one_in(20) {
                    Event::Unborn(ticket, "no memory".to_owned())
                } else {
                    Event::Born(ticket)
                };
                let after = self.choices.millis(&[2, 40]);
                self.plan(after, Happening::To(answer));
                Ok(())
            }
            Action::Adopt(worker) => {
                self.open.retain(|_, other| *other != worker);
                let mold = self.mold().map_or(0, |mold| mold.life);
                self.alive.insert(worker, Life { mold, ..Life::default() });
                if !self.choices.one_in(15) {
                    let after = self.choices.millis(&[5, 60, 1_000]);
                    self.plan(after, Happening::To(Event::Notified(worker)));
                }
                self.plan(Time::from_secs(1), Happening::Serves(worker));
                Ok(())
            }
            Action::Dismiss => {
                if let Some(mold) = self.mold() {
                    self.tell_mold(mold);
                }
                Ok(())
            }
            Action::WantAsMold(worker) => self.ask(worker),
            Action::Decline(worker) => {
                self.plan(Time::from_millis(10), Happening::Ends(worker));
                Ok(())
            }
            Action::Promote(worker, mold) => self.promote(worker, mold),
            Action::Signal(worker, signal) => self.signal(worker, signal),
            Action::Note(Note::NotReforked(worker, _)) => {
                self.refused = true;
                let was_asked = matches!(event, Event::Unwilling(..))
                    || matches!(event, Event::Ended(ended, _) if *ended == worker && self.bug != Some(Bug::NeverAsks));
                hold(was_asked, 7, || format!("{worker:?} was never asked"))
            }
            Action::Report(panzer::control::monitor::messages::Report::Retired { slot, empty }) => {
                self.retired.extend((!empty).then_some(slot));
                Ok(())
            }
            Action::Report(panzer::control::monitor::messages::Report::Gone { slot }) => {
                self.retired.remove(&slot);
                Ok(())
            }
            Action::Exit => {
                self.exited = true;
                hold(self.stopped && self.alive.is_empty(), 6, || format!("ends before {:?}", self.alive))
            }
            _ => Ok(()),
        }
    }

    fn ask(&mut self, worker: Worker) -> Checked {
        let others = self.alive.values().filter(|life| life.asked.is_some()).count();
        hold(others == 0, 4, || "two workers are to become the mold".to_owned())?;
        let short = self.choices.millis(&[1, 30, 1_500, 2_500]);
        let does = match self.choices.below(8) {
            0 => Candidate::Refuses(short),
            1 => Candidate::Dies(short),
            2 => Candidate::Hangs,
            _ => Candidate::Willing(short),
        };
        let Some(life) = self.alive.get_mut(&worker) else { return Ok(()) };
        hold(life.told.is_none(), 1, || format!("{worker:?} is told to end before it is asked"))?;
        life.asked = Some(does);
        match does {
            Candidate::Willing(after) => self.plan(after, Happening::To(Event::Willing(worker, true))),
            Candidate::Refuses(after) => {
                self.plan(after, Happening::To(Event::Unwilling(worker, "no".to_owned())));
                self.plan(after + Time::from_millis(5), Happening::Ends(worker));
            }
            Candidate::Dies(after) => self.plan(after, Happening::Ends(worker)),
            Candidate::Hangs => {}
        }
        Ok(())
    }

    fn promote(&mut self, worker: Worker, mold: Worker) -> Checked {
        let willing = self.alive.get(&worker).is_some_and(|life| life.asked.is_some() && life.willing);
        hold(willing, 4, || format!("{worker:?} is made the mold, and has not said that it is willing"))?;
        if let Some(old) = self.mold() {
            self.tell_mold(old);
        }
        hold(!self.alive.contains_key(&mold), 4, || format!("{mold:?} is there already"))?;
        self.alive.remove(&worker);
        self.alive.insert(mold, Life { ready: true, ..Life::default() });
        self.reforked += 1;
        Ok(())
    }

    /// It ends by itself, or only when it is killed.
    fn tell_mold(&mut self, mold: Worker) {
        self.open.clear();
        self.alive.entry(mold).and_modify(|life| life.told = Some(self.now));
        if !self.choices.one_in(3) {
            self.plan(Time::from_millis(20), Happening::Ends(mold));
        }
    }

    fn signal(&mut self, worker: Worker, signal: Signal) -> Checked {
        let stands_in = |(other, life): (&Worker, &Life)| {
            other.slot == worker.slot && *other != worker && life.ready && life.told.is_none()
        };
        let meant = self.stopped || self.retired.contains(&worker.slot) || self.alive.iter().any(stands_in);
        let now = self.now;
        let Some(life) = self.alive.get_mut(&worker) else { return Ok(()) };
        hold(meant || worker.is_mold() || !life.ready || life.told.is_some(), 1, || {
            format!("{worker:?} is stopped before another is ready")
        })?;
        hold(!worker.is_mold() || life.told.is_some() || self.stopped, 1, || format!("{signal} for the mold"))?;
        life.told.get_or_insert(now);
        let holds_out = life.asked.is_some() || worker.is_mold();
        let ends = signal == Signal::SIGKILL || !holds_out;
        if ends {
            self.plan(Time::from_millis(10), Happening::Ends(worker));
        }
        Ok(())
    }

    fn check_times(&self) -> Checked {
        let overdue = |(_, life): &(&Worker, &Life)| life.told.is_some_and(|told| self.now > told + MOST_UNTIL_KILL);
        let outlives = self.alive.iter().find(overdue);
        hold(outlives.is_none(), 6, || format!("outlives its end: {outlives:?}"))
    }

    fn check_end(&self) -> Checked {
        if self.stopped {
            return hold(self.exited, 6, || format!("never comes to an end: {:?}", self.alive));
        }
        let workers: Vec<_> = self.alive.iter().filter(|(worker, _)| !worker.is_mold()).collect();
        hold(workers.len() == self.wanted as usize, 13, || format!("not {} workers: {workers:?}", self.wanted))?;
        let Some(mold) = self.mold() else { return hold(false, 13, || "there is no mold".to_owned()) };
        hold(self.reforked > 0 || self.refused, 13, || "nobody became the mold".to_owned())?;
        let all_new = self.reforked == 0 || workers.iter().all(|(_, life)| life.mold == mold.life);
        hold(all_new, 13, || format!("some are not forks of {mold:?}: {workers:?}"))?;
        hold(self.alive.len() == workers.len() + 1, 13, || format!("more than workers and a mold: {:?}", self.alive))
    }
}

fn play(seed: u64, bug: Option<Bug>) -> Checked {
    World::new(Choices::from_seed(seed), bug).live()
}

#[test]
fn reforking_keeps_every_invariant() {
    for seed in 0..HISTORIES {
        if play(seed, None).is_err() {
            let mut world = World::new(Choices::from_seed(seed), None);
            world.trace = Some(Vec::new());
            let violation = world.live().unwrap_err();
            panic!("history {seed}: {violation}\n{}", world.trace.unwrap_or_default().join("\n"));
        }
    }
}

#[test]
fn every_planted_bug_of_reforking_is_found() {
    for bug in BUGS {
        let found = (0..HISTORIES).find_map(|seed| play(seed, Some(bug)).err());
        println!("{bug:?}: {}", found.unwrap_or_else(|| panic!("{bug:?} is not found")).what);
    }
}
