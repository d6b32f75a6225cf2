//! What is known about the workers of each monitor.

use std::collections::{BTreeMap, BTreeSet};

use nix::unistd::Pid;

use crate::sys::processes::{self};

/// A process: its pid, and when it began, as pids come again.
pub(crate) type Known = (Pid, Option<u64>);

/// What is known of the workers of a monitor.
#[derive(Debug, Default)]
pub(crate) struct Family {
    /// The last process of each slot, and earlier ones in whose group something still runs.
    workers: BTreeMap<u32, Vec<Known>>,
    /// Processes that the monitor had given up when it ended.
    pub(crate) given_up: BTreeSet<GivenUp>,
}

/// A process that a monitor has given up: its pid, and when it began.
pub(crate) type GivenUp = (i32, Option<u64>);

impl Family {
    /// The family of a monitor that runs and has these workers.
    pub(crate) fn of_running(workers: impl Iterator<Item = Pid>) -> Family {
        let known = |pid| vec![(pid, processes::started(pid))];
        Family { workers: (0..).zip(workers.map(known)).collect(), given_up: BTreeSet::new() }
    }

    /// A worker has been started in this slot. What an earlier one has left may outlive the monitor.
    pub(crate) fn add(&mut self, slot: u32, worker: Known) {
        let workers = self.workers.entry(slot).or_default();
        workers.retain(|(pid, _)| processes::exists(*pid) || processes::group_exists(*pid));
        workers.push(worker);
    }

    /// When the worker began whose pid this is, or was. A number that is another process's by now says nothing.
    pub(crate) fn led(&self, leader: Pid, who: Pid) -> Option<Option<u64>> {
        let is_it = |&&(_, began): &&Known| match processes::started(leader) {
            Some(now) => Some(now) == began,
            None => leader != who && !processes::exists(leader),
        };
        let had_it = self.workers.values().flatten().filter(|(pid, _)| *pid == leader);
        had_it.filter(is_it).map(|(_, began)| *began).max()
    }
}
