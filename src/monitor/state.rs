//! What a monitor does, and when: pure, with no clock, no IO and no pids.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Random};
use crate::config::{Escalation, Schedule};
use crate::control::messages::{Order, Report, Urgency};
use crate::readiness::watch::{Bypass, Hidden, Sight};
use crate::worker::cause::Cause;

use super::bypass::Suspects;
use super::pacing::Starts;
pub use super::vocabulary::{Action, Event, Note, Phase, Settings, View, Watch, Worker};

/// An exec takes microseconds; one that takes this long hangs on a dead file system, and is ended.
const LONGEST_EXEC: Duration = Duration::from_secs(10);

/// The pause after the first look at a worker; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The longest, so that a worker is known to accept within that and a little.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The same for probes, which cost a process each.
const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between two probes of a worker.
const LONGEST_PROBE_PAUSE: Duration = Duration::from_millis(500);

/// A probe that takes this long hangs: it is ended, and counts as failed.
const LONGEST_PROBE: Duration = Duration::from_secs(10);

/// So many workers are looked at before anything else has its turn.
const LOOKS_AT_ONCE: usize = 16;

#[derive(Debug)]
pub(super) enum State {
    Empty,
    Waiting {
        until: Instant,
    },
    Executing {
        deadline: Instant,
    },
    Starting {
        deadline: Option<Instant>,
        watched: Option<Watched>,
    },
    /// Until `unproven`, if at all, it is ready for no more than being alive.
    Ready {
        unproven: Option<Instant>,
    },
    Stopping(Escalation),
    /// Nobody follows the last worker. Its exit code, where it was of this monitor.
    EndedForGood {
        code: Option<u8>,
    },
}

/// When a worker is looked at or probed again; none while a probe of it is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched {
    next: Option<Instant>,
    pause: Duration,
}

impl Watched {
    fn from(now: Instant, watch: Watch) -> Watched {
        Watched { next: Some(now), pause: if watch == Watch::Probe { FIRST_PROBE_PAUSE } else { FIRST_PAUSE } }
    }
}

/// A probe under way.
#[derive(Debug)]
struct Probe {
    /// When it is ended, or ended again.
    deadline: Instant,
    /// Whether it was told to end.
    ended: bool,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) life: u32,
    pub(super) since: Instant,
    /// Whether a worker is wanted in it.
    pub(super) wanted: bool,
    /// So many of its workers followed one that had ended unasked.
    pub(super) respawns: u32,
    /// Whether its worker is being stopped because none is, or was, wanted.
    pub(super) retiring: bool,
    /// Whether its next worker is asked for, and is no respawn.
    pub(super) is_anew: bool,
    notified: bool,
    /// When its program began.
    executed: Option<Instant>,
    /// Whether this worker listens on a shared port, and whether one before it did.
    listens: bool,
    listened: bool,
    /// Why it could not be seen whether the worker accepts.
    hidden: Option<Hidden>,
    pub(super) backoff: Backoff,
    /// Why the worker is being ended, where it is not for a stop.
    pub(super) ended_for: Option<Cause>,
}

impl Slot {
    pub(super) fn new(now: Instant) -> Slot {
        Slot {
            state: State::Empty,
            life: 0,
            since: now,
            wanted: true,
            respawns: 0,
            retiring: false,
            is_anew: false,
            notified: false,
            executed: None,
            listens: false,
            listened: false,
            hidden: None,
            backoff: Backoff::default(),
            ended_for: None,
        }
    }
}

/// The stop of everything: what the workers go through, and since when.
#[derive(Debug)]
pub(super) struct Stopping {
    urgency: Urgency,
    schedule: Schedule,
    begun: Instant,
}

/// The slots of one generation.
#[derive(Debug)]
pub struct Slots {
    pub(super) settings: Settings,
    pub(super) slots: Vec<Slot>,
    groups: BTreeMap<Worker, Escalation>,
    probes: BTreeMap<Worker, Probe>,
    pub(super) starts: Starts,
    suspects: Suspects,
    recent_respawns: VecDeque<Instant>,
    pub(super) stopping: Option<Stopping>,
    executed: bool,
    pub(super) gave_up: bool,
    exited: bool,
    random: Random,
}

