//! What a monitor does, and when: pure, with no clock, no IO and no pids.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::backoff::{Backoff, Pace, Random};
use crate::config::{Escalation, RespawnLimit, Schedule};
use crate::control::messages::{Order, Report, Urgency};
use crate::worker::cause::Cause;

/// An exec takes microseconds; one that takes this long hangs on a dead file system, and is ended.
const LONGEST_EXEC: Duration = Duration::from_secs(10);

/// One life of a slot. What is still under way about an earlier life never touches a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    /// The slot, from 0.
    pub slot: u32,
    /// Which of its lives, from 1.
    pub life: u32,
}

/// What a monitor is to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many slots are kept filled.
    pub workers: u32,
    /// Whether a worker is ready only when it has said so.
    pub notify: bool,
    /// How long a worker may take to be ready. Not of use on trial: main times a generation as a whole.
    pub ready_timeout: Duration,
    /// How workers are stopped.
    pub stop: Schedule,
    /// The limits of the respawn backoff.
    pub pace: Pace,
    /// When to give up.
    pub respawn_limit: Option<RespawnLimit>,
    /// A new release beside a serving one: a death is its failure, and nothing is respawned until it is committed.
    pub trial: bool,
    /// Makes the jitter repeatable.
    pub seed: u64,
}

/// What can happen to a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It begins.
    Start,
    /// The program runs.
    Executed(Worker),
    /// The worker said that it is ready.
    Notified(Worker),
    /// The worker has ended and been reaped, or could not be started.
    Ended(Worker, Cause),
    /// Processes of its group outlived a worker.
    LeftBehind(Worker),
    /// They have ended.
    GroupGone(Worker),
    /// Main orders something.
    Ordered(Order),
    /// Main is gone.
    MainGone,
    /// A deadline has come.
    Wake,
}

/// What a monitor does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start this worker.
    Spawn(Worker),
    /// Send this to the worker; KILL to its whole group.
    Signal(Worker, Signal),
    /// Send this to what the worker left behind.
    SignalGroup(Worker, Signal),
    /// Let go of the listeners: nothing is started any more.
    CloseListeners,
    /// Tell main.
    Report(Report),
    /// Tell people.
    Note(Note),
    /// Everything has ended.
    Exit,
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A worker ended by itself; it is respawned after this delay.
    Respawning(Worker, Cause, Duration),
    /// A worker is ended because it was not ready in time.
    NotReady(Worker, Duration),
    /// A worker is ended because its exec hangs.
    HangsInExec(Worker),
    /// A worker had to be sent a later signal of the schedule.
    Escalated(Worker, Signal),
    /// Processes outlived their worker and are stopped.
    LeftBehind(Worker),
    /// More respawns than allowed.
    GaveUp(RespawnLimit),
    /// Main is gone, everything is stopped.
    MainGone,
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing, and nothing is planned.
    Empty,
    /// Nothing until the backoff is over.
    Waiting,
    /// A process that has not executed its program yet.
    Executing,
    /// A program that is not ready yet.
    Starting,
    /// A worker that is ready.
    Ready,
    /// A worker that is being stopped.
    Stopping,
}

impl Phase {
    /// As people are shown it.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Empty => "empty",
            Phase::Waiting => "waiting",
            Phase::Executing | Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Stopping => "stopping",
        }
    }
}

#[derive(Debug)]
enum State {
    Empty,
    Waiting { until: Instant },
    Executing { deadline: Instant },
    Starting { deadline: Option<Instant> },
    Ready,
    Stopping(Escalation),
}

#[derive(Debug)]
struct Slot {
    state: State,
    life: u32,
    since: Instant,
    notified: bool,
    backoff: Backoff,
    /// Why the worker is being ended, where it is not for a stop.
    ended_for: Option<Cause>,
}

/// What one slot looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// What it holds.
    pub phase: Phase,
    /// Its current or last life.
    pub life: u32,
    /// Since when it has been in this phase, or for a live worker since its start.
    pub since: Instant,
}

/// The slots of one generation.
#[derive(Debug)]
pub struct Slots {
    settings: Settings,
    slots: Vec<Slot>,
    groups: BTreeMap<Worker, Escalation>,
    recent_respawns: VecDeque<Instant>,
    stopping: Option<Schedule>,
    executed: bool,
    gave_up: bool,
    exited: bool,
    random: Random,
}

impl Slots {
    /// Empty slots; [`Event::Start`] fills them.
    pub fn new(settings: Settings, now: Instant) -> Slots {
        let empty = || Slot {
            state: State::Empty,
            life: 0,
            since: now,
            notified: false,
            backoff: Backoff::default(),
            ended_for: None,
        };
        Slots {
            slots: (0..settings.workers).map(|_| empty()).collect(),
            groups: BTreeMap::new(),
            recent_respawns: VecDeque::new(),
            stopping: None,
            executed: false,
            gave_up: false,
            exited: false,
            random: Random::new(settings.seed),
            settings,
        }
    }

