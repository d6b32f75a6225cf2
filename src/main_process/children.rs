//! Main's children: the one place of main that knows pids.
//!
//! A pid in here is an unreaped child, so that no signal can ever hit a stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use serde::{Deserialize, Serialize};

use super::planner::{Planner, Purpose};
use super::preflight::Preflight;
use super::state::Monitor;
use crate::control::channel::{self, Channel};
use crate::control::messages::{OLDEST, VERSION};
use crate::sys::descriptors::{Kept, take_over};
use crate::sys::processes;
use crate::worker::spawn::Child;

/// A monitor's process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) child: Child,
    pub(super) channel: Channel,
    /// It owes a status: as long as it is stopped it is not asked again.
    pub(super) asked: bool,
    /// What its channel is watched under.
    pub(super) token: u64,
    /// So many sockets it has.
    pub(super) queues: usize,
    /// So many workers it keeps.
    pub(super) workers: u32,
    /// The version of the protocol that it speaks.
    pub(super) protocol: u32,
}

/// All children of main.
#[derive(Debug)]
pub(super) struct Children {
    monitors: BTreeMap<Monitor, Running>,
    /// What outlived a monitor and became ours.
    orphans: BTreeMap<Monitor, BTreeSet<Pid>>,
    /// Those that were there before us, from a shell that executed panzer in its place: none of our business.
    strangers: BTreeSet<Pid>,
    /// A new build that is being tried.
    preflight: Option<Preflight>,
    /// Those that read the configuration, or are given up and have not ended yet.
    planners: Vec<Planner>,
}

/// The children as one main hands them on to the next, which is the same process: they stay its own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Carried {
    #[serde(with = "crate::carry::pairs")]
    monitors: BTreeMap<Monitor, CarriedMonitor>,
    #[serde(with = "crate::carry::pairs")]
    orphans: BTreeMap<Monitor, BTreeSet<i32>>,
    strangers: BTreeSet<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CarriedMonitor {
    pid: i32,
    outcome: RawFd,
    channel: channel::Carried,
    queues: usize,
    workers: u32,
    protocol: u32,
}

impl Carried {
    /// A monitor whose language is not spoken here: its generation, and the version of the protocol.
    pub(super) fn not_understood(&self) -> Option<(u32, u32)> {
        let unknown = |(_, one): &(&Monitor, &CarriedMonitor)| !(OLDEST..=VERSION).contains(&one.protocol);
        self.monitors.iter().find(unknown).map(|(monitor, one)| (monitor.generation, one.protocol))
    }

    /// All descriptors that go with them.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.monitors.values().flat_map(|monitor| monitor.channel.descriptors().chain([monitor.outcome]))
    }
}

impl Children {
    pub(super) fn new() -> Children {
        let strangers = processes::children().into_iter().collect();
        Children {
            monitors: BTreeMap::new(),
            orphans: BTreeMap::new(),
            strangers,
            preflight: None,
            planners: Vec::new(),
        }
    }