impl Slots {
    /// Empty slots; [`Event::Start`] fills them.
    pub fn new(settings: Settings, now: Instant) -> Slots {
        Slots {
            slots: (0..settings.workers).map(|_| Slot::new(now)).collect(),
            groups: BTreeMap::new(),
            probes: BTreeMap::new(),
            starts: Starts::default(),
            suspects: Suspects::default(),
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
            Event::Start => self.start(now),
            Event::Executed(worker) => self.executed(worker, now, &mut actions),
            Event::Notified(worker) => self.notified(worker, now, &mut actions),
            Event::Listens(worker) => self.listens(worker, now, &mut actions),
            Event::Seen(worker, sight) => self.seen(worker, sight, now, &mut actions),
            Event::Examined(worker, shown) => self.examined(worker, shown, now, &mut actions),
            Event::Probed(worker, succeeded) => self.probed(worker, succeeded, now, &mut actions),
            Event::Ended(worker, cause) => self.ended(worker, cause, now, &mut actions),
            Event::LeftBehind(worker) => self.left_behind(worker, now, &mut actions),
            Event::GroupGone(worker) => drop(self.groups.remove(&worker)),
            Event::Ordered(Order::Commit) => self.commit(now, &mut actions),
            Event::Ordered(Order::Scale { workers, which }) => self.scale(workers, which, now, &mut actions),
            // What has begun ends as it was to.
            Event::Ordered(Order::Tune(tuning)) => self.settings.tuning = *tuning,
            Event::Ordered(Order::Stop(pace)) => self.stop(pace, now, &mut actions),
            // Answered from `view`, by `sockets::sharing` or from the roster; nothing changes by them.
            Event::Ordered(
                Order::Status | Order::Queue | Order::Shared { .. } | Order::NotShared { .. } | Order::Signal { .. },
            ) => {}
            // The descriptors' affair.
            Event::Ordered(Order::LeaveTerminal) => {}
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
            State::Waiting { until } => Some(self.starts.earliest(*until)),
            State::Executing { deadline } => Some(*deadline),
            State::Starting { deadline, watched } => {
                deadline.iter().copied().chain(watched.and_then(|watched| watched.next)).min()
            }
            State::Stopping(escalation) => escalation.deadline(),
            State::Empty | State::Ready { .. } | State::EndedForGood { .. } => None,
        });
        let probes = self.probes.values().map(|probe| probe.deadline);
        let groups = self.groups.values().filter_map(Escalation::deadline);
        slots.chain(groups).chain(probes).chain(self.suspects.deadline()).min()
    }

    /// What a slot looks like.
    pub fn view(&self, slot: u32) -> View {
        let slot = &self.slots[slot as usize];
        let phase = match slot.state {
            State::Empty => Phase::Empty,
            State::Waiting { .. } => Phase::Waiting,
            State::Executing { .. } => Phase::Executing,
            State::Starting { .. } => Phase::Starting,
            State::Ready { .. } => Phase::Ready,
            State::Stopping(_) => Phase::Stopping,
            State::EndedForGood { .. } => Phase::Ended,
        };
        View { phase, respawns: slot.respawns, since: slot.since }
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// How many slots there are.
    pub fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The slot that holds this worker; none where the worker is no more.
    fn slot_of(&mut self, worker: Worker) -> Option<&mut Slot> {
        let holds = |slot: &&mut Slot| slot.life == worker.life && slot.has_worker();
        self.slots.get_mut(worker.slot as usize).filter(holds)
    }

    pub(super) fn spawn(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let random = self.random.draw();
        self.starts.made(self.settings.tuning.start_delay, random, now);
        let slot = &mut self.slots[index as usize];
        slot.life += 1;
        slot.retiring = false;
        slot.is_anew = false;
        slot.since = now;
        slot.notified = false;
        slot.executed = None;
        slot.listens = false;
        slot.hidden = None;
        slot.state = State::Executing { deadline: now + LONGEST_EXEC };
        actions.push(Action::Spawn(Worker { slot: index, life: slot.life }));
    }

    fn executed(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (watch, deadline) = (self.settings.watch, self.ready_deadline(now));
        let Some(slot) = self.slot_of(worker) else { return };
        if !matches!(slot.state, State::Executing { .. }) {
            return;
        }
        let is_watched = match watch {
            Watch::No => false,
            Watch::IfItListens => slot.listened,
            Watch::IfSeeable | Watch::Always | Watch::Probe => true,
        };
        slot.executed = Some(now);
        slot.state = State::Starting { deadline, watched: is_watched.then_some(Watched::from(now, watch)) };
        if !std::mem::replace(&mut self.executed, true) {
            actions.push(Action::Report(Report::Executed));
        }
        if self.settings.has_listener && matches!(watch, Watch::IfSeeable | Watch::Always) {
            self.suspects.add(worker, Some(self.settings.tuning.ready_timeout), now);
        }
        self.become_ready_unseen(worker, now, actions);
    }

    fn notified(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let Some(slot) = self.slot_of(worker) else { return };
        let first_time = !std::mem::replace(&mut slot.notified, true);
        match slot.state {
            State::Starting { .. } => self.become_ready_unseen(worker, now, actions),
            // It was ready by another measure; that it can tell is worth knowing for the next release.
            State::Ready { .. } if first_time => {
                actions.push(Action::Report(Report::Ready { slot: worker.slot, notified: true, seen: false }));
            }
            _ => {}
        }
    }

    /// On trial main times a generation as a whole.
    fn ready_deadline(&self, now: Instant) -> Option<Instant> {
        (!self.settings.trial).then(|| now + self.settings.tuning.ready_timeout)
    }

    /// Whether it accepts there is to be seen from now on, unless it has been found ready for good.
    fn listens(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (watch, trial, deadline) = (self.settings.watch, self.settings.trial, self.ready_deadline(now));
        let Some(slot) = self.slot_of(worker) else { return };
        if !matches!(watch, Watch::IfItListens | Watch::IfSeeable) || std::mem::replace(&mut slot.listens, true) {
            return;
        }
        slot.listened = true;
        let withdrawn = matches!(slot.state, State::Ready { unproven: Some(until) } if trial || now < until);
        actions.push(Action::Report(Report::Listens { slot: worker.slot, withdrawn }));
        let watched = Some(Watched::from(now, watch));
        match slot.state {
            State::Starting { deadline, watched: None } if slot.hidden.is_none() => {
                slot.state = State::Starting { deadline, watched };
            }
            State::Ready { .. } if withdrawn => {
                slot.state = State::Starting { deadline, watched };
            }
            _ => {}
        }
    }

    fn seen(&mut self, worker: Worker, sight: Sight, now: Instant, actions: &mut Vec<Action>) {
        let watch = self.settings.watch;
        let Some(slot) = self.slot_of(worker) else { return };
        let State::Starting { watched: watched @ Some(_), .. } = &mut slot.state else { return };
        match sight {
            Sight::Accepting => self.become_ready(worker, true, now, actions),
            Sight::NotYet => {}
            Sight::Unseeable(why) => {
                if matches!(watch, Watch::IfSeeable | Watch::IfItListens) {
                    *watched = None;
                }
                if slot.hidden.replace(why) != Some(why) {
                    let why = why.to_string();
                    actions.push(Action::Report(Report::Unseeable { slot: worker.slot, why }));
                }
                self.become_ready_unseen(worker, now, actions);
            }
        }
    }

    fn probed(&mut self, worker: Worker, succeeded: bool, now: Instant, actions: &mut Vec<Action>) {
        self.probes.remove(&worker);
        let Some(slot) = self.slot_of(worker) else { return };
        let State::Starting { watched: Some(watched), .. } = &mut slot.state else { return };
        if succeeded {
            self.become_ready(worker, false, now, actions);
        } else {
            watched.next = Some(now + watched.pause);
            watched.pause = (watched.pause * 2).min(LONGEST_PROBE_PAUSE);
        }
    }

    /// Where nobody watches the worker, its own word counts, or that it lives.
    fn become_ready_unseen(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let notify = self.settings.notify;
        let Some(slot) = self.slot_of(worker) else { return };
        let unwatched = matches!(slot.state, State::Starting { watched: None, .. });
        if unwatched && (slot.notified || !notify) {
            self.become_ready(worker, false, now, actions);
        }
    }

    fn become_ready(&mut self, worker: Worker, seen: bool, now: Instant, actions: &mut Vec<Action>) {
        let (watch, bake, has_listener) = (self.settings.watch, self.settings.tuning.bake, self.settings.has_listener);
        let Some(slot) = self.slot_of(worker) else { return };
        let visible = slot.hidden.is_none();
        let unproven = slot.executed.filter(|_| watch == Watch::IfItListens && !seen && slot.hidden.is_none());
        slot.state = State::Ready { unproven: unproven.map(|executed| executed + bake) };
        actions.push(Action::Report(Report::Ready { slot: worker.slot, notified: slot.notified, seen }));
        match seen || !visible || !has_listener {
            true => self.suspects.remove(worker),
            false => self.suspects.add(worker, None, now),
        }
    }

    fn examined(&mut self, worker: Worker, shown: Option<Bypass>, now: Instant, actions: &mut Vec<Action>) {
        match shown {
            None => self.suspects.remove(worker),
            Some(shown) if self.suspects.is_convicted(worker, &shown, now) => {
                actions.push(Action::Report(Report::Bypasses { slot: worker.slot, own: shown.own }));
            }
            Some(_) => {}
        }
    }

    fn ended(&mut self, worker: Worker, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let (pace, trial, stopping) = (self.settings.tuning.pace, self.settings.trial, self.stopping.is_some());
        let gave_up = self.gave_up;
        if self.slot_of(worker).is_none() {
            return;
        }
        let random = self.random.draw();
        let Some(slot) = self.slot_of(worker) else { return };
        let lived = now.saturating_duration_since(slot.since);
        let cause = slot.ended_for.take().unwrap_or(cause);
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
            // Wanted again meanwhile.
            slot.state = State::Waiting { until: now };
            slot.is_anew = true;
            return;
        }
        if let Some(code) = self.final_code(&cause) {
            return self.end_for_good(worker, code, actions);
        }
        let Some(slot) = self.slots.get_mut(worker.slot as usize) else { return };
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
        if self.slot_of(worker).is_none() {
            return;
        }
        let mut escalation = match &self.stopping {
            Some(stopping) if stopping.urgency != Urgency::Patient => {
                Escalation::resume(&stopping.schedule, stopping.begun, now)
            }
            _ => Escalation::begin(&self.settings.tuning.stop, now),
        };
        actions.push(Action::Note(Note::LeftBehind(worker)));
        if escalation.deadline().is_none() {
            escalation = Escalation::begin(&Schedule::kill(), now);
        } else if let Some(stopping) = self.stopping.as_ref().filter(|stopping| stopping.urgency != Urgency::Patient) {
            // It was its worker that got this; it has as long to end as the stop still takes.
            actions.push(Action::SignalGroup(worker, stopping.schedule.first_signal()));
        }
        self.groups.insert(worker, escalation);
    }

    /// The release serves: what died on trial just before is filled again like any other slot.
    fn commit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.settings.trial, false) || self.stopping.is_some() {
            return;
        }
        let timeout = self.settings.tuning.ready_timeout;
        for slot in &mut self.slots {
            match &mut slot.state {
                State::Empty if slot.wanted => slot.state = State::Waiting { until: now },
                State::Starting { deadline, .. } => *deadline = Some(now + timeout),
                _ => {}
            }
        }
        self.tell_those_ended_for_good(actions);
    }

    fn stop(&mut self, urgency: Urgency, now: Instant, actions: &mut Vec<Action>) {
        let before = self.stopping.as_ref().map(|stopping| stopping.urgency);
        if before >= Some(urgency) {
            return;
        }
        if before.is_none() {
            actions.push(Action::CloseListeners);
        }
        let schedule = match urgency {
            Urgency::Patient => self.settings.tuning.stop.patient(),
            Urgency::Graceful => self.settings.tuning.stop.clone(),
            Urgency::Quick => self.settings.tuning.stop.quick(),
        };
        let ends = |stopping: &Stopping| stopping.begun + stopping.schedule.total();
        let end = self.stopping.as_ref().filter(|stopping| stopping.urgency != Urgency::Patient).map(ends);
        match &mut self.stopping {
            // The end of what it has begun comes sooner.
            Some(stopping) if end.is_some_and(|end| end <= now + schedule.total()) => stopping.urgency = urgency,
            _ => self.stopping = Some(Stopping { urgency, schedule: schedule.clone(), begun: now }),
        }
        for slot in &mut self.slots {
            match &mut slot.state {
                State::Empty | State::EndedForGood { .. } => {}
                State::Waiting { .. } => slot.state = State::Empty,
                State::Stopping(escalation) => {
                    slot.ended_for = None;
                    if escalation.is_patient() {
                        *escalation = Escalation::begin(&schedule, now);
                    } else if urgency != Urgency::Patient {
                        // A graceful stop may be shorter than it was when this one was begun.
                        escalation.hasten(&schedule, now);
                    }
                }
                state => *state = State::Stopping(Escalation::begin(&schedule, now)),
            }
        }
        if urgency != Urgency::Patient {
            self.groups.values_mut().for_each(|escalation| escalation.hasten(&schedule, now));
        }
    }

    fn do_what_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for index in 0..self.slots.len() as u32 {
            self.end_if_overdue(index, now, actions);
            self.escalate_if_due(index, now, actions);
        }
        self.fill_those_due(now, actions);
        self.look_if_due(now, actions);
        self.examine_if_due(now, actions);
        self.end_probes(now, actions);
        for (worker, escalation) in &mut self.groups {
            if let Some(signal) = escalation.signal_due(now) {
                actions.push(Action::SignalGroup(*worker, signal));
            }
        }
    }

    /// A first worker, and one that is asked for anew, is no respawn.
    pub(super) fn fill(&mut self, index: u32, now: Instant, actions: &mut Vec<Action>) {
        let slot = &self.slots[index as usize];
        let is_respawn = slot.life > 0 && !slot.is_anew;
        let allowed = if is_respawn { self.respawn_allowed(now) } else { !self.gave_up };
        if allowed {
            self.slots[index as usize].respawns += u32::from(is_respawn);
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
            State::Starting { deadline: Some(deadline), .. } if deadline <= now => {
                let timeout = self.settings.tuning.ready_timeout;
                slot.state = State::Stopping(Escalation::begin(&self.settings.tuning.stop, now));
                slot.ended_for = Some(match slot.hidden.filter(|_| self.settings.watch == Watch::Always) {
                    Some(why) => Cause::NotSeen(timeout, why.to_string()),
                    None => Cause::NotReady(timeout),
                });
                actions.push(Action::Note(Note::NotReady(worker, self.settings.tuning.ready_timeout)));
            }
            _ => {}
        }
    }

    /// Looks at those that have waited longest for it; the rest has its turn at the next wake-up, at once.
    fn look_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let watched = self.slots.iter_mut().zip(0..).filter_map(|(slot, index)| match &mut slot.state {
            State::Starting { watched: Some(watched), .. } if watched.next.is_some_and(|next| next <= now) => {
                Some((Worker { slot: index, life: slot.life }, watched))
            }
            _ => None,
        });
        let mut due: Vec<_> = watched.collect();
        due.sort_by_key(|(_, watched)| watched.next);
        for (worker, watched) in due.into_iter().take(LOOKS_AT_ONCE) {
            if self.settings.watch == Watch::Probe {
                watched.next = None;
                self.probes.insert(worker, Probe { deadline: now + LONGEST_PROBE, ended: false });
                actions.push(Action::Probe(worker));
            } else {
                watched.next = Some(now + watched.pause);
                watched.pause = (watched.pause * 2).min(LONGEST_PAUSE);
                actions.push(Action::Look(worker));
            }
        }
    }

    fn examine_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let slots = &self.slots;
        self.suspects.keep(|worker| {
            let runs = |slot: &Slot| matches!(slot.state, State::Starting { .. } | State::Ready { .. });
            slots.get(worker.slot as usize).is_some_and(|slot| slot.life == worker.life && runs(slot))
        });
        actions.extend(self.suspects.due(now).map(Action::Examine));
    }

    /// Ends the probes that hang, and those of whose result nobody waits any more.
    fn end_probes(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (worker, probe) in &mut self.probes {
            let slot = &self.slots[worker.slot as usize];
            let awaited = slot.life == worker.life && matches!(slot.state, State::Starting { .. });
            if probe.deadline <= now || (!awaited && !probe.ended) {
                *probe = Probe { deadline: now + LONGEST_PROBE, ended: true };
                actions.push(Action::EndProbe(*worker));
            }
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
        if self.gave_up {
            return false;
        }
        let Some(limit) = self.settings.tuning.respawn_limit else { return true };
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
        if let Some(limit) = self.settings.tuning.respawn_limit.filter(|_| !self.gave_up) {
            self.gave_up = true;
            actions.push(Action::Note(Note::GaveUp(limit)));
            actions.push(Action::Report(Report::GaveUp));
        }
    }

    fn exit_if_done(&mut self, actions: &mut Vec<Action>) {
        let empty = !self.slots.iter().any(Slot::has_worker);
        if self.stopping.is_some() && empty && self.groups.is_empty() && self.probes.is_empty() && !self.exited {
            self.exited = true;
            actions.push(Action::Exit);
        }
    }
}
