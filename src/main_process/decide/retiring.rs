//! Generations that drain, and processes that outlived their monitor.

use std::collections::BTreeSet;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::generations::Generations;
use super::retired::{Draining, GRACE, Orphans, scheduled};
use super::vocabulary::{Action, Monitor, Note};
use crate::config::{Escalation, Schedule};
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

    /// Workers of this monitor have outlived it. If it drained, it was stopping them.
    pub(super) fn adopt(
        &mut self,
        monitor: Monitor,
        draining: Option<&Draining>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let starting = self.starting.iter().map(|(starting, _)| starting);
        let back = self.falling_back.iter().map(|back| &back.failed);
        let mut living = self.serving.iter().chain(starting).chain(back);
        let living = living.find(|generation| generation.monitor() == Some(monitor));
        let stop = draining.map(|draining| &draining.stop).or(living.map(|living| &living.settings.tuning.stop));
        let stop = stop.unwrap_or(&self.wanted.settings.tuning.stop).clone();
        let (schedule, begun) = match draining.filter(|draining| draining.kill_at.is_some()) {
            Some(draining) => (draining.schedule.clone(), draining.begun),
            // A monitor that had to be killed never stopped its workers. They get their whole schedule now.
            None => (scheduled(&stop, self.urgency()), now),
        };
        let mut escalation = Escalation::resume(&schedule, begun, now);
        if escalation.deadline().is_none() {
            // The schedule is over, and nobody knows whether the monitor still sent KILL.
            escalation = Escalation::begin(&Schedule::kill(), now);
        } else {
            actions.push(Action::SignalUnreached(monitor, schedule.first_signal()));
        }
        self.orphans.insert(monitor, Orphans { stop, escalation });
    }

    pub(super) fn on_orphans_gone(&mut self, monitor: Monitor, actions: &mut Vec<Action>) {
        if self.orphans.remove(&monitor).is_some() {
            self.release_if_gone(monitor.generation, actions);
        }
    }

    /// Main has adopted a process that an orphan left behind. It joins the others on their schedule.
    pub(super) fn on_orphans_joined(&mut self, monitor: Monitor, now: Instant, actions: &mut Vec<Action>) {
        match self.orphans.get_mut(&monitor) {
            Some(orphans) if orphans.escalation.killed().is_some() => {
                orphans.escalation.kill_more(GRACE, now);
                actions.push(Action::SignalOrphans(monitor, Signal::SIGKILL));
            }
            Some(_) => {}
            None => self.adopt(monitor, None, now, actions),
        }
    }

    /// Orphans are given up only at the end of a turn: if main has slept, their ends, and what they have left, are read by
    /// then.
    pub(super) fn signal_orphans_due(&mut self, now: Instant, is_turn_over: bool, actions: &mut Vec<Action>) {
        let mut given_up = Vec::new();
        for (monitor, Orphans { escalation, .. }) in &mut self.orphans {
            if let Some(signal) = escalation.signal_due(now) {
                actions.push(Action::SignalOrphans(*monitor, signal));
            } else if is_turn_over && escalation.killed().is_some_and(|killed| killed + GRACE <= now) {
                actions.push(Action::GiveUpOrphans(*monitor));
                given_up.push(*monitor);
            }
        }
        given_up.into_iter().for_each(|monitor| self.on_orphans_gone(monitor, actions));
    }
}
