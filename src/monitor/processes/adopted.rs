//! The children that a monitor has adopted. Each ends with the worker that it descends from, and with no other.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::monitor::decide::Worker;
use crate::monitor::processes::roster::Roster;
use crate::sys::processes::{self, Clues};
use crate::worker::kin::Mark;

/// Limit of the children that are looked at before anything else has its turn.
const MAX_LOOKS: usize = 256;

/// Changes of what workers have left.
#[derive(Debug, Default)]
pub(crate) struct LeftBehind {
    /// Workers that have ended and have left more than was known.
    pub(crate) more: Vec<Worker>,
    /// Workers of which nothing is left.
    pub(crate) gone: Vec<Worker>,
}

impl Roster {
    /// Finds the owners of the children that were adopted since the last look, and looks again at those without evidence:
    /// a process that waits for a disk shows none.
    pub(crate) fn meet(&mut self, main: i32, generation: u32) {
        let is_known = |pid: &Pid| {
            self.workers.contains_key(pid)
                || self.probes.contains_key(pid)
                || self.reasons.contains_key(pid)
                || self.measurement.as_ref().is_some_and(|measurement| measurement.pid == *pid)
                || self.kin.knows(*pid)
                || self.given_up.contains(pid)
        };
        let new: Vec<Pid> = processes::children().into_iter().filter(|pid| !is_known(pid)).collect();
        self.unmet = new.len() > MAX_LOOKS;
        let again: Vec<Pid> = self.kin.without_owner().collect();
        for pid in new.into_iter().chain(again).take(MAX_LOOKS) {
            let clues = Clues::of(pid);
            let owner = self.kin.owner_by_group(&clues, |leader| self.led_by(leader, pid));
            let by_mark = |mark: Mark| match mark {
                Mark { main: its, generation: of, worker } if (its, of) == (main, generation) => {
                    self.owner_in_slot(worker, &clues)
                }
                // A worker that is itself a panzer has workers of its own.
                Mark { main: other, .. } => self.led_by(Pid::from_raw(other), pid),
            };
            let owner = owner.or_else(|| by_mark(Mark::of(pid)?));
            self.kin.add(pid, clues, owner);
        }
        self.settle_unknown();
    }

    /// The worker, or the worker of the probe, with the pid `leader`. None if another process has this pid by now.
    fn led_by(&self, leader: Pid, who: Pid) -> Option<Worker> {
        let probed = || self.probes.get(&leader).copied();
        let alive = self.workers.get(&leader).copied().or_else(probed);
        let is_free = || leader != who && !processes::exists(leader);
        // If several workers had this pid one after the other, the last one counts.
        let had_it = || self.ended.values().filter(|(_, pid, _)| *pid == leader);
        let ended = || had_it().max_by_key(|(.., began)| *began).map(|(worker, ..)| *worker);
        alive.or_else(|| ended().filter(|_| is_free()))
    }

    /// The worker of a slot that a process descends from: the youngest one that did not begin later than the process.
    fn owner_in_slot(&self, slot: u32, clues: &Clues) -> Option<Worker> {
        let of_slot = self.live.range(Worker { slot, life: 0 }..=Worker { slot, life: u32::MAX });
        let mut live = of_slot.filter(|(_, live)| clues.started.is_none() || clues.started >= live.started);
        let ended = || self.ended.get(&slot).map(|(worker, ..)| *worker);
        live.next_back().map(|(worker, _)| *worker).or_else(ended)
    }

    /// Children without evidence end with the last of the workers that ran when they began.
    fn settle_unknown(&mut self) {
        let began: Vec<Option<u64>> = self.live.values().map(|live| live.started).collect();
        let (last, unmet) = (self.last_ended, self.unmet);
        self.kin.settle(|clues| {
            let may_descend = |began: &Option<u64>| clues.started.is_none() || clues.started >= *began;
            last.filter(|_| !unmet && !began.iter().any(may_descend))
        });
    }

    /// The changes since the last call.
    pub(crate) fn left_behind(&mut self) -> LeftBehind {
        let mut left: BTreeMap<Worker, BTreeSet<Pid>> = BTreeMap::new();
        for (pid, worker) in self.kin.owned().filter(|(_, worker)| self.pid_of(*worker).is_none()) {
            left.entry(worker).or_default().insert(pid);
        }
        if let Some(last) = self.last_ended.filter(|_| self.unmet && self.live.is_empty()) {
            // The children that have not been looked at may be its.
            left.entry(last).or_default();
        }
        let has_more = |(worker, all): &(&Worker, &BTreeSet<Pid>)| {
            self.left_behind.get(worker).is_none_or(|known| !all.is_subset(known))
        };
        let more = left.iter().filter(has_more).map(|(worker, _)| *worker).collect();
        let gone = self.left_behind.keys().filter(|worker| !left.contains_key(worker)).copied().collect();
        self.left_behind = left;
        LeftBehind { more, gone }
    }

    /// Sends `signal` to what this worker has left.
    pub(crate) fn signal_left_behind(&mut self, worker: Worker, signal: Signal) {
        let (workers, probes) = (&self.workers, &self.probes);
        let is_led = |group: Pid| workers.contains_key(&group) || probes.contains_key(&group);
        for (pid, error) in self.kin.signal(worker, signal, true, is_led) {
            log::warn!(
                "cannot send {} to pid {pid} ({}), which {worker} left behind: {}",
                signal.as_str(),
                processes::name_of(pid),
                processes::why_not_signalled(&error)
            );
        }
    }

    /// The monitor no longer waits for this worker, nor for what it has left. Returns these processes.
    pub(crate) fn give_up(&mut self, worker: Worker) -> Vec<Pid> {
        let left: Vec<Pid> = self.kin.of(worker).chain(self.pid_of(worker)).collect();
        for pid in &left {
            self.kin.remove(*pid);
            log::error!("{}", processes::does_not_end(*pid, &worker.to_string()));
        }
        self.given_up.extend(&left);
        left
    }
}
