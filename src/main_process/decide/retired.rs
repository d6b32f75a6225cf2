//! Remains of generations that no longer serve: monitors that drain, and orphans.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::vocabulary::{Action, Monitor};
use crate::config::{Escalation, Schedule, Tuning};
use crate::control::monitor::messages::{Order, Urgency};

/// Time that a monitor gets beyond the schedule of its workers, before main kills it. Also the time in which a killed
/// process must be gone.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// A monitor that was told to stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Draining {
    #[serde(with = "crate::carry::moment")]
    pub(super) since: Instant,
    pub(super) urgency: Urgency,
    /// How its workers are stopped, their state in that schedule, and when it began.
    pub(super) stop: Schedule,
    pub(super) schedule: Schedule,
    #[serde(with = "crate::carry::moment")]
    pub(super) begun: Instant,
    #[serde(with = "crate::carry::moment::option")]
    pub(super) kill_at: Option<Instant>,
    /// Whether the generation has served. Only then its end is logged.
    pub(super) served: bool,
}

impl Draining {
    /// A monitor that is told to stop now.
    pub(super) fn begin(tuning: Tuning, served: bool, urgency: Urgency, now: Instant) -> Draining {
        let retires = matches!(urgency, Urgency::Patient | Urgency::Retiring);
        let schedule = scheduled(if retires { tuning.retirement() } else { &tuning.stop }, urgency);
        let stop = tuning.stop;
        let kill_at = (urgency != Urgency::Patient).then(|| now + schedule.total() + GRACE);
        Draining { since: now, urgency, stop, schedule, begun: now, kill_at, served }
    }

    /// One of its workers gets its next signal no earlier than `until`.
    pub(super) fn extend(&mut self, until: Instant) {
        if self.urgency != Urgency::Quick {
            let end = until + self.schedule.total() + GRACE;
            self.kill_at = self.kill_at.map(|kill_at| kill_at.max(end));
        }
    }

    /// Makes the stop more urgent. Returns the order for that, unless it is that urgent already.
    pub(super) fn escalate(&mut self, monitor: Monitor, urgency: Urgency, now: Instant) -> Option<Action> {
        if self.urgency >= urgency {
            return None;
        }
        let schedule = scheduled(&self.stop, urgency);
        let patient = self.urgency == Urgency::Patient;
        self.urgency = urgency;
        if patient || now + schedule.total() < self.begun + self.schedule.total() {
            let kill_at = now + schedule.total() + GRACE;
            // A monitor that was killed is not killed again.
            self.kill_at = if patient { Some(kill_at) } else { self.kill_at.map(|_| kill_at) };
            (self.schedule, self.begun) = (schedule, now);
        }
        Some(Action::Order(monitor, Order::Stop(urgency)))
    }
}

/// Processes that outlived one monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Orphans {
    pub(super) stop: Schedule,
    pub(super) escalation: Escalation,
}

impl Orphans {
    /// Makes the stop more urgent, if they end earlier by that.
    pub(super) fn escalate(&mut self, urgency: Urgency, now: Instant) {
        self.escalation.escalate(&scheduled(&self.stop, urgency), now);
    }

    /// When they get the next signal, or are given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.escalation.deadline().or(self.escalation.killed().map(|killed| killed + GRACE))
    }
}

/// The schedule of a stop with this urgency.
pub(super) fn scheduled(stop: &Schedule, urgency: Urgency) -> Schedule {
    match urgency {
        Urgency::Patient => stop.patient(),
        Urgency::Retiring | Urgency::Graceful => stop.clone(),
        Urgency::Quick => stop.quick(),
    }
}
