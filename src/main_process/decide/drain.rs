//! Generations that drain: how each one is stopped, and how many may drain at their own pace.

use std::collections::BTreeSet;
use std::time::Instant;

use super::generations::Generations;
use super::retired::Draining;
use super::vocabulary::{Action, Monitor, Note};
use crate::control::monitor::messages::Urgency;

impl Generations {
    /// The generations that are being stopped, or that have left something which is being stopped.
    pub fn draining(&self) -> BTreeSet<u32> {
        self.draining.keys().chain(self.orphans.keys()).map(|monitor| monitor.generation).collect()
    }

    /// The given generation, or all that drain, go on to the rest of their schedule.
    pub(super) fn escalate_draining(&mut self, generation: Option<u32>, now: Instant, actions: &mut Vec<Action>) {
        let is_meant = |monitor: &Monitor| generation.is_none_or(|generation| generation == monitor.generation);
        for (monitor, draining) in self.draining.iter_mut().filter(|(monitor, _)| is_meant(monitor)) {
            if let Some(order) = draining.escalate(*monitor, Urgency::Quick, now) {
                actions.push(Action::Note(Note::Hurried(monitor.generation)));
                actions.push(order);
            }
        }
        self.orphans
            .iter_mut()
            .filter(|(monitor, _)| is_meant(monitor))
            .for_each(|(_, orphans)| orphans.escalate(Urgency::Quick, now));
    }

    /// If too many generations drain, the ones that have drained for longest get no more time. A stop of everything has
    /// its own time. A generation that may end when it likes is not counted.
    pub(super) fn escalate_those_beyond_limit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let limit = self.wanted.settings.max_draining;
        let is_slow = |draining: &Draining| matches!(draining.urgency, Urgency::Retiring | Urgency::Graceful);
        let slow = self.draining.iter_mut().filter(|(_, draining)| is_slow(draining));
        let mut slow: Vec<_> = slow.collect();
        slow.sort_by_key(|(monitor, draining)| (draining.since, **monitor));
        let beyond = slow.len().saturating_sub(limit as usize);
        for (monitor, draining) in slow.into_iter().take(beyond) {
            actions.push(Action::Note(Note::Hastened(monitor.generation, limit)));
            actions.extend(draining.escalate(*monitor, Urgency::Quick, now));
        }
    }
}
