//! Main's children: the one place of main that knows pids.
//!
//! A pid in here is an unreaped child, so that a signal can never hit another process.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use serde::{Deserialize, Serialize, Serializer};

use super::families::{Family, GivenUp};
use super::hook::HookProcess;
use super::planner::{Planner, Purpose};
use crate::control::monitor::channel::Channel;
use crate::control::monitor::messages::{OLDEST, VERSION};
use crate::main_process::decide::Monitor;
use crate::main_process::restart::preflight::Preflight;
use crate::sys::poller::Poller;
use crate::sys::processes::{self, Clues};
use crate::worker::kin::Kin;
use crate::worker::spawn::Child;

/// The process that adopts orphans by default.
const INIT: Pid = Pid::from_raw(1);

/// A monitor's process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Running {
    #[serde(flatten)]
    pub(crate) child: Child,
    pub(crate) channel: Channel,
    /// Whether it has yet to answer a question for its status. A stopped monitor is not asked again.
    #[serde(skip)]
    pub(crate) asked: bool,
    /// Token under which its channel is watched.
    #[serde(skip)]
    pub(crate) token: u64,
    /// Number of sockets that it has.
    pub(crate) queues: usize,
    /// Number of workers that it keeps running.
    pub(crate) workers: u32,
    /// The version of the protocol that it speaks.
    pub(crate) protocol: u32,
    #[serde(rename = "silent", default, skip_serializing_if = "FirstWord::has_come")]
    pub(crate) first_word: FirstWord,
    /// Processes that it has given up. [`Family`] has them once the monitor has ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) given_up: BTreeSet<GivenUp>,
}

/// The first message of a monitor comes once it has found its release. Until then it has no workers, and may hang on a
/// dead file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "bool", from = "bool")]
pub(crate) enum FirstWord {
    /// The monitor is killed if it has sent nothing by then.
    Until(Instant),
    /// It hung, and was killed.
    Missed,
    /// It has come.
    #[default]
    Heard,
}

impl FirstWord {
    fn has_come(&self) -> bool {
        *self == FirstWord::Heard
    }
}

/// The document of a restart in place says whether the monitor is silent so far.
impl From<FirstWord> for bool {
    fn from(first_word: FirstWord) -> bool {
        !first_word.has_come()
    }
}

impl From<bool> for FirstWord {
    fn from(is_silent: bool) -> FirstWord {
        if is_silent { FirstWord::Until(Instant::now() + FIRST_WORD_TIMEOUT) } else { FirstWord::Heard }
    }
}

/// Finding a release takes milliseconds. A monitor that takes this long hangs, and is killed.
pub(crate) const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(10);

/// A monitor that is to stop is killed after this time without a first word.
const FIRST_WORD_TIMEOUT_AT_STOP: Duration = Duration::from_secs(1);

/// All children of main.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "Document<Running, HookProcess>")]
pub(crate) struct Children {
    monitors: BTreeMap<Monitor, Running>,
    /// Processes that outlived their monitor and were adopted.
    pub(crate) kin: Kin<Monitor>,
    /// Facts about the workers of each monitor, until nothing is left of it.
    pub(crate) families: BTreeMap<Monitor, Family>,
    /// Processes that are only reaped: no worker started them, or they do not end whatever signal they get.
    pub(crate) strangers: BTreeSet<Pid>,
    /// Whether main may adopt strangers: it is PID 1, or had children when it started.
    pub(crate) has_strangers: bool,
    /// The monitor after whose end some children have not been looked at yet.
    pub(crate) unmet: Option<Monitor>,
    /// Whether more children may have ended than were reaped.
    pub(crate) reaps_on: bool,
    /// The logger, if it runs.
    pub(crate) logger: Option<Pid>,
    /// A new build that is being tried.
    preflight: Option<Preflight>,
    /// Processes that read the configuration, and those that were given up and have not ended yet.
    planners: Vec<Planner>,
    /// The process that runs a command of the user.
    pub(crate) hook: Option<HookProcess>,
    /// Token under which the channel of the next monitor is watched.
    next_token: u64,
}

/// Children in the document of a restart in place. Each monitor is an `R`, and a hook an `H`.
#[derive(Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    bound(serialize = "R: Serialize, H: Serialize", deserialize = "R: Deserialize<'de>, H: Deserialize<'de>")
)]
struct Document<R, H> {
    #[serde(with = "crate::carry::pairs")]
    monitors: BTreeMap<Monitor, R>,
    #[serde(with = "crate::carry::pairs")]
    orphans: BTreeMap<Monitor, BTreeSet<i32>>,
    strangers: BTreeSet<i32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    has_strangers: bool,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    hook: Option<H>,
}

