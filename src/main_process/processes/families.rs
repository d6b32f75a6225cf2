//! Facts about the workers of each monitor.

use std::collections::{BTreeMap, BTreeSet};

use nix::unistd::Pid;

use crate::sys::processes::{self};

/// A process: its pid, and when it began, because pids are used again.
pub(crate) type Known = (Pid, Option<u64>);

/// Facts about the workers of one monitor.
#[derive(Debug, Default)]
pub(crate) struct Family {
    /// The last process of each slot, and earlier ones in whose group a process still runs.
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

    /// A worker was started in this slot. Processes that an earlier one has left may outlive the monitor.
    pub(crate) fn add(&mut self, slot: u32, worker: Known) {
        let workers = self.workers.entry(slot).or_default();
        workers.retain(|(pid, _)| processes::exists(*pid) || processes::group_exists(*pid));
        workers.push(worker);
    }

    /// When the worker with the pid `leader` began. None if no worker has had this pid, or if another process has it by
    /// now.
    pub(crate) fn led(&self, leader: Pid, who: Pid) -> Option<Option<u64>> {
        let is_it = |&&(_, began): &&Known| match processes::started(leader) {
            Some(now) => Some(now) == began,
            None => leader != who && !processes::exists(leader),
        };
        let had_it = self.workers.values().flatten().filter(|(pid, _)| *pid == leader);
        had_it.filter(is_it).map(|(_, began)| *began).max()
    }
}
