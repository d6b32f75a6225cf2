//! A monitor whose program is loaded once: its state with molds that are slow, dead, stuck or late, that lie, fork twice
//! or send rubbish, and an operator who scales, commits and stops. The invariants are checked after every event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use panzer::control::monitor::messages::{Order, Report, Urgency, Which};
use panzer::monitor::decide::{Action, Event, Note, Settings, Slots, Watch, Worker};
use panzer::worker::cause::Cause;

use crate::check::{Checked, hold};
use crate::choices::Choices;
use crate::configuration;
use crate::kernel::Time;

/// As the state has it.
const MAX_TICKETS: usize = 16;

/// What a broken mold is given until its KILL: three signals at most, and as many waits.
const MOST_UNTIL_KILL: Time = Duration::from_secs(8);

/// No history has more events.
const MOST_STEPS: u32 = 20_000;

const HISTORIES: u64 = 20_000;

macro_rules! bugs {
    ($($bug:ident)*) => {
        /// A bug that is planted to check the checker.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Bug {
            $($bug),*
        }

        const BUGS: &[Bug] = &[$(Bug::$bug),*];
    };
}

bugs! {
    TakesAnyTicket
    TakesTheSecond
    ToleratesRubbish
    ToleratesSilence
    NeverDismisses
    NeverSignalsTheMold
    LoadsTwo
    LoadsAfterStop
    NeverLoadsAnother
    KeepsItsFailure
    TellsItTwice
    EndsWorkersWithTheMold
    ForgetsTheTickets
    AsksTwice
    AsksTheLoading
    AsksTooMuch
    AdoptsNobody
    OverlooksItsEnd
}

/// What a mold does.
#[derive(Debug, Clone)]
struct Script {
    exec: Option<Time>,
    loads: Load,
    forks: Vec<Fork>,
    dies: Option<Time>,
    ends: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Ready(Time),
    Fails(Time),
    Exits(Time),
    Rubbish(Time),
    Closes(Time),
    ReadyTwice(Time),
    Never,
}

/// What becomes of one FORK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fork {
    Born(Time),
    Unborn(Time),
    Twice(Time),
    Another(Time),
    Dies(Time),
    Rubbish(Time),
    Never,
}

impl Script {
    fn draw(choices: &mut Choices, trouble: u64) -> Script {
        let soon = |choices: &mut Choices| choices.millis(&[0, 3, 50]);
        let troubled = choices.one_in(trouble);
        let mut script = Script {
            exec: Some(soon(choices)),
            loads: Load::Ready(choices.millis(&[5, 100, 400])),
            forks: vec![Fork::Born(soon(choices))],
            dies: None,
            ends: Some(soon(choices)),
        };
        if !troubled {
            return script;
        }
        let at = choices.millis(&[10, 300, 4_000]);
        match choices.below(12) {
            0 => script.exec = None,
            1 => script.loads = Load::Fails(at),
            2 => script.loads = Load::Exits(at),
            3 => script.loads = Load::Rubbish(at),
            4 => script.loads = Load::Closes(at),
            5 => script.loads = Load::ReadyTwice(at),
            6 => script.loads = choices.among(&[Load::Never, Load::Ready(Time::from_secs(30))]),
            7 => script.dies = Some(at),
            8 => script.ends = choices.among(&[None, Some(Time::from_secs(3))]),
            _ => {
                let late = choices.millis(&[1, 700, 30_000]);
                let bad = [Fork::Unborn(late), Fork::Twice(late), Fork::Another(late), Fork::Dies(late), Fork::Never];
                let bad = choices.among(&[&bad[..], &[Fork::Rubbish(late), Fork::Born(Time::from_secs(40))]].concat());
                script.forks.push(bad);
                script.forks.extend((0..choices.below(3)).map(|_| Fork::Born(Time::ZERO)));
                script.forks.rotate_left(1);
            }
        }
        script
    }
}

