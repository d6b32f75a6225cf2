//! Main's children: the one place of main that knows pids.
//!
//! A pid in here is an unreaped child, so that no signal can ever hit a stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use serde::{Deserialize, Serialize};

use super::families::Family;
use super::planner::{Planner, Purpose};
use crate::control::monitor::channel::{self, Channel};
use crate::control::monitor::messages::{OLDEST, VERSION};
use crate::main_process::decide::Monitor;
use crate::main_process::restart::preflight::Preflight;
use crate::sys::descriptors::{Kept, take_over};
use crate::sys::processes::{self, Clues};
use crate::worker::kin::Kin;
use crate::worker::spawn::Child;

/// The pid of the process to which all fall whose parents have ended.
const INIT: Pid = Pid::from_raw(1);

/// A monitor's process.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) channel: Channel,
    /// It owes a status: as long as it is stopped it is not asked again.
    pub(crate) asked: bool,
    /// What its channel is watched under.
    pub(crate) token: u64,
    /// So many sockets it has.
    pub(crate) queues: usize,
    /// So many workers it keeps.
    pub(crate) workers: u32,
    /// The version of the protocol that it speaks.
    pub(crate) protocol: u32,
    pub(crate) first_word: FirstWord,
}

/// The first message of a monitor comes once it has found its release. Until then it has no workers, and may hang on a
/// dead file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstWord {
    /// It is killed if it has sent nothing by then.
    Until(Instant),
    /// It hung, and was killed.
    Missed,
    /// It has come.
    Heard,
}

/// To find a release takes milliseconds; a monitor that takes this long hangs, and is killed.
pub(crate) const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for one that is to stop.
const FIRST_WORD_TIMEOUT_AT_STOP: Duration = Duration::from_secs(1);

/// All children of main.
#[derive(Debug)]
pub(crate) struct Children {
    monitors: BTreeMap<Monitor, Running>,
    /// What outlived a monitor and became ours.
    pub(crate) kin: Kin<Monitor>,
    /// What is known of the workers of each monitor, until nothing is left of it.
    pub(crate) families: BTreeMap<Monitor, Family>,
    /// Those that no worker has started, and those that do not end whatever they are sent: they are only reaped.
    pub(crate) strangers: BTreeSet<Pid>,
    /// Whether strangers may fall to us: we are PID 1, or some were there before us.
    pub(crate) has_strangers: bool,
    /// The monitor after whose end children are left to be looked at.
    pub(crate) unmet: Option<Monitor>,
    /// Whether more may have ended than were reaped.
    pub(crate) reaps_on: bool,
    /// A new build that is being tried.
    preflight: Option<Preflight>,
    /// Those that read the configuration, or are given up and have not ended yet.
    planners: Vec<Planner>,
    /// The token under which the next monitor's channel is watched.
    next_token: u64,
}

/// The children as one main hands them on to the next, which is the same process: they stay its own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried {
    #[serde(with = "crate::carry::pairs")]
    monitors: BTreeMap<Monitor, CarriedMonitor>,
    #[serde(with = "crate::carry::pairs")]
    orphans: BTreeMap<Monitor, BTreeSet<i32>>,
    strangers: BTreeSet<i32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    has_strangers: bool,
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
    /// It has sent nothing yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    silent: bool,
    /// What it has given up: pids, and when each process began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    given_up: Vec<(i32, Option<u64>)>,
}

impl Carried {
    /// A monitor whose language is not spoken here: its generation, and the version of the protocol.
    pub(crate) fn not_understood(&self) -> Option<(u32, u32)> {
        let unknown = |(_, one): &(&Monitor, &CarriedMonitor)| !(OLDEST..=VERSION).contains(&one.protocol);
        self.monitors.iter().find(unknown).map(|(monitor, one)| (monitor.generation, one.protocol))
    }

    /// All descriptors that go with them.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.monitors.values().flat_map(|monitor| monitor.channel.descriptors().chain([monitor.outcome]))
    }
}