    /// For the next main. A pre-flight has ended by then.
    pub(super) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let monitor = |(monitor, running): (&Monitor, &'a Running)| {
            let pid = running.child.pid.as_raw();
            let (outcome, channel) = (kept.keep(&running.child), running.channel.carry(kept));
            let Running { queues, workers, protocol, .. } = *running;
            (*monitor, CarriedMonitor { pid, outcome, channel, queues, workers, protocol })
        };
        let monitors = self.monitors.iter().map(monitor).collect();
        let raw = |pids: &BTreeSet<Pid>| -> BTreeSet<i32> { pids.iter().map(|pid| pid.as_raw()).collect() };
        let orphans = self.orphans.iter().map(|(monitor, pids)| (*monitor, raw(pids))).collect();
        // Planners that are given up are nobody's any more.
        let planners = self.planners.iter().map(|planner| planner.pid().as_raw());
        let strangers = raw(&self.strangers).into_iter().chain(planners).collect();
        Carried { monitors, orphans, strangers }
    }

    /// What the main before has handed on. Each channel is to be watched under a token from `first_token` on.
    pub(super) fn take_over(carried: Carried, first_token: u64) -> io::Result<Children> {
        let running = |((monitor, carried), token): ((Monitor, CarriedMonitor), u64)| {
            let CarriedMonitor { pid, outcome, channel, queues, workers, protocol } = carried;
            let child = Child::taken_over(Pid::from_raw(pid), take_over(outcome)?);
            let channel = Channel::take_over(channel)?;
            Ok((monitor, Running { child, channel, asked: false, token, queues, workers, protocol }))
        };
        let monitors = carried.monitors.into_iter().zip(first_token..).map(running).collect::<io::Result<_>>()?;
        let pids = |pids: BTreeSet<i32>| pids.into_iter().map(Pid::from_raw).collect();
        let orphans = carried.orphans.into_iter().map(|(monitor, orphans)| (monitor, pids(orphans))).collect();
        Ok(Children { monitors, orphans, strangers: pids(carried.strangers), preflight: None, planners: Vec::new() })
    }

    pub(super) fn add_preflight(&mut self, preflight: Preflight) {
        self.preflight = Some(preflight);
    }

    pub(super) fn preflight(&self) -> Option<&Preflight> {
        self.preflight.as_ref()
    }

    /// Forgets the pre-flight, if it was that which has been reaped; what it left in its group is killed.
    pub(super) fn take_preflight(&mut self, pid: Pid) -> Option<Preflight> {
        let ended = self.preflight.take_if(|preflight| preflight.pid() == pid)?;
        for left in self.unattributed().into_iter().filter(|left| processes::group_of(*left) == Some(pid)) {
            if let Err(error) = processes::signal_child(left, Signal::SIGKILL) {
                log::warn!("cannot kill what a new build has left (pid {left}): {error}");
            }
        }
        Some(ended)
    }

    pub(super) fn add_planner(&mut self, planner: Planner) {
        self.planners.push(planner);
    }

    pub(super) fn planners(&mut self) -> impl Iterator<Item = &mut Planner> {
        self.planners.iter_mut()
    }

    /// Whether somebody waits for a plan.
    pub(super) fn is_planning(&self) -> bool {
        self.planners.iter().any(|planner| planner.wanted)
    }

    /// When a planner is given up that is not for a generation.
    pub(super) fn reread_deadline(&self) -> Option<Instant> {
        let due = |planner: &&Planner| planner.wanted && planner.purpose == Purpose::Reread;
        self.planners.iter().find(due).map(|planner| planner.until)
    }

    /// Forgets a planner, if it was one that has been reaped.
    pub(super) fn take_planner(&mut self, pid: Pid) -> Option<Planner> {
        let at = self.planners.iter().position(|planner| planner.pid() == pid)?;
        Some(self.planners.remove(at))
    }

    pub(super) fn add(&mut self, monitor: Monitor, running: Running) {
        self.monitors.insert(monitor, running);
    }

    /// Forgets a monitor that has been reaped.
    pub(super) fn remove(&mut self, monitor: Monitor) {
        self.monitors.remove(&monitor);
    }

    pub(super) fn running(&mut self, monitor: Monitor) -> Option<&mut Running> {
        self.monitors.get_mut(&monitor)
    }

    /// The monitor of a generation that goes on: it has one at a time.
    pub(super) fn of_generation(&mut self, generation: u32) -> Option<&mut Running> {
        self.monitors.iter_mut().find(|(monitor, _)| monitor.generation == generation).map(|(_, running)| running)
    }

    pub(super) fn pid_of(&self, monitor: Monitor) -> Option<Pid> {
        self.monitors.get(&monitor).map(|running| running.child.pid)
    }

    pub(super) fn by_token(&self, token: u64) -> Option<Monitor> {
        self.monitors.iter().find(|(_, running)| running.token == token).map(|(monitor, _)| *monitor)
    }

    pub(super) fn by_pid(&self, pid: Pid) -> Option<Monitor> {
        self.monitors.iter().find(|(_, running)| running.child.pid == pid).map(|(monitor, _)| *monitor)
    }

    pub(super) fn channels(&mut self) -> impl Iterator<Item = &mut Running> {
        self.monitors.values_mut()
    }

    /// The monitors whose channel is to be looked at again.
    pub(super) fn with_due_channel(&self, now: Instant) -> Vec<Monitor> {
        let due = |running: &Running| running.channel.deadline().is_some_and(|deadline| deadline <= now);
        self.monitors.iter().filter(|(_, running)| due(running)).map(|(monitor, _)| *monitor).collect()
    }

    /// Takes in what outlived `monitor`, which has been reaped. False where nothing did.
    pub(super) fn adopt(&mut self, monitor: Monitor) -> bool {
        let adopted = self.unattributed();
        let any = !adopted.is_empty();
        if any {
            self.orphans.entry(monitor).or_default().extend(adopted);
        }
        any
    }

    /// Forgets an orphan that has been reaped; what it left behind in turn is taken in. Returns the monitor whose last
    /// it was.
    pub(super) fn orphan_ended(&mut self, pid: Pid) -> Option<Monitor> {
        let monitor = self.orphans.iter().find(|(_, orphans)| orphans.contains(&pid)).map(|(monitor, _)| *monitor)?;
        let left = self.unattributed();
        let orphans = self.orphans.get_mut(&monitor)?;
        orphans.remove(&pid);
        orphans.extend(left);
        if orphans.is_empty() {
            self.orphans.remove(&monitor);
            return Some(monitor);
        }
        None
    }

    /// Sends `signal` to those that outlived `monitor`, if `chosen`; KILL to their groups as well.
    pub(super) fn signal_orphans(&self, monitor: Monitor, signal: Signal, chosen: impl Fn(Pid) -> bool) {
        for &pid in self.orphans.get(&monitor).into_iter().flatten().filter(|&&pid| chosen(pid)) {
            let group = processes::group_of(pid).filter(|group| *group != nix::unistd::getpgrp());
            let to_group = group
                .filter(|_| signal == Signal::SIGKILL)
                .map_or(Ok(()), |group| processes::signal_group(group, signal));
            if let Err(error) = to_group.and_then(|()| processes::signal_child(pid, signal)) {
                log::warn!("cannot send {} to the orphaned worker with pid {pid}: {error}", signal.as_str());
            }
        }
    }

    fn unattributed(&self) -> BTreeSet<Pid> {
        let known = |pid: &Pid| {
            self.strangers.contains(pid)
                || self.preflight.as_ref().is_some_and(|preflight| preflight.pid() == *pid)
                || self.planners.iter().any(|planner| planner.pid() == *pid)
                || self.by_pid(*pid).is_some()
                || self.orphans.values().any(|orphans| orphans.contains(pid))
        };
        processes::children().into_iter().filter(|pid| !known(pid)).collect()
    }
}
