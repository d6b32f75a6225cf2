//! By what each generation is to run, with a reckoning of its own.

use std::collections::{BTreeMap, BTreeSet};

use panzer::config::Tuning;
use panzer::control::monitor::messages::Urgency;
use panzer::main_process::decide::Settings;

use crate::check::{Checked, hold};

#[derive(Debug)]
pub(crate) struct Wanted {
    /// Of the last one that serves, or did; what failed never counts.
    current: Settings,
    of: BTreeMap<u32, Settings>,
    /// The generations that are still to be told of it.
    untold: BTreeSet<u32>,
}

impl Wanted {
    pub(crate) fn new(first: Settings) -> Wanted {
        Wanted { of: BTreeMap::from([(1, first.clone())]), current: first, untold: BTreeSet::new() }
    }

    pub(crate) fn current(&self) -> &Settings {
        &self.current
    }

    /// What this generation runs by, or ran by to its end.
    pub(crate) fn of(&self, generation: u32) -> &Settings {
        self.of.get(&generation).unwrap_or(&self.current)
    }

    /// How a generation is stopped that a reload retires in this way.
    pub(crate) fn retirement(&self, generation: u32, asked: Urgency) -> Urgency {
        let has_own = asked == Urgency::Graceful && self.of(generation).tuning.retire.is_some();
        if has_own { Urgency::Retiring } else { asked }
    }

    pub(crate) fn planned(&mut self, generation: u32, settings: Settings) {
        self.of.insert(generation, settings);
    }

    pub(crate) fn serves(&mut self, generation: u32) {
        self.current = self.of(generation).clone();
    }

    /// The configuration was read again: those that go on go by it, and are told.
    pub(crate) fn tuned(&mut self, tuning: &Tuning, going_on: impl Iterator<Item = u32>) {
        self.untold.extend(going_on);
        self.current.tuning.clone_from(tuning);
        for generation in &self.untold {
            if let Some(settings) = self.of.get_mut(generation) {
                settings.tuning.clone_from(tuning);
            }
        }
    }

    pub(crate) fn is_told(&mut self, generation: u32, tuning: &Tuning) -> Checked {
        let due = self.untold.remove(&generation);
        let right = due && self.of(generation).tuning == *tuning;
        hold(right, 8, || format!("generation {generation} is told other delays and waits than are configured for it"))
    }

    pub(crate) fn check_told(&self) -> Checked {
        let forgotten = self.untold.first();
        hold(forgotten.is_none(), 7, || format!("generation {forgotten:?} is not told what was configured"))
    }
}
