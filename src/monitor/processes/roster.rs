//! Which process is in which slot: the one place of a monitor that knows pids.
//!
//! A pid in here is an unreaped child, so that no signal can ever hit a stranger.

use std::collections::{BTreeMap, BTreeSet};

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::monitor::decide::Worker;
use crate::readiness::notify::NotifySocket;
use crate::readiness::watch;
use crate::sys::packets::Sender;
use crate::sys::processes;
use crate::worker::cause::Cause;
use crate::worker::kin::Kin;
use crate::worker::spawn::Child;

/// How many generations of descendants a message may come from.
const DEEPEST: usize = 32;

/// A worker's process.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) worker: Worker,
    pid: Pid,
    /// When it began, in the kernel's ticks.
    pub(crate) started: Option<u64>,
    /// Whether it has been logged that it may not be signalled.
    pub(crate) refuses: bool,
    /// Until the outcome of its exec is known.
    pub(crate) executing: Option<Child>,
    /// Why its exec was refused.
    pub(crate) refused: Option<Cause>,
    /// What it alone was given to tell us on.
    pub(crate) notify: Option<NotifySocket>,
    /// When it last said that it lives.
    pub(crate) sign_of_life: Option<Instant>,
}

impl Live {
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }
}

/// All processes of a monitor.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    pub(crate) live: BTreeMap<u32, Live>,
    pub(crate) slots: BTreeMap<Pid, u32>,
    /// The child that has just said that it was born, until it is somebody.
    pub(crate) newborn: Option<Pid>,
    /// Probes under way, and of whom.
    pub(crate) probes: BTreeMap<Pid, Worker>,
    /// The worker that ended last in each slot, its pid, and when it began.
    pub(crate) ended: BTreeMap<u32, (Worker, Pid, Option<u64>)>,
    /// The worker that ended last of all.
    pub(crate) last_ended: Option<Worker>,
    /// What workers have started, and has outlived its parent.
    pub(crate) kin: Kin<Worker>,
    /// What does not end, whatever it is sent, and is left alone.
    pub(crate) given_up: BTreeSet<Pid>,
    /// Workers that have ended, and what is left of them.
    pub(crate) left_behind: BTreeMap<Worker, BTreeSet<Pid>>,
    /// Whether there are adopted children that have not been looked at yet.
    pub(crate) unmet: bool,
    last: BTreeMap<u32, (Pid, Cause)>,
}

impl Roster {
    pub(crate) fn add(&mut self, worker: Worker, child: Child, started: Option<u64>, notify: Option<NotifySocket>) {
        let pid = child.pid;
        self.slots.insert(pid, worker.slot);
        let executing = Some(child);
        let live = Live { worker, pid, started, refuses: false, executing, refused: None, notify, sign_of_life: None };
        self.live.insert(worker.slot, live);
    }

    /// A child that the mold has forked is a worker.
    pub(crate) fn add_forked(&mut self, worker: Worker, pid: Pid, started: Option<u64>) {
        self.kin.remove(pid);
        self.slots.insert(pid, worker.slot);
        let live = Live {
            worker,
            pid,
            started,
            refuses: false,
            executing: None,
            refused: None,
            notify: None,
            sign_of_life: None,
        };
        self.live.insert(worker.slot, live);
    }

    /// What a child is known as: a worker, or what belongs to one.
    pub(crate) fn known_as(&self, pid: Pid) -> Option<Worker> {
        let alive = self.slots.get(&pid).and_then(|slot| self.live.get(slot)).map(|live| live.worker);
        let other = || self.probes.get(&pid).copied().or_else(|| self.kin.owner(pid));
        alive.or_else(|| other().filter(|owner| !owner.is_mold()))
    }

    /// Forgets a process that has been reaped.
    pub(crate) fn remove(&mut self, pid: Pid) -> Option<Live> {
        let slot = self.slots.remove(&pid)?;
        let live = self.live.remove(&slot)?;
        self.given_up.remove(&pid);
        self.ended.insert(slot, (live.worker, pid, live.started));
        self.last_ended = Some(live.worker);
        Some(live)
    }

    /// Forgets another child that has been reaped.
    pub(crate) fn remove_adopted(&mut self, pid: Pid) {
        self.kin.remove(pid);
        self.given_up.remove(&pid);
    }

    pub(crate) fn add_probe(&mut self, worker: Worker, child: Child) {
        self.probes.insert(child.pid, worker);
    }