impl Children {
    /// None yet. Their channels are watched under tokens from `first_token` on.
    pub(crate) fn new(first_token: u64) -> Children {
        let strangers: BTreeSet<Pid> = processes::children().into_iter().collect();
        Children {
            monitors: BTreeMap::new(),
            kin: Kin::default(),
            families: BTreeMap::new(),
            has_strangers: Pid::this() == INIT || !strangers.is_empty(),
            strangers,
            unmet: None,
            reaps_on: false,
            preflight: None,
            planners: Vec::new(),
            next_token: first_token,
        }
    }

    /// A token for one more channel.
    pub(crate) fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token - 1
    }

    /// For the next main. A pre-flight has ended by then.
    pub(crate) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let monitor = |(monitor, running): (&Monitor, &'a Running)| {
            let pid = running.child.pid.as_raw();
            let (outcome, channel) = (kept.keep(&running.child), running.channel.carry(kept));
            let Running { queues, workers, protocol, .. } = *running;
            let silent = running.first_word != FirstWord::Heard;
            let given_up = self.families.get(monitor).into_iter().flat_map(|family| &family.given_up);
            let given_up = given_up.map(|(pid, began)| (pid.as_raw(), *began)).collect();
            (*monitor, CarriedMonitor { pid, outcome, channel, queues, workers, protocol, silent, given_up })
        };
        let monitors = self.monitors.iter().map(monitor).collect();
        let raw = |pids: &BTreeSet<Pid>| -> BTreeSet<i32> { pids.iter().map(|pid| pid.as_raw()).collect() };
        let mut orphans: BTreeMap<Monitor, BTreeSet<i32>> = BTreeMap::new();
        for (pid, monitor) in self.kin.owned() {
            orphans.entry(monitor).or_default().insert(pid.as_raw());
        }
        // Planners that are given up are nobody's any more.
        let planners = self.planners.iter().map(|planner| planner.pid().as_raw());
        let strangers = raw(&self.strangers).into_iter().chain(planners).collect();
        // As PID 1 the next main knows by itself.
        let has_strangers = self.has_strangers && Pid::this() != INIT;
        Carried { monitors, orphans, strangers, has_strangers }
    }

    /// What the main before has handed on. Each channel is to be watched under a token from `first_token` on.
    pub(crate) fn take_over(carried: Carried, first_token: u64) -> io::Result<Children> {
        let mut families = BTreeMap::new();
        let running = |((monitor, carried), token): ((Monitor, CarriedMonitor), u64)| {
            let CarriedMonitor { pid, outcome, channel, queues, workers, protocol, silent, given_up } = carried;
            let given_up = given_up.into_iter().map(|(pid, began)| (Pid::from_raw(pid), began)).collect();
            // All children of a monitor are its workers, or descend from these.
            let workers_known = processes::children_of(Pid::from_raw(pid)).into_iter();
            families.insert(monitor, Family::new(workers_known, given_up));
            let child = Child::taken_over(Pid::from_raw(pid), take_over(outcome)?);
            let channel = Channel::take_over(channel)?;
            let first_word =
                if silent { FirstWord::Until(Instant::now() + FIRST_WORD_TIMEOUT) } else { FirstWord::Heard };
            Ok((monitor, Running { child, channel, asked: false, token, queues, workers, protocol, first_word }))
        };
        let monitors: BTreeMap<Monitor, Running> =
            carried.monitors.into_iter().zip(first_token..).map(running).collect::<io::Result<_>>()?;
        let next_token = first_token + monitors.len() as u64;
        let mut kin = Kin::default();
        for (monitor, pids) in carried.orphans {
            for pid in pids.into_iter().map(Pid::from_raw) {
                kin.add(pid, Clues::of(pid), Some(monitor));
            }
        }
        Ok(Children {
            monitors,
            kin,
            families,
            strangers: carried.strangers.into_iter().map(Pid::from_raw).collect(),
            has_strangers: carried.has_strangers || Pid::this() == INIT,
            unmet: None,
            reaps_on: false,
            preflight: None,
            planners: Vec::new(),
            next_token,
        })
    }

    pub(crate) fn add_preflight(&mut self, preflight: Preflight) {
        self.preflight = Some(preflight);
    }

    pub(crate) fn preflight(&self) -> Option<&Preflight> {
        self.preflight.as_ref()
    }

    /// Forgets the pre-flight, if it was that which has been reaped; what it left in its group is killed.
    pub(crate) fn take_preflight(&mut self, pid: Pid) -> Option<Preflight> {
        let ended = self.preflight.take_if(|preflight| preflight.pid() == pid)?;
        let others = processes::children().into_iter().filter(|child| !self.is_known(*child));
        for left in others.filter(|left| processes::group_of(*left) == Some(pid)) {
            if let Err(error) = processes::signal_child(left, Signal::SIGKILL) {
                log::warn!(
                    "cannot kill what a new build has left (pid {left}): {}",
                    processes::why_not_signalled(&error)
                );
            }
        }
        Some(ended)
    }

    pub(crate) fn add_planner(&mut self, planner: Planner) {
        self.planners.push(planner);
    }

    pub(crate) fn planners(&mut self) -> impl Iterator<Item = &mut Planner> {
        self.planners.iter_mut()
    }

    /// Whether somebody waits for a plan.
    pub(crate) fn is_planning(&self) -> bool {
        self.planners.iter().any(|planner| planner.wanted)
    }

    /// When a planner is given up that is not for a generation.
    pub(crate) fn reread_deadline(&self) -> Option<Instant> {
        let due = |planner: &&Planner| planner.wanted && planner.purpose == Purpose::Reread;
        self.planners.iter().find(due).map(|planner| planner.until)
    }

    /// Forgets a planner, if it was one that has been reaped.
    pub(crate) fn take_planner(&mut self, pid: Pid) -> Option<Planner> {
        let at = self.planners.iter().position(|planner| planner.pid() == pid)?;
        Some(self.planners.remove(at))
    }

    pub(crate) fn add(&mut self, monitor: Monitor, running: Running) {
        self.monitors.insert(monitor, running);
    }

    /// Forgets a monitor that has been reaped.
    pub(crate) fn remove(&mut self, monitor: Monitor) {
        self.monitors.remove(&monitor);
    }

    pub(crate) fn monitors(&self) -> impl Iterator<Item = Monitor> {
        self.monitors.keys().copied()
    }

    /// What a monitor tells of its workers' processes.
    pub(crate) fn family(&mut self, monitor: Monitor) -> &mut Family {
        self.families.entry(monitor).or_default()
    }

    pub(crate) fn running(&mut self, monitor: Monitor) -> Option<&mut Running> {
        self.monitors.get_mut(&monitor)
    }

    /// The monitor of a generation that goes on: it has one at a time.
    pub(crate) fn of_generation(&mut self, generation: u32) -> Option<&mut Running> {
        self.monitors.iter_mut().find(|(monitor, _)| monitor.generation == generation).map(|(_, running)| running)
    }

    pub(crate) fn pid_of(&self, monitor: Monitor) -> Option<Pid> {
        self.monitors.get(&monitor).map(|running| running.child.pid)
    }

    pub(crate) fn by_token(&self, token: u64) -> Option<Monitor> {
        self.monitors.iter().find(|(_, running)| running.token == token).map(|(monitor, _)| *monitor)
    }

    pub(crate) fn by_pid(&self, pid: Pid) -> Option<Monitor> {
        self.monitors.iter().find(|(_, running)| running.child.pid == pid).map(|(monitor, _)| *monitor)
    }

    /// When the next monitor is killed that has sent nothing yet.
    pub(crate) fn silence_deadline(&self) -> Option<Instant> {
        let until = |running: &Running| match running.first_word {
            FirstWord::Until(until) => Some(until),
            FirstWord::Missed | FirstWord::Heard => None,
        };
        self.monitors.values().filter_map(until).min()
    }

    /// Kills the monitors that have sent nothing for too long.
    pub(crate) fn kill_silent(&mut self, now: Instant) {
        for (monitor, running) in &mut self.monitors {
            if matches!(running.first_word, FirstWord::Until(until) if until <= now) {
                running.first_word = FirstWord::Missed;
                // At once: one that waits for a file system may not end by it.
                log::error!(
                    "the monitor of generation {} hangs while it looks up what it is to run: are the file systems of \
                     program, directory and --env-file reachable, and the users' data base? Killing it",
                    monitor.generation
                );
                if let Err(error) = processes::signal_child(running.child.pid, Signal::SIGKILL) {
                    log::warn!(
                        "cannot kill the monitor of generation {}: {}",
                        monitor.generation,
                        processes::why_not_signalled(&error)
                    );
                }
            }
        }
    }

    /// Everything is stopped: those that have sent nothing yet are not waited for.
    pub(crate) fn shorten_silence(&mut self, now: Instant) {
        for running in self.monitors.values_mut() {
            if let FirstWord::Until(until) = &mut running.first_word {
                *until = (*until).min(now + FIRST_WORD_TIMEOUT_AT_STOP);
            }
        }
    }

    pub(crate) fn channels(&mut self) -> impl Iterator<Item = &mut Running> {
        self.monitors.values_mut()
    }

    /// The monitors whose channel is to be looked at again.
    pub(crate) fn with_due_channel(&self, now: Instant) -> Vec<Monitor> {
        let due = |running: &Running| running.channel.deadline().is_some_and(|deadline| deadline <= now);
        self.monitors.iter().filter(|(_, running)| due(running)).map(|(monitor, _)| *monitor).collect()
    }

    /// When a channel, a planner or a silent monitor needs attention.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let channels = self.monitors.values().filter_map(|running| running.channel.deadline());
        channels.chain(self.reread_deadline()).chain(self.silence_deadline()).min()
    }

    /// Whether there is more to be reaped, or looked at, at once.
    pub(crate) fn is_behind(&self) -> bool {
        self.reaps_on || self.unmet.is_some()
    }

    /// Whether nothing is left of a monitor that has been reaped.
    pub(crate) fn is_gone(&mut self, monitor: Monitor) -> bool {
        let gone = self.unmet != Some(monitor) && self.kin.of(monitor).next().is_none();
        if gone {
            self.families.remove(&monitor);
        }
        gone
    }

    /// Sends `signal` to those that outlived `monitor`; KILL to their groups as well.
    pub(crate) fn signal_orphans(&mut self, monitor: Monitor, signal: Signal) {
        for (pid, error) in self.kin.signal(monitor, signal, false, |_| false) {
            let (name, generation) = (processes::name_of(pid), monitor.generation);
            log::warn!(
                "cannot send {} to pid {pid} ({name}) of generation {generation}: {}",
                signal.as_str(),
                processes::why_not_signalled(&error)
            );
        }
    }

    /// Sends `signal` to those among them of which this is true. All are continued: the kernel may have sent it to some
    /// that are stopped.
    pub(crate) fn signal_unreached(&mut self, monitor: Monitor, signal: Signal, unreached: impl Fn(Pid) -> bool) {
        for pid in self.kin.of(monitor) {
            let sent = match unreached(pid) {
                true => processes::stop_child(pid, signal),
                false => processes::signal_child(pid, Signal::SIGCONT),
            };
            if let Err(error) = sent {
                // The next step of the schedule tells of it.
                log::debug!("cannot send {} to pid {pid}: {}", signal.as_str(), processes::why_not_signalled(&error));
            }
        }
    }

    /// Whether it is accounted for: a role of panzer's, an orphan, or a stranger.
    pub(crate) fn is_known(&self, pid: Pid) -> bool {
        self.strangers.contains(&pid)
            || self.kin.knows(pid)
            || self.preflight.as_ref().is_some_and(|preflight| preflight.pid() == pid)
            || self.planners.iter().any(|planner| planner.pid() == pid)
            || self.by_pid(pid).is_some()
    }
}
