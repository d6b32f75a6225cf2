//! Which process is in which slot: the one place of a monitor that knows pids.
//!
//! A pid in here is an unreaped child, so that no signal can ever hit a stranger.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::state::Worker;
use crate::sys::processes;
use crate::worker::cause::Cause;
use crate::worker::spawn::Child;

/// How many generations of descendants a message may come from.
const DEEPEST: usize = 32;

/// A worker's process.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) worker: Worker,
    pid: Pid,
    /// Until the outcome of its exec is known.
    pub(super) executing: Option<Child>,
    /// Why its exec was refused.
    pub(super) refused: Option<Cause>,
}

impl Live {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }
}

/// All processes of a monitor.
#[derive(Debug, Default)]
pub(super) struct Roster {
    live: BTreeMap<u32, Live>,
    slots: BTreeMap<Pid, u32>,
    /// Probes under way, and of whom.
    probes: BTreeMap<Pid, Worker>,
    /// Process groups that outlived their probe, and were killed for it.
    left_by_probes: BTreeSet<Pid>,
    /// Process groups that outlived their worker.
    left_behind: BTreeMap<Worker, BTreeSet<Pid>>,
    last: BTreeMap<u32, (Pid, Cause)>,
}

impl Roster {
    pub(super) fn add(&mut self, worker: Worker, child: Child) {
        let pid = child.pid;
        self.slots.insert(pid, worker.slot);
        self.live.insert(worker.slot, Live { worker, pid, executing: Some(child), refused: None });
    }

    /// Forgets a process that has been reaped.
    pub(super) fn remove(&mut self, pid: Pid) -> Option<Live> {
        let slot = self.slots.remove(&pid)?;
        self.live.remove(&slot)
    }

    pub(super) fn add_probe(&mut self, worker: Worker, child: Child) {
        self.probes.insert(child.pid, worker);
    }

    /// Forgets a probe that has been reaped, and kills what it left in its group: a probe leaves nothing behind.
    pub(super) fn remove_probe(&mut self, pid: Pid) -> Option<Worker> {
        let worker = self.probes.remove(&pid)?;
        // A group that holds an unreaped child of ours cannot be anybody else's.
        if processes::group_exists(pid) && self.adopted_groups().any(|group| group == pid) {
            self.left_by_probes.insert(pid);
            if let Err(error) = processes::signal_group(pid, Signal::SIGKILL) {
                log::warn!("cannot kill what a probe of worker {} left behind (group {pid}): {error}", worker.slot);
            }
        }
        Some(worker)
    }

    /// Kills the probe of this worker, with what it has started.
    pub(super) fn kill_probe(&self, worker: Worker) {
        for (pid, _) in self.probes.iter().filter(|(_, probed)| **probed == worker) {
            let killed = processes::signal_group(*pid, Signal::SIGKILL)
                .and_then(|()| processes::signal_child(*pid, Signal::SIGKILL));
            if let Err(error) = killed {
                log::warn!("cannot kill the probe of worker {} (pid {pid}): {error}", worker.slot);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub(super) fn slot_of(&self, pid: Pid) -> Option<u32> {
        self.slots.get(&pid).copied()
    }

    pub(super) fn in_slot(&mut self, slot: u32) -> Option<&mut Live> {
        self.live.get_mut(&slot)
    }

    /// The pid of a live worker, or for a message about one that has just ended, the one it had.
    pub(super) fn shown_pid(&self, worker: Worker) -> Option<i32> {
        let last = || self.last.get(&worker.slot).map(|(pid, _)| *pid);
        self.pid_of(worker).or_else(last).map(Pid::as_raw)
    }

    pub(super) fn pid_of(&self, worker: Worker) -> Option<Pid> {
        self.live.get(&worker.slot).filter(|live| live.worker == worker).map(Live::pid)
    }

    pub(super) fn remember(&mut self, slot: u32, pid: Pid, cause: &Cause) {
        self.last.insert(slot, (pid, cause.clone()));
    }

    /// What ended in this slot as it was to is told to nobody.
    pub(super) fn forget(&mut self, slot: u32) {
        self.last.remove(&slot);
    }

    pub(super) fn last_cause(&self, slot: u32) -> Option<&Cause> {
        self.last.get(&slot).map(|(_, cause)| cause)
    }

    /// The worker that `pid` is or descends from.
    pub(super) fn find_ancestor(&self, pid: Pid) -> Option<Worker> {
        // Most are in the worker's own group, and a sender that has ended since has no parent to ask for.
        let mut candidate = processes::group_of(pid).filter(|group| self.slots.contains_key(group)).unwrap_or(pid);
        for _ in 0..DEEPEST {
            if let Some(slot) = self.slots.get(&candidate) {
                return self.live.get(slot).map(|live| live.worker);
            }
            candidate = processes::parent_of(candidate)?;
        }
        None
    }

    /// Whether a worker that has just been reaped left processes behind: of its own group, and with `strays` any other
    /// that was adopted, as a program leaves them that goes to the background.
    pub(super) fn note_left_behind(&mut self, pid: Pid, worker: Worker, strays: bool) -> bool {
        if !strays && !processes::group_exists(pid) {
            return false;
        }
        let groups: BTreeSet<Pid> = self.adopted_groups().filter(|group| strays || *group == pid).collect();
        let known: BTreeSet<Pid> = self.left_behind.values().flatten().copied().collect();
        let new: BTreeSet<Pid> = groups.difference(&known).copied().collect();
        let any = !new.is_empty();
        if any {
            self.left_behind.insert(worker, new);
        }
        any
    }

    /// Those of whose groups nobody is left.
    pub(super) fn groups_gone(&mut self) -> Vec<Worker> {
        self.left_by_probes.retain(|group| processes::group_exists(*group));
        let alive: BTreeSet<Pid> = self.adopted_groups().collect();
        let mut gone = Vec::new();
        self.left_behind.retain(|worker, groups| {
            groups.retain(|group| alive.contains(group));
            if groups.is_empty() {
                gone.push(*worker);
            }
            !groups.is_empty()
        });
        gone
    }

    pub(super) fn signal_left_behind(&self, worker: Worker, signal: Signal) {
        // A group that holds an unreaped child of ours cannot be anybody else's.
        let alive: BTreeSet<Pid> = self.adopted_groups().collect();
        for group in self.left_behind.get(&worker).into_iter().flatten().filter(|group| alive.contains(group)) {
            if let Err(error) = processes::signal_group(*group, signal) {
                log::warn!("cannot send {} to process group {group}: {error}", signal.as_str());
            }
        }
    }

    /// The groups of those children that are neither workers nor probes but were adopted; the groups of those are left
    /// to them.
    fn adopted_groups(&self) -> impl Iterator<Item = Pid> {
        let is_ours = |pid: &Pid| self.slots.contains_key(pid) || self.probes.contains_key(pid);
        let strangers = processes::children().into_iter().filter(move |child| !is_ours(child));
        let is_known = move |group: &Pid| is_ours(group) || self.left_by_probes.contains(group);
        strangers.filter_map(processes::group_of).filter(move |group| !is_known(group))
    }
}
