//! Which process is which worker.
//!
//! A pid in here is an unreaped child, so that a signal can never hit another process.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

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

/// Limit of the generations between a worker and a descendant that sends messages.
const DEEPEST: usize = 32;

/// A worker's process.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) worker: Worker,
    pid: Pid,
    /// When it began, in the kernel's ticks.
    pub(crate) started: Option<u64>,
    /// Whether it was logged that a signal was refused.
    pub(crate) refuses: bool,
    /// Its exec, until the outcome is known.
    pub(crate) executing: Option<Child>,
    /// Why its exec was refused.
    pub(crate) refused: Option<Cause>,
    /// Its own notify socket.
    pub(crate) notify: Option<NotifySocket>,
    /// When it last sent a sign of life.
    pub(crate) sign_of_life: Option<Instant>,
}

impl Live {
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }
}

/// The child that measures the memory of workers.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) pid: Pid,
    pub(crate) result: OwnedFd,
    pub(crate) workers: Vec<Worker>,
}

/// All processes of a monitor.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    pub(crate) live: BTreeMap<Worker, Live>,
    pub(crate) workers: BTreeMap<Pid, Worker>,
    /// The child that has just reported its birth, until it is a worker.
    pub(crate) newborn: Option<Pid>,
    /// Children that were forked when their mold had been told to end. They end too.
    pub(crate) born_too_late: BTreeSet<Pid>,
    /// Probes that run, and the worker of each.
    pub(crate) probes: BTreeMap<Pid, Worker>,
    pub(crate) measurement: Option<Measurement>,
    /// Children that find out why an exec was refused: the worker, and where they write the reason.
    pub(crate) reasons: BTreeMap<Pid, (Worker, OwnedFd)>,
    /// The last worker that ended in each slot, its pid, and when it began.
    pub(crate) ended: BTreeMap<u32, (Worker, Pid, Option<u64>)>,
    /// The last worker that ended.
    pub(crate) last_ended: Option<Worker>,
    /// Processes that workers have started and that outlived their parent.
    pub(crate) kin: Kin<Worker>,
    /// Processes that do not end whatever signal they get, and are left alone.
    pub(crate) given_up: BTreeSet<Pid>,
    /// Workers that have ended, and the processes that they have left.
    pub(crate) left_behind: BTreeMap<Worker, BTreeSet<Pid>>,
    /// Whether some adopted children have not been looked at yet.
    pub(crate) unmet: bool,
    last: BTreeMap<u32, (Pid, Cause)>,
}

impl Roster {
    pub(crate) fn add(&mut self, worker: Worker, child: Child, notify: Option<NotifySocket>) {
        let (pid, started) = (child.pid, None);
        self.workers.insert(pid, worker);
        let executing = Some(child);
        let live = Live { worker, pid, started, refuses: false, executing, refused: None, notify, sign_of_life: None };
        self.live.insert(worker, live);
    }

    /// A child that the mold has forked is this worker.
    pub(crate) fn add_forked(&mut self, worker: Worker, pid: Pid, started: Option<u64>) {
        self.kin.remove(pid);
        self.workers.insert(pid, worker);
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
        self.live.insert(worker, live);
    }

    /// A worker has another name from now on.
    pub(crate) fn rename(&mut self, worker: Worker, name: Worker) -> Option<&Live> {
        let live = self.live.remove(&worker)?;
        self.workers.insert(live.pid, name);
        Some(self.live.entry(name).or_insert(Live { worker: name, ..live }))
    }

    /// The worker that a child is, or belongs to.
    pub(crate) fn known_as(&self, pid: Pid) -> Option<Worker> {
        let alive = self.workers.get(&pid).copied();
        let other = || self.probes.get(&pid).copied().or_else(|| self.kin.owner(pid));
        alive.or_else(|| other().filter(|owner| !owner.is_mold()))
    }

    /// Removes a worker that was reaped.
    pub(crate) fn remove(&mut self, pid: Pid) -> Option<Live> {
        let worker = self.workers.remove(&pid)?;
        let live = self.live.remove(&worker)?;
        self.given_up.remove(&pid);
        self.ended.insert(worker.slot, (live.worker, pid, live.started));
        self.last_ended = Some(live.worker);
        Some(live)
    }

    /// Removes another child that was reaped.
    pub(crate) fn remove_adopted(&mut self, pid: Pid) {
        self.kin.remove(pid);
        self.given_up.remove(&pid);
    }