/// What comes at a time of its own. A mold by its life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Timer,
    MoldExecutes(u32),
    MoldSays(u32, Said),
    MoldEnds(u32),
    WorkerEnds(Worker),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Ready,
    Failed,
    Rubbish,
    Closed,
    Born(u64),
    Unborn(u64),
}

#[derive(Debug)]
struct Mold {
    life: u32,
    script: Script,
    executed: bool,
    ready: bool,
    /// Its socket is open, as the monitor has it.
    heard: bool,
    /// It is told to end since then.
    told: Option<Time>,
    signalled: bool,
    forks: usize,
    failure_told: bool,
}

struct World {
    now: Time,
    base: Instant,
    choices: Choices,
    settings: Settings,
    state: Slots,
    trouble: u64,
    agenda: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    planned: u64,
    mold: Option<Mold>,
    /// Tickets that are open at the mold that is there, and since when nothing was answered.
    open: BTreeMap<u64, Worker>,
    silent_since: Time,
    last_ticket: u64,
    workers: BTreeMap<u32, Worker>,
    /// Workers that were told to end, and slots of which nobody is wanted any more.
    ending: BTreeSet<Worker>,
    retired: BTreeSet<u32>,
    wanted: u32,
    trial: bool,
    /// A trial that has failed starts nothing any more.
    failed: bool,
    told_on_trial: bool,
    stopping: bool,
    gave_up: bool,
    exited: bool,
    /// When the last mold ended, if no other was loaded since.
    mold_ended: Option<Time>,
    bug: Option<Bug>,
    trace: Option<Vec<String>>,
}

impl World {
    fn new(mut choices: Choices, bug: Option<Bug>) -> World {
        let drawn = configuration::draw(&mut choices, panzer::config::Ready::Alive);
        let mut tuning = drawn.tuning;
        tuning.start_delay = panzer::config::StartDelay::default();
        let settings = Settings {
            workers: drawn.workers,
            notify: false,
            watch: Watch::No,
            probe: false,
            has_listener: false,
            preload: true,
            refork: panzer::config::Refork::default(),
            watchdog: None,
            tuning,
            ended: BTreeSet::new(),
            trial: choices.below(2) == 1,
            seed: 1,
        };
        let base = Instant::now();
        let (trouble, wanted, trial) = (choices.among(&[1, 2, 3, 6]), settings.workers, settings.trial);
        World {
            now: Time::ZERO,
            base,
            choices,
            state: Slots::new(settings.clone(), base),
            settings,
            trouble,
            agenda: BinaryHeap::new(),
            planned: 0,
            mold: None,
            open: BTreeMap::new(),
            silent_since: Time::ZERO,
            last_ticket: 0,
            workers: BTreeMap::new(),
            ending: BTreeSet::new(),
            retired: BTreeSet::new(),
            wanted,
            trial,
            failed: false,
            told_on_trial: false,
            stopping: false,
            gave_up: false,
            exited: false,
            mold_ended: None,
            bug,
            trace: None,
        }
    }

    fn plan(&mut self, after: Time, what: Happening) {
        self.planned += 1;
        self.agenda.push(Reverse((self.now + after, self.planned, what)));
    }

    fn live(&mut self) -> Checked {
        self.give(Event::Start)?;
        for _ in 0..self.choices.below(8) {
            let gap = self.choices.millis(&[700, 0, 5, 60, 3_000, 20_000]);
            self.run_until(self.now + gap)?;
            self.interfere()?;
        }
        if self.trial && !self.failed {
            self.commit()?;
        }
        self.trouble = 1;
        if let Some(mold) = &mut self.mold {
            mold.script.forks = vec![Fork::Born(Time::ZERO)];
        }
        self.run_until(self.now + Time::from_secs(300))?;
        let whole = self.workers.len() == self.wanted as usize && self.mold.as_ref().is_some_and(|mold| mold.ready);
        let meant = !self.stopping && !self.gave_up && !self.failed;
        hold(!meant || whole, 13, || {
            format!("{} of {} workers are there, with the mold {:?}", self.workers.len(), self.wanted, self.mold)
        })?;
        hold(!meant || self.state.deadline().is_none(), 13, || "wakes though there is nothing to do".to_owned())?;
        self.stop(Urgency::Graceful)?;
        self.run_until(self.now + Time::from_secs(300))?;
        hold(self.exited, 6, || "never comes to an end".to_owned())
    }

