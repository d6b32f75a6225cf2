//! How workers become ready: by their own word, by being seen accepting, by a probe, or by living; and whether they
//! accept on what they were given.

use std::time::{Duration, Instant};

use super::state::{Action, Slot, Slots, State, Watch, Worker};
use crate::control::messages::Report;
use crate::readiness::watch::{Bypass, Sight};

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

/// Time between bind and listen of a worker that serves already, at most.
const BEFORE_LISTEN: Duration = Duration::from_secs(1);

/// Time that a program loads between bind and listen, if nothing shows but that it is alive.
const LOADING: Duration = Duration::from_secs(5);

/// So many workers are looked at before anything else has its turn.
const LOOKS_AT_ONCE: usize = 16;

/// When a worker is looked at or probed again; none while a probe of it is under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Watched {
    pub(super) next: Option<Instant>,
    pause: Duration,
}

impl Watched {
    fn from(now: Instant, watch: Watch) -> Watched {
        Watched { next: Some(now), pause: if watch == Watch::Probe { FIRST_PROBE_PAUSE } else { FIRST_PAUSE } }
    }
}

/// A probe under way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Probe {
    /// When it is ended, or ended again.
    pub(super) deadline: Instant,
    /// Whether it was told to end.
    ended: bool,
}

impl Slots {
    pub(super) fn executed(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
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

    pub(super) fn notified(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
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
    pub(super) fn ready_deadline(&self, now: Instant) -> Option<Instant> {
        (!self.settings.trial).then(|| now + self.settings.tuning.ready_timeout)
    }

    /// Whether it accepts there is to be seen from now on, unless it has been found ready for good.
    pub(super) fn listens(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (watch, trial, deadline) = (self.settings.watch, self.settings.trial, self.ready_deadline(now));
        let Some(slot) = self.slot_of(worker) else { return };
        let is_first = !std::mem::replace(&mut slot.listens, true);
        if matches!(slot.state, State::Ready { .. }) {
            slot.serves.get_or_insert(now);
        }
        if !is_first || !matches!(watch, Watch::IfItListens | Watch::IfSeeable) {
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

    pub(super) fn seen(&mut self, worker: Worker, sight: Sight, now: Instant, actions: &mut Vec<Action>) {
        let watch = self.settings.watch;
        let Some(slot) = self.slot_of(worker) else { return };
        let State::Starting { watched: watched @ Some(_), .. } = &mut slot.state else { return };
        match sight {
            // What it did before it was stopped.
            Sight::Accepting if slot.suspended => {}
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

    pub(super) fn probed(&mut self, worker: Worker, succeeded: bool, now: Instant, actions: &mut Vec<Action>) {
        self.probes.remove(&worker);
        let Some(slot) = self.slot_of(worker) else { return };
        let State::Starting { watched: Some(watched), .. } = &mut slot.state else { return };
        if succeeded && !slot.suspended {
            self.become_ready(worker, false, now, actions);
        } else {
            watched.next = Some(now + watched.pause);
            watched.pause = (watched.pause * 2).min(LONGEST_PROBE_PAUSE);
        }
    }

    /// If nobody watches the worker, its own word counts, or that it lives; not while it is stopped.
    pub(super) fn become_ready_unseen(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let notify = self.settings.notify;
        let Some(slot) = self.slot_of(worker) else { return };
        let unwatched = matches!(slot.state, State::Starting { watched: None, .. });
        if unwatched && !slot.suspended && (slot.notified || !notify) {
            self.become_ready(worker, false, now, actions);
        }
    }

    fn become_ready(&mut self, worker: Worker, seen: bool, now: Instant, actions: &mut Vec<Action>) {
        let (watch, bake, has_listener) = (self.settings.watch, self.settings.tuning.bake, self.settings.has_listener);
        let Some(slot) = self.slot_of(worker) else { return };
        let visible = slot.hidden.is_none();
        let unproven = slot.executed.filter(|_| watch == Watch::IfItListens && !seen && slot.hidden.is_none());
        slot.state = State::Ready { unproven: unproven.map(|executed| executed + bake) };
        let is_measured = seen || slot.listens || watch == Watch::Probe || (watch == Watch::No && slot.notified);
        slot.serves = is_measured.then_some(now);
        actions.push(Action::Report(Report::Ready { slot: worker.slot, notified: slot.notified, seen }));
        match seen || !visible || !has_listener {
            true => self.suspects.remove(worker),
            false => self.suspects.add(worker, None, now),
        }
    }

    /// Whether a socket that a worker has bound `since` then may still listen, so that whoever binds the same waits for it.
    /// A process that has left its worker has none.
    pub fn may_listen(&self, worker: Option<Worker>, since: Instant, now: Instant) -> bool {
        let slot = worker.and_then(|worker| self.slots.get(worker.slot as usize).filter(|it| it.life == worker.life));
        let is_proven = |slot: &Slot| slot.serves.is_some() || slot.notified;
        match slot {
            Some(Slot { state: State::Executing { .. } | State::Starting { .. }, .. }) => true,
            Some(slot @ Slot { state: State::Ready { .. }, .. }) if is_proven(slot) => now < since + BEFORE_LISTEN,
            Some(Slot { state: State::Ready { .. }, .. }) | None => now < since + LOADING,
            Some(_) => false,
        }
    }

    /// Whether a worker has served for so long that its start is over: what it opens now is for itself.
    pub fn serves_for_long(&self, worker: Worker, now: Instant) -> bool {
        let slot = self.slots.get(worker.slot as usize).filter(|slot| slot.life == worker.life);
        let serves = slot.filter(|slot| matches!(slot.state, State::Ready { .. })).and_then(|slot| slot.serves);
        serves.is_some_and(|since| now >= since + self.settings.tuning.pace.healthy_after)
    }

    pub(super) fn examined(&mut self, worker: Worker, shown: Option<Bypass>, now: Instant, actions: &mut Vec<Action>) {
        match shown {
            None => self.suspects.remove(worker),
            Some(shown) if self.suspects.is_convicted(worker, &shown, now) => {
                actions.push(Action::Report(Report::Bypasses { slot: worker.slot, own: shown.own }));
            }
            Some(_) => {}
        }
    }

    /// Looks at those that have waited longest for it; the rest has its turn at the next wake-up, at once.
    pub(super) fn look_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
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

    pub(super) fn examine_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let slots = &self.slots;
        self.suspects.keep(|worker| {
            let runs = |slot: &Slot| matches!(slot.state, State::Starting { .. } | State::Ready { .. });
            slots.get(worker.slot as usize).is_some_and(|slot| slot.life == worker.life && runs(slot))
        });
        actions.extend(self.suspects.due(now).map(Action::Examine));
    }

    /// Ends the probes that hang, and those of whose result nobody waits any more.
    pub(super) fn end_probes(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (worker, probe) in &mut self.probes {
            let slot = &self.slots[worker.slot as usize];
            let awaited = slot.life == worker.life && matches!(slot.state, State::Starting { .. });
            if probe.deadline <= now || (!awaited && !probe.ended) {
                *probe = Probe { deadline: now + LONGEST_PROBE, ended: true };
                actions.push(Action::EndProbe(*worker));
            }
        }
    }
}
