//! What can happen to main, what it does, and what it tells people.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::config::{Ready, Surge, Tuning};
use crate::control::monitor::messages::{Order, Report, Urgency};
use crate::worker::cause::Cause;

/// One monitor process. A generation whose monitor died goes on under another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Monitor {
    /// The generation it keeps.
    pub generation: u32,
    /// Which of the generation's monitors, from 1.
    pub life: u32,
}

/// What main is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How many workers make a generation whole; none where it was told to have none.
    pub workers: u32,
    /// How many more a reload may have at once.
    pub surge: Surge,
    /// When a worker counts as ready.
    pub ready: Ready,
    /// Delays, waits and limits: those of the backoff also go for monitors of one generation, and the stop for what
    /// outlives its monitor.
    pub tuning: Tuning,
    /// How many old generations may drain at once before the one that has drained for longest is escalated.
    pub max_draining: u32,
    /// Makes the jitter repeatable.
    pub seed: u64,
}

/// What can happen to main.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// It begins.
    Start,
    /// Somebody wants a new generation.
    Reload,
    /// As a reload; whoever asked, by this number, wants to know what becomes of it.
    ReloadFor(u64),
    /// What this generation is to be was found out, as asked by [`Action::Plan`].
    Planned(u32, Settings),
    /// That could not be found out.
    NotPlanned(u32, Cause),
    /// So is what needs no new workers to be from now on: the count, where another is configured, delays and waits.
    Reread(u32, Tuning),
    /// Another count of workers is wanted; by this request, where somebody waits for an answer.
    Scale(Option<u64>, Change),
    /// As a reload; the old generation is retired so urgently.
    ReloadRetiring(Urgency),
    /// A listener was bound anew, and no generation so far has it.
    Rebound,
    /// What drains, or this generation only, is to take no more time.
    EscalateDraining(Option<u32>),
    /// Somebody wants an end.
    Stop(Urgency),
    /// As a graceful stop; where one is under way already, a quick one.
    StopThenNow,
    /// A monitor tells something.
    Reported(Monitor, Report),
    /// A monitor could not be started.
    NotStarted(Monitor, Cause),
    /// A monitor has ended and been reaped; true where workers outlived it.
    Ended(Monitor, Cause, bool),
    /// There is more left of this monitor, which has ended, than was known.
    OrphansJoined(Monitor),
    /// The last worker that outlived this monitor has ended.
    OrphansGone(Monitor),
    /// A deadline has come.
    Wake,
}

/// A change of the count of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// To so many, at least one.
    To(u32),
    /// By so many more or less; one is always left.
    By(i32),
    /// By one less, and it is the oldest that goes.
    WithoutOldest,
    /// To none, until a reload or another change.
    ToNone,
}

/// What main does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find out what this generation is to be.
    Plan(u32),
    /// Nobody waits for that any more.
    GiveUpPlan(u32),
    /// So are delays and waits of this generation from now on.
    Tune(u32, Tuning),
    /// The count of workers was changed, for whoever asked: from so many, to so many.
    Scaled {
        /// Who asked.
        request: Option<u64>,
        /// The count before.
        from: u32,
        /// The count now, or why it cannot be changed.
        to: Result<u32, &'static str>,
    },
    /// Start this monitor.
    StartMonitor {
        /// Which.
        monitor: Monitor,
        /// How many workers it keeps.
        workers: u32,
        /// The slots among them whose worker ended for good under another monitor, and its exit code.
        ended: BTreeMap<u32, u8>,
        /// Whether its release must first prove itself.
        trial: bool,
        /// Whether its workers are ready only when they say so.
        notify: bool,
        /// Whether its workers must be seen accepting, also before they listen on a shared port.
        accept: bool,
    },
    /// Send it an order.
    Order(Monitor, Order),
    /// End a monitor that did not obey within the schedule.
    KillMonitor(Monitor),
    /// Send this to those that outlived the monitor and cannot have got it from the kernel when it died.
    SignalUnreached(Monitor, Signal),
    /// Send this to all that outlived the monitor; KILL to their groups.
    SignalOrphans(Monitor, Signal),
    /// Wait no longer for what outlived this monitor: nothing helps.
    GiveUpOrphans(Monitor),
    /// Let go of the listeners.
    CloseListeners,
    /// Forget what was kept of a generation that is gone.
    Release(u32),
    /// Tell whoever asked for a reload which generation decides it; none where everything is being stopped.
    Promise(u64, Option<u32>),
    /// Tell those who wait for this generation what became of it. Of each that was promised there is one.
    Verdict(u32, Verdict),
    /// Tell people.
    Note(Note),
    /// Everything has ended: exit with this code.
    Exit(u8),
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The generation serves, and this one, if any, is being retired; with the time it took.
    Serves(Option<u32>, Duration),
    /// It failed.
    Rejected(Rejected),
    /// Panzer is being stopped; the generation never serves.
    Stopped,
}