    fn interfere(&mut self) -> Checked {
        match self.choices.below(12) {
            0..=1 => {
                let mold = self.mold.as_ref().map(|mold| mold.life);
                mold.map_or(Ok(()), |life| self.happen(Happening::MoldEnds(life)))
            }
            2..=4 => {
                let workers: Vec<Worker> = self.workers.values().copied().collect();
                let victim = (!workers.is_empty()).then(|| self.choices.among(&workers));
                victim.map_or(Ok(()), |worker| self.happen(Happening::WorkerEnds(worker)))
            }
            5..=6 if !self.gave_up && !self.stopping && !self.trial => {
                self.wanted = self.choices.below(6) as u32;
                let which = self.choices.among(&[Which::Last, Which::First, Which::Oldest]);
                self.give(Event::Ordered(Order::Scale { workers: self.wanted, which }))
            }
            7 if self.trial && !self.failed => self.commit(),
            8 => self.stop(self.choices_of_stop()),
            9 => self.say(Said::Rubbish),
            _ => Ok(()),
        }
    }

    fn choices_of_stop(&self) -> Urgency {
        if self.planned.is_multiple_of(2) { Urgency::Graceful } else { Urgency::Quick }
    }

    fn commit(&mut self) -> Checked {
        self.trial = false;
        self.told_on_trial = self.mold.as_ref().is_some_and(|mold| mold.failure_told);
        self.give(Event::Ordered(Order::Commit))
    }

    fn stop(&mut self, urgency: Urgency) -> Checked {
        self.stopping = true;
        self.give(Event::Ordered(Order::Stop(urgency)))
    }

    fn run_until(&mut self, until: Time) -> Checked {
        let mut steps = 0;
        loop {
            let deadline = self.state.deadline().map(|due| due.saturating_duration_since(self.base).max(self.now));
            let next = self.agenda.peek().map(|Reverse((at, ..))| *at);
            let timer = deadline.filter(|due| next.is_none_or(|next| *due < next));
            let Some(at) = timer.or(next).filter(|at| *at <= until) else { break };
            steps += 1;
            hold(steps < MOST_STEPS, 13, || "never comes to rest".to_owned())?;
            self.now = self.now.max(at);
            let what = match timer {
                Some(_) => Happening::Timer,
                None => self.agenda.pop().map_or(Happening::Timer, |Reverse((.., what))| what),
            };
            self.happen(what)?;
        }
        self.now = until;
        Ok(())
    }

    fn happen(&mut self, what: Happening) -> Checked {
        match what {
            Happening::Timer => self.give(Event::Wake),
            Happening::MoldExecutes(life) => {
                let Some(mold) = self.mold.as_mut().filter(|mold| mold.life == life) else { return Ok(()) };
                mold.executed = true;
                let loads = mold.script.loads;
                let mut says = |after, said| self.plan(after, Happening::MoldSays(life, said));
                match loads {
                    Load::Ready(after) => says(after, Said::Ready),
                    Load::ReadyTwice(after) => [after, after * 2].into_iter().for_each(|at| says(at, Said::Ready)),
                    Load::Fails(after) => says(after, Said::Failed),
                    Load::Rubbish(after) => says(after, Said::Rubbish),
                    Load::Closes(after) => says(after, Said::Closed),
                    Load::Exits(after) => self.plan(after, Happening::MoldEnds(life)),
                    Load::Never => {}
                }
                self.give(Event::Executed(Worker { slot: Worker::MOLD, life }))
            }
            Happening::MoldSays(life, said) => {
                if self.mold.as_ref().is_some_and(|mold| mold.life == life) {
                    self.say(said)
                } else {
                    Ok(())
                }
            }
            Happening::MoldEnds(life) => self.end_mold(life),
            Happening::WorkerEnds(worker) => {
                if self.workers.get(&worker.slot) != Some(&worker) {
                    return Ok(());
                }
                self.workers.remove(&worker.slot);
                self.ending.remove(&worker);
                self.failed |= self.trial;
                self.give(Event::Ended(worker, Cause::Killed(9, false)))
            }
        }
    }