impl Serialize for Children {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut orphans: BTreeMap<Monitor, BTreeSet<i32>> = BTreeMap::new();
        for (pid, monitor) in self.kin.owned() {
            orphans.entry(monitor).or_default().insert(pid.as_raw());
        }
        // The next main only reaps the planners that are given up. A pre-flight has ended by then.
        let planners = self.planners.iter().map(Planner::pid);
        let strangers = self.strangers.iter().copied().chain(planners).map(Pid::as_raw).collect();
        // PID 1 always assumes strangers.
        let has_strangers = self.has_strangers && Pid::this() != INIT;
        let monitors: BTreeMap<Monitor, &Running> = self.monitors.iter().map(|(key, value)| (*key, value)).collect();
        Document { monitors, orphans, strangers, has_strangers, hook: self.hook.as_ref() }.serialize(serializer)
    }
}

impl From<Document<Running, HookProcess>> for Children {
    fn from(document: Document<Running, HookProcess>) -> Children {
        let mut kin = Kin::default();
        for (monitor, pids) in document.orphans {
            for pid in pids.into_iter().map(Pid::from_raw) {
                kin.add(pid, Clues::of(pid), Some(monitor));
            }
        }
        Children {
            monitors: document.monitors,
            kin,
            strangers: document.strangers.into_iter().map(Pid::from_raw).collect(),
            has_strangers: document.has_strangers || Pid::this() == INIT,
            hook: document.hook,
            ..Children::default()
        }
    }
}

impl Children {
    /// No monitor yet. The channels are watched under tokens from `first_token` on.
    pub(crate) fn new(first_token: u64) -> Children {
        let strangers: BTreeSet<Pid> = processes::children().into_iter().collect();
        Children {
            has_strangers: Pid::this() == INIT || !strangers.is_empty(),
            strangers,
            next_token: first_token,
            ..Children::default()
        }
    }

