//! Generations that drain: how each is stopped, and how many may take their time over it.

use std::time::{Duration, Instant};

use super::state::{Action, Generations, Monitor, Note};
use crate::config::Schedule;
use crate::control::messages::{Order, Urgency};

/// What a monitor gets beyond its workers' schedule before it is killed itself, and what was killed, to be gone.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// A monitor that was told to stop.
#[derive(Debug)]
pub(super) struct Draining {
    pub(super) since: Instant,
    pub(super) urgency: Urgency,
    /// How its workers are stopped, what they go through of it, and since when.
    pub(super) stop: Schedule,
    pub(super) schedule: Schedule,
    pub(super) begun: Instant,
    pub(super) kill_at: Option<Instant>,
    /// Only a generation that once served is worth a word when it is gone.
    pub(super) served: bool,
}

impl Draining {
    /// One that is told now.
    pub(super) fn begin(stop: Schedule, served: bool, urgency: Urgency, now: Instant) -> Draining {
        let schedule = scheduled(&stop, urgency);
        let kill_at = Some(now + schedule.total() + GRACE);
        Draining { since: now, urgency, stop, schedule, begun: now, kill_at, served }
    }

    /// It follows the quick schedule from here on; the order to do so, unless it does already.
    pub(super) fn hasten(&mut self, monitor: Monitor, now: Instant) -> Option<Action> {
        if self.urgency >= Urgency::Quick {
            return None;
        }
        let quick = self.stop.quick();
        self.urgency = Urgency::Quick;
        if now + quick.total() < self.begun + self.schedule.total() {
            self.kill_at = self.kill_at.map(|_| now + quick.total() + GRACE);
            (self.schedule, self.begun) = (quick, now);
        }
        Some(Action::Order(monitor, Order::Stop(Urgency::Quick)))
    }
}

impl Generations {
    /// Of more than may take their time, those that have drained for longest take no more. A stop of everything has its
    /// own time.
    pub(super) fn hasten_those_beyond_limit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let limit = self.settings.max_draining;
        let patient = self.draining.iter_mut().filter(|(_, draining)| draining.urgency < Urgency::Quick);
        let mut patient: Vec<_> = patient.collect();
        patient.sort_by_key(|(monitor, draining)| (draining.since, **monitor));
        let beyond = patient.len().saturating_sub(limit as usize);
        for (monitor, draining) in patient.into_iter().take(beyond) {
            actions.push(Action::Note(Note::Hastened(monitor.generation, limit)));
            actions.extend(draining.hasten(*monitor, now));
        }
    }
}

/// How what is to be stopped `stop` is stopped so urgently.
pub(super) fn scheduled(stop: &Schedule, urgency: Urgency) -> Schedule {
    match urgency {
        Urgency::Graceful => stop.clone(),
        Urgency::Quick => stop.quick(),
    }
}
