//! The invariants of main's limits: who ended for good, when that ends all, and how many take their time to drain.

use std::collections::BTreeMap;

use panzer::control::monitor::messages::Urgency;
use panzer::main_process::decide::Monitor;

use crate::check::{Checked, hold};
use crate::check_main::{MainCheck, Watched};
use crate::kernel::Time;

impl Watched {
    /// Whether it drains, and may take its time over it.
    pub(crate) fn is_patient(&self) -> bool {
        !self.ended && self.ordered.graceful.is_some() && self.ordered.quick.is_none()
    }

    /// The next monitor has the slots from 0 on. What ended for good stays so, but for what may have been retired.
    pub(crate) fn renumber(&mut self) {
        for _ in 0..self.retiring {
            self.ended_for_good.pop_last();
        }
        self.retiring = 0;
        for code in self.ended_for_good.split_off(&self.workers).into_values() {
            let free = (0..self.workers).find(|slot| !self.ended_for_good.contains_key(slot));
            self.ended_for_good.extend(free.map(|slot| (slot, code)));
        }
    }
}

impl MainCheck {
    /// So many slots of the serving generation are not filled again.
    pub(crate) fn ended_for_good(&self) -> usize {
        self.serving.and_then(|serving| self.monitors.get(&serving)).map_or(0, |watched| watched.ended_for_good.len())
    }

    pub(crate) fn youngest_draining(&self) -> Option<Monitor> {
        self.patient().next_back()
    }

    /// Those that drain and may take their time over it, first what has done so for longest.
    pub(crate) fn patient(&self) -> impl DoubleEndedIterator<Item = Monitor> + ExactSizeIterator {
        let patient = self.monitors.iter().filter(|(_, watched)| watched.is_patient());
        let mut patient: Vec<_> = patient.map(|(monitor, watched)| (watched.ordered.graceful, *monitor)).collect();
        patient.sort_unstable();
        patient.into_iter().map(|(_, monitor)| monitor)
    }

    /// Whether more drain than may take their time, and this has done so for longest.
    pub(crate) fn is_beyond_limit(&self, monitor: Monitor) -> bool {
        self.patient().len() > self.wanted.current().max_draining as usize && self.patient().next() == Some(monitor)
    }

    /// What ended for good under one monitor is not started by the next.
    pub(crate) fn check_ended(&mut self, workers: u32, trial: bool, ended: &BTreeMap<u32, u8>) -> Checked {
        let serving = self.serving.and_then(|serving| self.monitors.get(&serving)).filter(|_| !trial);
        let known = serving.map(|watched| watched.ended_for_good.clone()).unwrap_or_default();
        let codes = |slots: &BTreeMap<u32, u8>| -> Vec<u8> {
            let mut codes: Vec<u8> = slots.values().copied().collect();
            codes.sort_unstable();
            codes
        };
        self.tally.ended_before += u64::from(!ended.is_empty());
        let right = codes(&known) == codes(ended) && ended.keys().all(|slot| *slot < workers);
        hold(right, 5, || format!("{ended:?} have ended for good, and it was {known:?}"))
    }

    /// Those that ended for good end all: each of them, or the first.
    pub(crate) fn check_finish(&mut self, now: Time, (generation, slot, code): (u32, Option<u32>, u8)) -> Checked {
        let serving = self.serving.filter(|serving| serving.generation == generation && !self.is_stopping());
        let ended = serving.and_then(|serving| self.monitors.get(&serving)).map(|watched| &watched.ended_for_good);
        let right = match slot {
            Some(slot) => self.finishes_all && ended.is_some_and(|ended| ended.get(&slot) == Some(&code)),
            None => self.has_finished() && ended.is_some_and(|ended| ended.values().max() == Some(&code)),
        };
        let tally = if slot.is_some() { &mut self.tally.finished_by_one } else { &mut self.tally.finished };
        *tally += 1;
        hold(right, 6, || format!("generation {generation} is said to have finished with {code}"))?;
        self.stopped(now, Urgency::Graceful, code);
        Ok(())
    }

    /// Whether nobody is left, nor is to come.
    pub(crate) fn has_finished(&self) -> bool {
        let serving = self.serving.and_then(|serving| self.monitors.get(&serving));
        self.starting().is_none() && self.falling_back.is_none() && serving.is_some_and(|watched| watched.has(0))
    }

    /// How long a generation, or a share of it, may take to be ready, where it is to have so many workers.
    pub(crate) fn longest_start(&self, generation: u32, workers: u32) -> Time {
        self.wanted.of(generation).tuning.longest_start(workers)
    }

    /// What must have been done by now.
    pub(crate) fn check_limits(&self) -> Checked {
        let finished = self.finishes_all || self.has_finished();
        hold(self.is_stopping() || !finished, 6, || "all has ended for good, and main goes on".to_owned())?;
        let patient = self.patient().len();
        let bounded = self.is_stopping() || patient <= self.wanted.current().max_draining as usize;
        hold(bounded, 2, || format!("{patient} generations take their time to drain"))
    }
}
