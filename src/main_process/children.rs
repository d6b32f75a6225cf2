//! Main's children: the one place of main that knows pids.
//!
//! A pid in here is an unreaped child, so that no signal can ever hit a stranger.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::state::Monitor;
use crate::control::channel::Channel;
use crate::sys::processes;
use crate::worker::spawn::Child;

/// A monitor's process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) child: Child,
    pub(super) channel: Channel,
    /// What its channel is watched under.
    pub(super) token: u64,
    /// So many sockets it has.
    pub(super) queues: usize,
    /// So many workers it keeps.
    pub(super) workers: u32,
}

/// All children of main.
#[derive(Debug)]
pub(super) struct Children {
    monitors: BTreeMap<Monitor, Running>,
    /// What outlived a monitor and became ours.
    orphans: BTreeMap<Monitor, BTreeSet<Pid>>,
    /// Those that were there before us, from a shell that executed panzer in its place: none of our business.
    strangers: BTreeSet<Pid>,
}

impl Children {
    pub(super) fn new() -> Children {
        let strangers = processes::children().into_iter().collect();
        Children { monitors: BTreeMap::new(), orphans: BTreeMap::new(), strangers }
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
                || self.by_pid(*pid).is_some()
                || self.orphans.values().any(|orphans| orphans.contains(pid))
        };
        processes::children().into_iter().filter(|pid| !known(pid)).collect()
    }
}