    /// The only way this changes. Also does all that is due by `now`.
    #[must_use]
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => {
                for slot in 0..self.settings.workers {
                    self.spawn(slot, now, &mut actions);
                }
            }
            Event::Executed(worker) => self.executed(worker, now, &mut actions),
            Event::Notified(worker) => self.notified(worker, &mut actions),
            Event::Ended(worker, cause) => self.ended(worker, cause, now, &mut actions),
            Event::LeftBehind(worker) => self.left_behind(worker, now, &mut actions),
            Event::GroupGone(worker) => drop(self.groups.remove(&worker)),
            Event::Ordered(Order::Commit) => self.commit(now),
            Event::Ordered(Order::Stop(pace)) => self.stop(pace, now, &mut actions),
            // Answered from `view`, or by `sockets::sharing`; nothing changes by them.
            Event::Ordered(Order::Status | Order::Shared { .. } | Order::NotShared { .. }) => {}
            Event::MainGone => {
                if self.stopping.is_none() {
                    actions.push(Action::Note(Note::MainGone));
                }
                self.stop(Urgency::Graceful, now, &mut actions);
            }
            Event::Wake => {}
        }
        self.do_what_is_due(now, &mut actions);
        self.exit_if_done(&mut actions);
        actions
    }

    /// When to be woken if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let slots = self.slots.iter().filter_map(|slot| match &slot.state {
            State::Waiting { until } => Some(*until),
            State::Executing { deadline } => Some(*deadline),
            State::Starting { deadline } => *deadline,
            State::Stopping(escalation) => escalation.deadline(),
            State::Empty | State::Ready => None,
        });
        slots.chain(self.groups.values().filter_map(Escalation::deadline)).min()
    }

    /// What a slot looks like.
    pub fn view(&self, slot: u32) -> View {
        let slot = &self.slots[slot as usize];
        let phase = match slot.state {
            State::Empty => Phase::Empty,
            State::Waiting { .. } => Phase::Waiting,
            State::Executing { .. } => Phase::Executing,
            State::Starting { .. } => Phase::Starting,
            State::Ready => Phase::Ready,
            State::Stopping(_) => Phase::Stopping,
        };
        View { phase, life: slot.life, since: slot.since }
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// How many slots there are.
    pub fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    fn slot(&mut self, worker: Worker) -> Option<&mut Slot> {
        self.slots.get_mut(worker.slot as usize).filter(|slot| slot.life == worker.life)
    }

    fn is_live(&mut self, worker: Worker) -> bool {
        self.slot(worker).is_some_and(|slot| !matches!(slot.state, State::Empty | State::Waiting { .. }))
    }

    fn spawn(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index as usize];
        slot.life += 1;
        slot.since = now;
        slot.notified = false;
        slot.state = State::Executing { deadline: now + LONGEST_EXEC };
        actions.push(Action::Spawn(Worker { slot: index, life: slot.life }));
    }

    fn executed(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (notify, trial, timeout) = (self.settings.notify, self.settings.trial, self.settings.ready_timeout);
        let Some(slot) = self.slot(worker) else { return };
        if !matches!(slot.state, State::Executing { .. }) {
            return;
        }
        let notified = slot.notified;
        slot.state = if notify && !notified {
            State::Starting { deadline: (!trial).then(|| now + timeout) }
        } else {
            State::Ready
        };
        let ready = matches!(slot.state, State::Ready);
        if !std::mem::replace(&mut self.executed, true) {
            actions.push(Action::Report(Report::Executed));
        }
        if ready {
            actions.push(Action::Report(Report::Ready { slot: worker.slot, notified }));
        }
    }

    fn notified(&mut self, worker: Worker, actions: &mut Vec<Action>) {
        let Some(slot) = self.slot(worker) else { return };
        let first_time = !std::mem::replace(&mut slot.notified, true);
        match slot.state {
            State::Starting { .. } => {
                slot.state = State::Ready;
                actions.push(Action::Report(Report::Ready { slot: worker.slot, notified: true }));
            }
            // It was ready by being alive; that it can tell is worth knowing for the next release.
            State::Ready if first_time => {
                actions.push(Action::Report(Report::Ready { slot: worker.slot, notified: true }));
            }
            _ => {}
        }
    }

    fn ended(&mut self, worker: Worker, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let (pace, trial, stopping) = (self.settings.pace, self.settings.trial, self.stopping.is_some());
        if !self.is_live(worker) {
            return;
        }
        let random = self.random.draw();
        let Some(slot) = self.slot(worker) else { return };
        let lived = now.saturating_duration_since(slot.since);
        let cause = slot.ended_for.take().unwrap_or(cause);
        slot.since = now;
        if stopping {
            slot.state = State::Empty;
            return;
        }
        let delay = slot.backoff.after(lived, pace, random);
        slot.state = if trial { State::Empty } else { State::Waiting { until: now + delay } };
        actions.push(Action::Report(Report::Died { slot: worker.slot, cause: cause.clone() }));
        // What cannot be executed at all is told by main, once for all slots, where it ends panzer or a reload.
        let told_by_main = trial || (worker.life == 1 && cause.exit_code().is_some());
        if !told_by_main {
            actions.push(Action::Note(Note::Respawning(worker, cause, delay)));
        }
    }

    fn left_behind(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        // Told just before the worker's own end.
        if !self.is_live(worker) {
            return;
        }
        let schedule = self.stopping.as_ref().unwrap_or(&self.settings.stop);
        if self.groups.insert(worker, Escalation::begin(schedule, now)).is_none() {
            actions.push(Action::Note(Note::LeftBehind(worker)));
        }
    }

    /// The release serves: what died on trial just before is filled again like any other slot.
    fn commit(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.settings.trial, false) || self.stopping.is_some() {
            return;
        }
        let timeout = self.settings.ready_timeout;
        for slot in &mut self.slots {
            match &mut slot.state {
                State::Empty => slot.state = State::Waiting { until: now },
                State::Starting { deadline } => *deadline = Some(now + timeout),
                _ => {}
            }
        }
    }

    fn stop(&mut self, urgency: Urgency, now: Instant, actions: &mut Vec<Action>) {
        let schedule = match urgency {
            Urgency::Graceful if self.stopping.is_some() => return,
            Urgency::Graceful => self.settings.stop.clone(),
            Urgency::Quick => self.settings.stop.quick(),
        };
        if self.stopping.replace(schedule.clone()).is_none() {
            actions.push(Action::CloseListeners);
        }
        for slot in &mut self.slots {
            match &mut slot.state {
                State::Empty => {}
                State::Waiting { .. } => slot.state = State::Empty,
                State::Stopping(escalation) => {
                    slot.ended_for = None;
                    if urgency == Urgency::Quick {
                        escalation.hasten(&schedule, now);
                    }
                }
                state => *state = State::Stopping(Escalation::begin(&schedule, now)),
            }
        }
        if urgency == Urgency::Quick {
            for escalation in self.groups.values_mut() {
                escalation.hasten(&schedule, now);
            }
        }
    }

    fn do_what_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for index in 0..self.slots.len() as u32 {
            self.fill_if_due(index, now, actions);
            self.end_if_overdue(index, now, actions);
            self.escalate_if_due(index, now, actions);
        }
        for (worker, escalation) in &mut self.groups {
            if let Some(signal) = escalation.signal_due(now) {
                actions.push(Action::SignalGroup(*worker, signal));
            }
        }
    }

    fn fill_if_due(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let due = matches!(self.slots[index as usize].state, State::Waiting { until } if until <= now);
        if !due {
            return;
        }
        if self.respawn_allowed(now) {
            self.spawn(index, now, actions);
        } else {
            self.give_up(index, actions);
        }
    }

    fn end_if_overdue(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index as usize];
        let worker = Worker { slot: index, life: slot.life };
        match slot.state {
            State::Executing { deadline } if deadline <= now => {
                // There is no program yet that could do anything about a gentler signal.
                slot.state = State::Stopping(Escalation::begin(&Schedule::kill(), now));
                slot.ended_for = Some(Cause::HungInExec(LONGEST_EXEC));
                actions.push(Action::Note(Note::HangsInExec(worker)));
            }
            State::Starting { deadline: Some(deadline) } if deadline <= now => {
                slot.state = State::Stopping(Escalation::begin(&self.settings.stop, now));
                slot.ended_for = Some(Cause::NotReady(self.settings.ready_timeout));
                actions.push(Action::Note(Note::NotReady(worker, self.settings.ready_timeout)));
            }
            _ => {}
        }
    }

    fn escalate_if_due(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index as usize];
        let worker = Worker { slot: index, life: slot.life };
        let State::Stopping(escalation) = &mut slot.state else { return };
        let later_step = escalation.has_begun();
        if let Some(signal) = escalation.signal_due(now) {
            actions.push(Action::Signal(worker, signal));
            if later_step {
                actions.push(Action::Note(Note::Escalated(worker, signal)));
            }
        }
    }

    /// Counts the respawn that is about to be made.
    fn respawn_allowed(&mut self, now: Instant) -> bool {
        let Some(limit) = self.settings.respawn_limit else { return true };
        if self.gave_up {
            return false;
        }
        while self.recent_respawns.front().is_some_and(|&then| now.duration_since(then) > limit.window) {
            self.recent_respawns.pop_front();
        }
        let allowed = self.recent_respawns.len() < limit.count as usize;
        if allowed {
            self.recent_respawns.push_back(now);
        }
        allowed
    }

    /// Leaves the slot empty, and tells main once, which stops everything.
    fn give_up(&mut self, index: u32, actions: &mut Vec<Action>) {
        self.slots[index as usize].state = State::Empty;
        if let Some(limit) = self.settings.respawn_limit.filter(|_| !self.gave_up) {
            self.gave_up = true;
            actions.push(Action::Note(Note::GaveUp(limit)));
            actions.push(Action::Report(Report::GaveUp));
        }
    }

    fn exit_if_done(&mut self, actions: &mut Vec<Action>) {
        let empty = self.slots.iter().all(|slot| matches!(slot.state, State::Empty));
        if self.stopping.is_some() && empty && self.groups.is_empty() && !self.exited {
            self.exited = true;
            actions.push(Action::Exit);
        }
    }
}
