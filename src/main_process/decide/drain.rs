//! Generations that drain: how each is stopped, and how many may take their time over it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::generations::Generations;
use super::vocabulary::{Action, Monitor, Note};
use crate::config::{Schedule, Tuning};
use crate::control::monitor::messages::{Order, Urgency};

/// What a monitor gets beyond its workers' schedule before it is killed itself, and what was killed, to be gone.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// A monitor that was told to stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Draining {
    #[serde(with = "crate::carry::moment")]
    pub(super) since: Instant,
    pub(super) urgency: Urgency,
    /// How its workers are stopped, what they go through of it, and since when.
    pub(super) stop: Schedule,
    pub(super) schedule: Schedule,
    #[serde(with = "crate::carry::moment")]
    pub(super) begun: Instant,
    #[serde(with = "crate::carry::moment::option")]
    pub(super) kill_at: Option<Instant>,
    /// Only a generation that once served is worth a word when it is gone.
    pub(super) served: bool,
}

impl Draining {
    /// One that is told now.
    pub(super) fn begin(tuning: Tuning, served: bool, urgency: Urgency, now: Instant) -> Draining {
        let retires = matches!(urgency, Urgency::Patient | Urgency::Retiring);
        let schedule = scheduled(if retires { tuning.retirement() } else { &tuning.stop }, urgency);
        let stop = tuning.stop;
        let kill_at = (urgency != Urgency::Patient).then(|| now + schedule.total() + GRACE);
        Draining { since: now, urgency, stop, schedule, begun: now, kill_at, served }
    }

    /// One of its workers has until then before it gets the next signal.
    pub(super) fn extend(&mut self, until: Instant) {
        if self.urgency != Urgency::Quick {
            let end = until + self.schedule.total() + GRACE;
            self.kill_at = self.kill_at.map(|kill_at| kill_at.max(end));
        }
    }

    /// It is stopped so urgently from here on; the order to do so, unless it is already.
    pub(super) fn hasten(&mut self, monitor: Monitor, urgency: Urgency, now: Instant) -> Option<Action> {
        if self.urgency >= urgency {
            return None;
        }
        let schedule = scheduled(&self.stop, urgency);
        let patient = self.urgency == Urgency::Patient;
        self.urgency = urgency;
        if patient || now + schedule.total() < self.begun + self.schedule.total() {
            let kill_at = now + schedule.total() + GRACE;
            // One that had to be killed is not killed again.
            self.kill_at = if patient { Some(kill_at) } else { self.kill_at.map(|_| kill_at) };
            (self.schedule, self.begun) = (schedule, now);
        }
        Some(Action::Order(monitor, Order::Stop(urgency)))
    }
}

impl Generations {
    /// The generations that are being stopped, or of which something is left that is.
    pub fn draining(&self) -> BTreeSet<u32> {
        self.draining.keys().chain(self.orphans.keys()).map(|monitor| monitor.generation).collect()
    }

    /// These, or the only one that is meant, go on to the rest of their schedule.
    pub(super) fn hasten_draining(&mut self, generation: Option<u32>, now: Instant, actions: &mut Vec<Action>) {
        let is_meant = |monitor: &Monitor| generation.is_none_or(|generation| generation == monitor.generation);
        for (monitor, draining) in self.draining.iter_mut().filter(|(monitor, _)| is_meant(monitor)) {
            if let Some(order) = draining.hasten(*monitor, Urgency::Quick, now) {
                actions.push(Action::Note(Note::Hurried(monitor.generation)));
                actions.push(order);
            }
        }
        self.orphans
            .iter_mut()
            .filter(|(monitor, _)| is_meant(monitor))
            .for_each(|(_, orphans)| orphans.hasten(Urgency::Quick, now));
    }

    /// Of more than may take their time, those that have drained for longest take no more. A stop of everything has its
    /// own time, and what was let go to end when it likes is not counted.
    pub(super) fn hasten_those_beyond_limit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let limit = self.settings.max_draining;
        let is_slow = |draining: &Draining| matches!(draining.urgency, Urgency::Retiring | Urgency::Graceful);
        let slow = self.draining.iter_mut().filter(|(_, draining)| is_slow(draining));
        let mut slow: Vec<_> = slow.collect();
        slow.sort_by_key(|(monitor, draining)| (draining.since, **monitor));
        let beyond = slow.len().saturating_sub(limit as usize);
        for (monitor, draining) in slow.into_iter().take(beyond) {
            actions.push(Action::Note(Note::Hastened(monitor.generation, limit)));
            actions.extend(draining.hasten(*monitor, Urgency::Quick, now));
        }
    }
}

/// How what is to be stopped `stop` is stopped so urgently.
pub(super) fn scheduled(stop: &Schedule, urgency: Urgency) -> Schedule {
    match urgency {
        Urgency::Patient => stop.patient(),
        Urgency::Retiring | Urgency::Graceful => stop.clone(),
        Urgency::Quick => stop.quick(),
    }
}