    fn end_mold(&mut self, life: u32) -> Checked {
        let Some(mold) = self.mold.take_if(|mold| mold.life == life) else { return Ok(()) };
        self.open.clear();
        self.mold_ended = Some(self.now);
        let told = mold.failure_told;
        self.failed |= self.trial;
        if self.bug == Some(Bug::OverlooksItsEnd) {
            return Ok(());
        }
        self.give_with(Event::Ended(Worker { slot: Worker::MOLD, life }, Cause::Exited(1)), Some(told))
    }

    /// Something comes on the mold's socket: from it, or from what it has forked.
    fn say(&mut self, said: Said) -> Checked {
        let Some(mold) = self.mold.as_mut().filter(|mold| mold.heard) else { return Ok(()) };
        let loads = mold.executed && !mold.ready && mold.told.is_none();
        let breaks = match &said {
            Said::Ready => {
                mold.ready |= loads;
                self.silent_since = self.now;
                !loads
            }
            Said::Failed | Said::Rubbish => true,
            Said::Closed => {
                mold.heard = false;
                false
            }
            Said::Born(ticket) | Said::Unborn(ticket) => {
                self.silent_since = self.now;
                !self.open.contains_key(ticket)
            }
        };
        let worker = match &said {
            Said::Born(ticket) => self.open.remove(ticket),
            Said::Unborn(ticket) => {
                self.failed |= self.open.remove(ticket).is_some() && self.trial;
                None
            }
            _ => None,
        };
        let event = match said {
            Said::Ready => Event::MoldReady(false),
            Said::Failed => Event::MoldFailed("no database".to_owned()),
            Said::Rubbish => Event::MoldBroke("rubbish".to_owned()),
            Said::Closed => Event::MoldClosed,
            Said::Born(ticket) => Event::Born(ticket),
            Said::Unborn(ticket) => Event::Unborn(ticket, "no memory".to_owned()),
        };
        self.failed |= breaks && self.trial;
        let before = self.workers.len();
        self.give(event)?;
        let adopted = worker.is_none_or(|worker| self.workers.get(&worker.slot) == Some(&worker));
        hold(adopted, 4, || format!("{worker:?} was born and is not taken"))?;
        hold(worker.is_some() || self.workers.len() == before, 4, || "somebody is taken for a worker".to_owned())?;
        let ends = self.mold.as_ref().is_none_or(|mold| mold.told.is_some() && !mold.heard);
        hold(!breaks || ends, 7, || "a mold that breaks its protocol goes on".to_owned())
    }

    fn give(&mut self, event: Event) -> Checked {
        self.give_with(event, None)
    }