    /// Forgets a probe that has been reaped, and kills what it left in its group: a probe leaves nothing behind.
    pub(crate) fn remove_probe(&mut self, pid: Pid, main: i32, generation: u32) -> Option<Worker> {
        let worker = *self.probes.get(&pid)?;
        if !processes::group_exists(pid) {
            return self.probes.remove(&pid);
        }
        // While it is known as one, what is in its group is known as its own.
        self.meet(main, generation);
        self.probes.remove(&pid);
        // A group that holds an unreaped child of ours cannot be anybody else's.
        let left = |child: Pid| processes::group_of(child) == Some(pid);
        if self.kin.of(worker).any(left)
            && let Err(error) = processes::signal_group(pid, Signal::SIGKILL)
        {
            log::warn!(
                "cannot kill what a probe of worker {} left behind (group {pid}): {}",
                worker.slot,
                processes::why_not_signalled(&error)
            );
        }
        Some(worker)
    }

    /// Kills the probe of this worker, with what it has started.
    pub(crate) fn kill_probe(&self, worker: Worker) {
        for (pid, _) in self.probes.iter().filter(|(_, probed)| **probed == worker) {
            let killed = processes::signal_group(*pid, Signal::SIGKILL)
                .and_then(|()| processes::signal_child(*pid, Signal::SIGKILL));
            if let Err(error) = killed {
                log::warn!(
                    "cannot kill the probe of worker {} (pid {pid}): {}",
                    worker.slot,
                    processes::why_not_signalled(&error)
                );
            }
        }
    }

    /// Number of workers that live.
    pub(crate) fn count(&self) -> usize {
        self.live.len()
    }

    /// This worker, or what it has started, has said that it lives.
    pub(crate) fn note_sign_of_life(&mut self, worker: Worker, now: Instant) {
        if let Some(live) = self.live.get_mut(&worker.slot) {
            live.sign_of_life = Some(now);
        }
    }

    pub(crate) fn slot_of(&self, pid: Pid) -> Option<u32> {
        self.slots.get(&pid).copied()
    }

    pub(crate) fn in_slot(&mut self, slot: u32) -> Option<&mut Live> {
        self.live.get_mut(&slot)
    }

    /// The pid of a live worker, or for a message about one that has just ended, the one it had.
    pub(crate) fn shown_pid(&self, worker: Worker) -> Option<i32> {
        let last = || self.last.get(&worker.slot).map(|(pid, _)| *pid);
        self.pid_of(worker).or_else(last).map(Pid::as_raw)
    }

    pub(crate) fn pid_of(&self, worker: Worker) -> Option<Pid> {
        self.live.get(&worker.slot).filter(|live| live.worker == worker).map(Live::pid)
    }

    pub(crate) fn remember(&mut self, slot: u32, pid: Pid, cause: &Cause) {
        self.last.insert(slot, (pid, cause.clone()));
    }

    /// What ended in this slot as it was to is told to nobody.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.last.remove(&slot);
    }

    pub(crate) fn last_cause(&self, slot: u32) -> Option<&Cause> {
        self.last.get(&slot).map(|(_, cause)| cause)
    }

    /// The worker that `pid` is or descends from.
    pub(crate) fn find_ancestor(&self, pid: Pid) -> Option<Worker> {
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

    /// Whether a sender has ended that may have been some worker's.
    pub(crate) fn may_have_had(&self, sender: Sender) -> bool {
        let users = [
            self.live.values().next().and_then(|live| processes::user_of(live.pid)),
            Some(nix::unistd::geteuid().as_raw()),
        ];
        is_gone(sender.pid) && users.contains(&Some(sender.user))
    }

    /// Whether a message may be this worker's that came where only this worker was told to send it, from nobody who is seen
    /// to descend from a worker: of one that was adopted since, or of one that has ended, if the worker has waited for any.
    pub(crate) fn may_have_sent(&self, worker: Worker, sender: Sender) -> bool {
        let Some(pid) = self.pid_of(worker) else { return false };
        let users = [processes::user_of(pid), Some(nix::unistd::geteuid().as_raw())];
        if !users.contains(&Some(sender.user)) {
            return false;
        }
        let mut ancestors = std::iter::successors(Some(sender.pid), |pid| processes::parent_of(*pid)).take(DEEPEST);
        match is_gone(sender.pid) {
            true => watch::family(pid).into_iter().any(processes::has_reaped),
            false => ancestors.any(|ancestor| ancestor == Pid::this()),
        }
    }
}

/// Whether a process has ended and been reaped.
fn is_gone(pid: Pid) -> bool {
    processes::parent_of(pid).is_none() && processes::group_of(pid).is_none()
}