    /// A token for another channel.
    pub(crate) fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token - 1
    }

    /// Goes on after a restart in place. The channels are watched under tokens from `first_token` on.
    pub(crate) fn resume(&mut self, first_token: u64, poller: &Poller) -> io::Result<()> {
        self.next_token = first_token;
        for (monitor, running) in &mut self.monitors {
            running.token = self.next_token;
            self.next_token += 1;
            running.channel.resume();
            poller.watch(&running.channel, running.token)?;
            // All children of a monitor are its workers, or descend from these.
            let workers = processes::children_of(running.child.pid).into_iter();
            self.families.insert(*monitor, Family::of_running(workers));
        }
        Ok(())
    }

    /// A monitor whose protocol this build does not speak: its generation, and the version of the protocol.
    pub(crate) fn not_understood(&self) -> Option<(u32, u32)> {
        let unknown = |(_, one): &(&Monitor, &Running)| !(OLDEST..=VERSION).contains(&one.protocol);
        self.monitors.iter().find(unknown).map(|(monitor, one)| (monitor.generation, one.protocol))
    }

    pub(crate) fn add_preflight(&mut self, preflight: Preflight) {
        self.preflight = Some(preflight);
    }

    pub(crate) fn preflight(&self) -> Option<&Preflight> {
        self.preflight.as_ref()
    }

    /// Takes the pre-flight if it has this pid, because it was reaped. Kills what it has left in its group.
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

    /// Whether a plan is waited for.
    pub(crate) fn is_planning(&self) -> bool {
        self.planners.iter().any(|planner| planner.wanted)
    }

    /// When the planner of [`Purpose::Reread`] is given up.
    pub(crate) fn reread_deadline(&self) -> Option<Instant> {
        let due = |planner: &&Planner| planner.wanted && planner.purpose == Purpose::Reread;
        self.planners.iter().find(due).map(|planner| planner.until)
    }

    /// Takes the planner with this pid, because it was reaped.
    pub(crate) fn take_planner(&mut self, pid: Pid) -> Option<Planner> {
        let at = self.planners.iter().position(|planner| planner.pid() == pid)?;
        Some(self.planners.remove(at))
    }

    pub(crate) fn add(&mut self, monitor: Monitor, running: Running) {
        self.monitors.insert(monitor, running);
    }

    /// Removes a monitor that was reaped.
    pub(crate) fn remove(&mut self, monitor: Monitor) {
        if let Some(running) = self.monitors.remove(&monitor) {
            self.family(monitor).given_up = running.given_up;
        }
    }

    /// Whether a monitor has given up this process.
    pub(crate) fn is_given_up(&self, process: GivenUp) -> bool {
        self.monitors.values().any(|running| running.given_up.contains(&process))
            || self.families.values().any(|family| family.given_up.contains(&process))
    }

    pub(crate) fn monitors(&self) -> impl Iterator<Item = Monitor> {
        self.monitors.keys().copied()
    }

    /// The facts that a monitor has reported about its workers' processes.
    pub(crate) fn family(&mut self, monitor: Monitor) -> &mut Family {
        self.families.entry(monitor).or_default()
    }

    pub(crate) fn running(&mut self, monitor: Monitor) -> Option<&mut Running> {
        self.monitors.get_mut(&monitor)
    }

    /// The monitor of a generation. A generation that goes on has one at a time.
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

    /// When to kill the next monitor that has sent nothing yet.
    pub(crate) fn silence_deadline(&self) -> Option<Instant> {
        let until = |running: &Running| match running.first_word {
            FirstWord::Until(until) => Some(until),
            FirstWord::Missed | FirstWord::Heard => None,
        };
        self.monitors.values().filter_map(until).min()
    }

    /// Kills the monitors that have sent nothing in time.
    pub(crate) fn kill_silent(&mut self, now: Instant) {
        for (monitor, running) in &mut self.monitors {
            if matches!(running.first_word, FirstWord::Until(until) if until <= now) {
                running.first_word = FirstWord::Missed;
                // Log it first: a process that waits for a file system may not end by the signal.
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

    /// Everything is being stopped, so monitors that have sent nothing yet get less time.
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

    /// The monitors whose channel needs attention.
    pub(crate) fn with_due_channel(&self, now: Instant) -> Vec<Monitor> {
        let due = |running: &Running| running.channel.deadline().is_some_and(|deadline| deadline <= now);
        self.monitors.iter().filter(|(_, running)| due(running)).map(|(monitor, _)| *monitor).collect()
    }

    /// When a channel, a planner or a silent monitor needs attention.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let channels = self.monitors.values().filter_map(|running| running.channel.deadline());
        channels.chain(self.reread_deadline()).chain(self.silence_deadline()).min()
    }

    /// Whether more children are to be reaped, or looked at, at once.
    pub(crate) fn is_behind(&self) -> bool {
        self.reaps_on || self.unmet.is_some()
    }

    /// Whether nothing is left of a monitor that was reaped.
    pub(crate) fn is_gone(&mut self, monitor: Monitor) -> bool {
        let gone = self.unmet != Some(monitor) && self.kin.of(monitor).next().is_none();
        if gone {
            self.families.remove(&monitor);
        }
        gone
    }

    /// Sends `signal` to the processes that outlived `monitor`. KILL goes to their groups too.
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

    /// Sends `signal` to the processes that outlived `monitor` and are `unreached`. The kernel may have sent it to
    /// others that are stopped, so all get SIGCONT.
    pub(crate) fn signal_unreached(&mut self, monitor: Monitor, signal: Signal, unreached: impl Fn(Pid) -> bool) {
        for pid in self.kin.of(monitor) {
            let sent = match unreached(pid) {
                true => processes::stop_child(pid, signal),
                false => processes::signal_child(pid, Signal::SIGCONT),
            };
            if let Err(error) = sent {
                // If the next step of the schedule fails too, that is logged.
                log::debug!("cannot send {} to pid {pid}: {}", signal.as_str(), processes::why_not_signalled(&error));
            }
        }
    }

    /// Whether main knows this child: a role of panzer's, an orphan, or a stranger.
    pub(crate) fn is_known(&self, pid: Pid) -> bool {
        self.strangers.contains(&pid)
            || self.logger == Some(pid)
            || self.kin.knows(pid)
            || self.preflight.as_ref().is_some_and(|preflight| preflight.pid() == pid)
            || self.planners.iter().any(|planner| planner.pid() == pid)
            || self.hook.as_ref().is_some_and(|hook| hook.pid() == pid)
            || self.by_pid(pid).is_some()
    }
}