/// A generation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The slot that brought it down, where one did.
    pub slot: Option<u32>,
    /// Why.
    pub cause: Cause,
    /// So many workers it was to have.
    pub workers: u32,
    /// The workers that failed, each with its own cause.
    pub failed: Vec<(u32, Cause)>,
    /// Those that were not ready by then.
    pub missing: Vec<u32>,
    /// Whether they had to be seen accepting.
    pub accept: bool,
    /// The generation that serves on.
    pub serving: u32,
}

/// How far the generation has come that is starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its number.
    pub generation: u32,
    /// So many of its workers are ready.
    pub ready: u32,
    /// Of so many.
    pub workers: u32,
    /// Whether all are, and it only has to live on.
    pub baking: bool,
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The program could be executed for the first time.
    Began,
    /// The first generation, or one that was restarted, serves: with so many workers, after this time.
    Serving(u32, u32, Duration),
    /// A reload begins.
    Starting(u32),
    /// So many workers are kept from now on, instead of so many.
    Scaled(u32, u32),
    /// A reload was asked for while one is under way.
    ReloadQueued(u32),
    /// This generation lacks a listener that was bound anew; one that has it is started after this wait.
    Renewing(u32, Duration),
    /// All workers of the new generation are ready; it must now live for this long.
    Baking(u32, Duration),
    /// The new generation serves and the old one, if there was one, is retired; with the time it took.
    Committed(u32, Option<u32>, Duration),
    /// The new generation failed.
    Rejected(u32, Rejected),
    /// A retired generation is gone; with the time its draining took.
    Drained(u32, Duration),
    /// A monitor died; another follows after this delay.
    MonitorDied(u32, Cause, Duration),
    /// It cannot be seen whether workers of this generation accept, for this reason; another measure is taken.
    Unseeable(u32, String),
    /// A worker of this generation, in this slot, is not seen accepting on what it was given. It listens on these addresses
    /// instead, if on any.
    Bypasses(u32, u32, Vec<String>),
    /// A monitor did not obey and is killed.
    MonitorStuck(u32),
    /// This generation takes no more time to drain, as an operator wants it.
    Hurried(u32),
    /// This generation drains for longest, beside so many: it has to go on to the rest of its schedule.
    Hastened(u32, u32),
    /// This worker, or every one, of the generation has ended for good, and that ends all.
    Finished {
        /// The generation.
        generation: u32,
        /// The worker's slot, where the first one ends all.
        slot: Option<u32>,
        /// What panzer exits with.
        code: u8,
    },
    /// Stopping.
    Stopping(Urgency),
    /// Everything has ended, after the program had run.
    Stopped,
    /// The program cannot be executed at all.
    Fatal(Cause),
    /// More respawns than allowed.
    GaveUp(u32),
}

/// Where a generation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It serves, or is the first and will.
    Serving,
    /// It must prove itself.
    Starting,
    /// It is being stopped.
    Draining,
}

/// How things stand, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overview {
    /// The generation that serves, or is the first and will.
    pub serving: Option<Progress>,
    /// The one that must prove itself.
    pub starting: Option<Progress>,
    /// The last one that was begun, whatever became of it.
    pub begun: u32,
    /// Whether the serving one has been wholly ready.
    pub serves: bool,
    /// Whether everything is being stopped.
    pub stopping: bool,
    /// By when the first start, the reload or the stop that is under way ends, by panzer's own limits.
    pub busy_until: Option<Instant>,
}