    pub(crate) fn add_probe(&mut self, worker: Worker, child: Child) {
        self.probes.insert(child.pid, worker);
    }

    /// Removes a probe that was reaped, and kills what it has left in its group.
    pub(crate) fn remove_probe(&mut self, pid: Pid, main: i32, generation: u32) -> Option<Worker> {
        let worker = *self.probes.get(&pid)?;
        if !processes::group_exists(pid) {
            return self.probes.remove(&pid);
        }
        // As long as the probe is known, the processes in its group are known as its own.
        self.meet(main, generation);
        self.probes.remove(&pid);
        // A group with an unreaped child of ours belongs to nobody else.
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

    /// Kills the probe of this worker, with the processes that it has started.
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

    pub(crate) fn end_measurement(&self) {
        if let Some(measurement) = &self.measurement
            && let Err(error) = processes::signal_child(measurement.pid, Signal::SIGKILL)
        {
            log::warn!(
                "cannot kill pid {}, which measures the memory of workers: {}",
                measurement.pid,
                processes::why_not_signalled(&error)
            );
        }
    }

    /// A worker's process, and those that it has left without a parent.
    pub(crate) fn processes_of(&self, worker: Worker) -> Vec<Pid> {
        self.pid_of(worker).into_iter().chain(self.kin.of(worker)).collect()
    }

    /// Number of live workers.
    pub(crate) fn count(&self) -> usize {
        self.live.len()
    }

    /// This worker, or a process that it has started, has sent a sign of life.
    pub(crate) fn note_sign_of_life(&mut self, worker: Worker, now: Instant) {
        if let Some(live) = self.live.get_mut(&worker) {
            live.sign_of_life = Some(now);
        }
    }

    /// The worker that this process is.
    pub(crate) fn worker_of(&self, pid: Pid) -> Option<Worker> {
        self.workers.get(&pid).copied()
    }

    pub(crate) fn live(&mut self, worker: Worker) -> Option<&mut Live> {
        self.live.get_mut(&worker)
    }

    /// The pid of a live worker. For a message about a worker that has just ended, its last pid.
    pub(crate) fn shown_pid(&self, worker: Worker) -> Option<i32> {
        let last = || self.last.get(&worker.slot).map(|(pid, _)| *pid);
        self.pid_of(worker).or_else(last).map(Pid::as_raw)
    }

    pub(crate) fn pid_of(&self, worker: Worker) -> Option<Pid> {
        self.live.get(&worker).map(Live::pid)
    }

    pub(crate) fn remember(&mut self, slot: u32, pid: Pid, cause: &Cause) {
        self.last.insert(slot, (pid, cause.clone()));
    }

    /// Why the last worker of this slot ended, as it turned out.
    pub(crate) fn explain(&mut self, slot: u32, cause: &Cause) {
        if let Some((_, last)) = self.last.get_mut(&slot) {
            last.clone_from(cause);
        }
    }

    /// The worker in this slot ended as wanted, so later messages do not mention it.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.last.remove(&slot);
    }

    pub(crate) fn last_cause(&self, slot: u32) -> Option<&Cause> {
        self.last.get(&slot).map(|(_, cause)| cause)
    }

    /// The worker that `pid` is or descends from.
    pub(crate) fn find_ancestor(&self, pid: Pid) -> Option<Worker> {
        // Most are in the worker's own group. A sender that has ended since has no parent.
        let mut candidate = processes::group_of(pid).filter(|group| self.workers.contains_key(group)).unwrap_or(pid);
        for _ in 0..DEEPEST {
            if let Some(worker) = self.workers.get(&candidate) {
                return Some(*worker);
            }
            candidate = processes::parent_of(candidate)?;
        }
        None
    }

    /// Whether a sender has ended that may have belonged to some worker.
    pub(crate) fn may_have_had(&self, sender: Sender) -> bool {
        let users = [
            self.live.values().next().and_then(|live| processes::user_of(live.pid)),
            Some(nix::unistd::geteuid().as_raw()),
        ];
        is_gone(sender.pid) && users.contains(&Some(sender.user))
    }

    /// Whether a message on this worker's own socket may be its own although its sender is not seen to descend from it.
    /// The sender may have been adopted since, or may have ended, if the worker has waited for any child.
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