    /// Gives the state an event, as far as the planted bug lets it, and checks what it does.
    fn give_with(&mut self, event: Event, mold_told: Option<bool>) -> Checked {
        let (given, now) = (self.spoiled(event.clone()), self.base + self.now);
        let mut actions = given.map_or(Vec::new(), |given| self.state.on(now, given));
        self.spoil(&event, &mut actions);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12?} {event:?} -> {actions:?}", self.now));
        }
        let mut told = mold_told.unwrap_or(true);
        for action in actions {
            if let Action::Report(Report::MoldFailed(_)) = &action {
                self.failed |= self.trial;
                let first = match &mut self.mold {
                    Some(mold) => !std::mem::replace(&mut mold.failure_told, true),
                    None => !std::mem::replace(&mut told, true),
                };
                // A commit that was on its way meanwhile has it told to main as the serving generation's as well.
                hold(first || std::mem::take(&mut self.told_on_trial), 7, || {
                    "that a mold fails is told twice".to_owned()
                })?;
            }
            self.perform(action)?;
        }
        hold(told || self.stopping, 7, || "that a mold has failed is not told".to_owned())?;
        self.check_times()
    }

    fn perform(&mut self, action: Action) -> Checked {
        match action {
            Action::Spawn(worker) => self.load(worker),
            Action::Fork(worker, ticket) => self.fork(worker, ticket),
            Action::Adopt(worker) => {
                self.workers.insert(worker.slot, worker);
                Ok(())
            }
            Action::Dismiss => {
                let now = self.now;
                let Some(mold) = &mut self.mold else { return hold(false, 3, || "nobody is told to end".to_owned()) };
                mold.heard = false;
                mold.told.get_or_insert(now);
                self.open.clear();
                let (life, ends) = (mold.life, mold.script.ends);
                // One that does as it is told ends by itself.
                if let Some(after) = ends.filter(|_| self.planned.is_multiple_of(2)) {
                    self.plan(after, Happening::MoldEnds(life));
                }
                Ok(())
            }
            Action::Signal(worker, signal) if worker.is_mold() => {
                let Some(mold) = self.mold.as_mut().filter(|mold| mold.life == worker.life) else {
                    return hold(false, 3, || format!("{signal} for {worker:?}, which is gone"));
                };
                hold(mold.told.is_some() || !mold.executed, 1, || format!("{signal} for a mold that nobody ended"))?;
                mold.signalled = true;
                let ends = if signal == Signal::SIGKILL { Some(Time::ZERO) } else { mold.script.ends };
                ends.into_iter().for_each(|after| self.plan(after, Happening::MoldEnds(worker.life)));
                Ok(())
            }
            Action::Signal(worker, _) => {
                let alive = self.workers.get(&worker.slot) == Some(&worker);
                let meant = self.stopping || self.retired.contains(&worker.slot);
                hold(meant, 1, || format!("{worker:?} is stopped, and nobody wanted that"))?;
                if alive && self.ending.insert(worker) {
                    self.plan(Time::from_millis(5), Happening::WorkerEnds(worker));
                }
                Ok(())
            }
            Action::Report(Report::Retired { slot, empty }) => {
                self.retired.extend((!empty).then_some(slot));
                Ok(())
            }
            Action::Report(Report::Gone { slot }) => {
                self.retired.remove(&slot);
                Ok(())
            }
            Action::Report(Report::GaveUp) => {
                self.gave_up = true;
                Ok(())
            }
            Action::Exit => {
                let over = self.stopping && self.mold.is_none() && self.workers.is_empty();
                self.exited = true;
                hold(over, 6, || "ends before its mold and its workers have ended".to_owned())
            }
            Action::Note(Note::MoldFailed { delay, .. }) => {
                let longest = self.settings.tuning.pace.delay_max.max(self.settings.tuning.pace.delay) * 2;
                hold(delay <= longest && !self.trial, 5, || format!("a mold is to be loaded after {delay:?}"))
            }
            _ => Ok(()),
        }
    }

    fn load(&mut self, worker: Worker) -> Checked {
        hold(worker.is_mold(), 4, || format!("{worker:?} is executed instead of forked"))?;
        hold(self.mold.is_none(), 4, || "a mold is loaded beside another".to_owned())?;
        hold(!self.stopping, 6, || "a mold is loaded after a stop".to_owned())?;
        hold(!self.trial || worker.life == 1, 7, || "another mold is loaded on trial".to_owned())?;
        let script = Script::draw(&mut self.choices, self.trouble);
        let (exec, dies) = (script.exec, script.dies);
        self.mold = Some(Mold {
            life: worker.life,
            script,
            executed: false,
            ready: false,
            heard: true,
            told: None,
            signalled: false,
            forks: 0,
            failure_told: false,
        });
        self.mold_ended = None;
        self.silent_since = self.now;
        exec.into_iter().for_each(|after| self.plan(after, Happening::MoldExecutes(worker.life)));
        dies.into_iter().for_each(|after| self.plan(after, Happening::MoldEnds(worker.life)));
        Ok(())
    }

    fn fork(&mut self, worker: Worker, ticket: u64) -> Checked {
        let Some(mold) = self.mold.as_mut().filter(|mold| mold.ready && mold.told.is_none()) else {
            return hold(false, 4, || format!("{worker:?} is asked of a mold that does not fork"));
        };
        if !mold.heard {
            return hold(false, 4, || format!("{worker:?} is asked of a mold that has closed its socket"));
        }
        hold(ticket > self.last_ticket, 4, || format!("ticket {ticket} comes after {}", self.last_ticket))?;
        hold(!self.workers.contains_key(&worker.slot), 4, || format!("{worker:?} is asked for beside a live worker"))?;
        hold(!self.open.values().any(|other| other.slot == worker.slot), 4, || {
            format!("{worker:?} is asked for twice")
        })?;
        hold(!self.stopping && !self.gave_up, 6, || format!("{worker:?} is asked for after a stop"))?;
        let kind = mold.script.forks[mold.forks % mold.script.forks.len()];
        mold.forks += 1;
        let life = mold.life;
        self.last_ticket = ticket;
        if self.open.is_empty() {
            self.silent_since = self.now;
        }
        self.open.insert(ticket, worker);
        hold(self.open.len() <= MAX_TICKETS, 13, || "more tickets are open than may be".to_owned())?;
        let mut says = |after, said| self.plan(after, Happening::MoldSays(life, said));
        match kind {
            Fork::Born(after) => says(after, Said::Born(ticket)),
            Fork::Unborn(after) => says(after, Said::Unborn(ticket)),
            Fork::Twice(after) => (0..2).for_each(|_| says(after, Said::Born(ticket))),
            Fork::Another(after) => says(after, Said::Born(ticket + 100)),
            Fork::Dies(after) => self.plan(after, Happening::MoldEnds(life)),
            Fork::Rubbish(after) => says(after, Said::Rubbish),
            Fork::Never => {}
        }
        Ok(())
    }

    /// What must have been done by now.
    fn check_times(&mut self) -> Checked {
        let slack = Time::from_millis(5);
        let patience = self.settings.tuning.ready_timeout;
        if let Some(mold) = &self.mold {
            let waits = mold.told.is_none() && (!mold.ready || !self.open.is_empty()) && mold.executed;
            // A mold that was late has more time the next time, up to sixteen times.
            let most = if mold.ready { patience } else { patience * 16 };
            let late = waits && self.now > self.silent_since + most + slack;
            hold(!late, 7, || format!("a mold may take for ever: {mold:?}, open: {:?}", self.open))?;
            let until_kill = self.settings.tuning.stop.total().max(self.settings.tuning.retirement().total());
            let until_kill = until_kill + MOST_UNTIL_KILL + slack;
            let survives = mold.told.is_some_and(|told| self.now > told + until_kill);
            hold(!survives, 6, || format!("a mold outlives its end: {mold:?}"))?;
        }
        let longest = self.settings.tuning.pace.delay_max.max(self.settings.tuning.pace.delay) * 2 + slack;
        let meant = !self.stopping && !self.gave_up && !self.trial && !self.failed;
        let missing = self.mold_ended.is_some_and(|ended| self.now > ended + longest);
        hold(!meant || !missing, 5, || "no other mold is loaded".to_owned())
    }

    /// What becomes of an event before the state gets it.
    fn spoiled(&self, event: Event) -> Option<Event> {
        match (self.bug, event) {
            (Some(Bug::ToleratesRubbish), Event::MoldBroke(_)) => None,
            (Some(Bug::TakesAnyTicket), Event::Born(ticket)) if ticket > self.last_ticket => {
                let other = self.open.keys().next().copied();
                other.map(Event::Born)
            }
            (_, event) => Some(event),
        }
    }

    /// What becomes of what the state decides.
    fn spoil(&self, event: &Event, actions: &mut Vec<Action>) {
        let is_mold = |action: &Action| matches!(action, Action::Signal(worker, _) if worker.is_mold());
        let mold = |life| Worker { slot: Worker::MOLD, life };
        let loads = |action: &Action| matches!(action, Action::Spawn(worker) if worker.is_mold());
        let tells = |action: &Action| matches!(action, Action::Report(Report::MoldFailed(_)));
        let asked = actions.iter().find(|action| matches!(action, Action::Fork(..))).cloned();
        let ended = matches!(event, Event::Ended(worker, _) if worker.is_mold());
        match self.bug {
            Some(Bug::TakesTheSecond) if matches!(event, Event::Born(_)) => {
                if let Some(worker) = self.workers.values().next().filter(|_| actions.contains(&Action::Dismiss)) {
                    *actions = vec![Action::Adopt(Worker { slot: worker.slot + 50, ..*worker })];
                }
            }
            Some(Bug::ToleratesSilence) if *event == Event::Wake => {
                actions.retain(|action| *action != Action::Dismiss && !is_mold(action));
            }
            Some(Bug::NeverDismisses) => actions.retain(|action| *action != Action::Dismiss),
            Some(Bug::NeverSignalsTheMold) => actions.retain(|action| !is_mold(action)),
            Some(Bug::LoadsTwo) => {
                let again: Vec<_> = actions.iter().filter(|action| loads(action)).cloned().collect();
                actions.extend(again);
            }
            Some(Bug::LoadsAfterStop) if ended && self.stopping => actions.push(Action::Spawn(mold(99))),
            Some(Bug::NeverLoadsAnother) => {
                actions.retain(|action| !matches!(action, Action::Spawn(worker) if worker.life > 1));
            }
            Some(Bug::KeepsItsFailure) => actions.retain(|action| !tells(action)),
            Some(Bug::TellsItTwice) => {
                let again: Vec<_> = actions.iter().filter(|action| tells(action)).cloned().collect();
                actions.extend(again);
            }
            Some(Bug::EndsWorkersWithTheMold) if ended => {
                actions.extend(self.workers.values().map(|worker| Action::Signal(*worker, Signal::SIGTERM)));
            }
            Some(Bug::ForgetsTheTickets) if *event == Event::MoldReady(false) && self.last_ticket > 0 => {
                actions.retain(|action| !matches!(action, Action::Fork(..)));
            }
            Some(Bug::AsksTwice) => actions.extend(asked),
            Some(Bug::AsksTheLoading) if loads(actions.first().unwrap_or(&Action::Exit)) => {
                actions.push(Action::Fork(Worker { slot: 0, life: 1 }, self.last_ticket + 1));
            }
            Some(Bug::AsksTooMuch) if asked.is_some() => {
                let more = (1..=20)
                    .map(|at| Action::Fork(Worker { slot: 100 + at, life: 1 }, self.last_ticket + 9 + u64::from(at)));
                actions.extend(more.collect::<Vec<_>>());
            }
            Some(Bug::AdoptsNobody) => actions.retain(|action| !matches!(action, Action::Adopt(_))),
            _ => {}
        }
    }
}

fn play(seed: u64, bug: Option<Bug>) -> Checked {
    World::new(Choices::from_seed(seed), bug).live()
}

#[test]
fn histories_with_molds_keep_every_invariant() {
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
fn every_planted_bug_of_molds_is_found() {
    for &bug in BUGS {
        let found = (0..HISTORIES).find_map(|seed| play(seed, Some(bug)).err());
        println!("{bug:?}: {}", found.unwrap_or_else(|| panic!("{bug:?} is not found")).what);
    }
}
