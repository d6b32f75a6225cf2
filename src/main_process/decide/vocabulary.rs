//! Main's vocabulary: the events that reach it, the actions that it decides, and the notes that are logged.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::config::{Ready, Surge, Tuning};
use crate::control::monitor::messages::{Order, Report, Urgency};
use crate::worker::cause::Cause;

/// One monitor process. If the monitor of a generation dies, the generation goes on under another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Monitor {
    /// Its generation.
    pub generation: u32,
    /// Number of this monitor among those of its generation, from 1.
    pub life: u32,
}

/// The settings of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Number of workers. A generation is whole when all of them are ready. 0 if it is to have none.
    pub workers: u32,
    /// Number of extra workers that a reload may have at once.
    pub surge: Surge,
    /// When a worker counts as ready.
    pub ready: Ready,
    /// Delays, waits and limits. The backoff also applies to the monitors of a generation, and the stop schedule to
    /// what outlives its monitor.
    pub tuning: Tuning,
    /// Number of old generations that may drain at once. Beyond it, the one that has drained for longest is escalated.
    pub max_draining: u32,
    /// Seed of the jitter, so that a history can be repeated.
    pub seed: u64,
}

/// Something that happened to main.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Main begins.
    Start,
    /// A new generation is wanted.
    Reload,
    /// A new generation is wanted, and this request waits for the verdict.
    ReloadFor(u64),
    /// The settings of this generation are known. The answer to [`Action::Plan`].
    Planned(u32, Settings),
    /// The settings of this generation are known. Commands of the user run first, for at most this time.
    Preparing(u32, Duration),
    /// The settings of this generation could not be resolved, or one of those commands failed.
    NotPlanned(u32, Cause),
    /// The configuration was read again: the configured number of workers and the tuning that apply from now on. No
    /// worker is replaced.
    Reread(u32, Tuning),
    /// Another number of workers is wanted. This request, if there is one, waits for the answer.
    Scale(Option<u64>, Change),
    /// A new generation is wanted, and the old one is to be retired with this urgency.
    ReloadRetiring(Urgency),
    /// A listener was bound anew. No generation has it yet.
    Rebound,
    /// The draining generations, or only this one, get no more time.
    EscalateDraining(Option<u32>),
    /// Everything is to stop.
    Stop(Urgency),
    /// Everything is to stop gracefully, or quickly if a stop is under way already.
    StopThenNow,
    /// A report of a monitor.
    Reported(Monitor, Report),
    /// A monitor could not be started.
    NotStarted(Monitor, Cause),
    /// A monitor has ended and been reaped. True if workers outlived it.
    Ended(Monitor, Cause, bool),
    /// More processes are left of this ended monitor than were known.
    OrphansJoined(Monitor),
    /// The last worker that outlived this monitor has ended.
    OrphansGone(Monitor),
    /// A deadline has come.
    Wake,
}

/// A change of the number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// To this number, at least one.
    To(u32),
    /// Changes the count by this number. At least one worker is left.
    By(i32),
    /// One worker fewer. The oldest one ends.
    WithoutOldest,
    /// To none, until a reload or another change.
    ToNone,
}

/// Something that main is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Resolve the settings of this generation.
    Plan(u32),
    /// Nobody waits for the settings of this generation any more.
    GiveUpPlan(u32),
    /// This generation has these settings from now on.
    Tune(u32, Tuning),
    /// Answer a request for another number of workers.
    Scaled {
        /// The request.
        request: Option<u64>,
        /// The number before.
        from: u32,
        /// The number now, or why it cannot be changed.
        to: Result<u32, &'static str>,
    },
    /// Start this monitor.
    StartMonitor {
        /// The monitor.
        monitor: Monitor,
        /// Number of workers that it keeps running.
        workers: u32,
        /// Slots whose worker ended for good under another monitor, with its exit code.
        ended: BTreeMap<u32, u8>,
        /// Whether the release must prove itself first.
        trial: bool,
        /// Whether its workers are ready only when they have notified.
        notify: bool,
        /// Whether its workers must be seen accepting, even before they listen on a shared port.
        accept: bool,
    },
    /// Send an order to a monitor.
    Order(Monitor, Order),
    /// Kill a monitor that did not obey within the schedule.
    KillMonitor(Monitor),
    /// Send this signal to the processes that outlived the monitor and cannot have got it from the kernel when it died.
    SignalUnreached(Monitor, Signal),
    /// Send this signal to all processes that outlived the monitor. KILL goes to their groups.
    SignalOrphans(Monitor, Signal),
    /// Wait no longer for the processes that outlived this monitor: they do not end.
    GiveUpOrphans(Monitor),
    /// Close the listeners.
    CloseListeners,
    /// Forget everything about a generation that is gone.
    Release(u32),
    /// Answer a request for a reload with the generation that decides it; none if everything is being stopped.
    Promise(u64, Option<u32>),
    /// Answer the requests that wait for this generation. There is one verdict for each generation that was promised.
    Verdict(u32, Verdict),
    /// Log this.
    Note(Note),
    /// Everything has ended: exit with this code.
    Exit(u8),
}

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The generation serves after this time. The old generation, if there is one, is being retired.
    Serves(Option<u32>, Duration),
    /// The generation failed.
    Rejected(Rejected),
    /// Panzer is being stopped, so the generation never serves.
    Stopped,
}

/// A generation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The slot that made it fail, if it was one slot.
    pub slot: Option<u32>,
    /// The cause.
    pub cause: Cause,
    /// Number of workers that it was to have.
    pub workers: u32,
    /// The workers that failed, each with its own cause.
    pub failed: Vec<(u32, Cause)>,
    /// The slots that were not ready by then.
    pub missing: Vec<u32>,
    /// Whether its workers had to be seen accepting.
    pub accept: bool,
    /// The generation that still serves.
    pub serving: u32,
}

/// Progress of the generation that is starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its number.
    pub generation: u32,
    /// Number of its ready workers.
    pub ready: u32,
    /// Number of its wanted workers.
    pub workers: u32,
    /// Whether all of them are ready, and only have to stay alive.
    pub baking: bool,
}

/// A message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The program was executed for the first time.
    Began,
    /// The first generation, or a restarted one, serves with this number of workers, after this time.
    Serving(u32, u32, Duration),
    /// A reload begins.
    Starting(u32),
    /// The number of workers is now the first one. It was the second one.
    Scaled(u32, u32),
    /// A reload was asked for while one is under way, and follows it.
    ReloadQueued(u32),
    /// This generation lacks a listener that was bound anew. One that has it is started after this delay.
    Renewing(u32, Duration),
    /// All workers of the new generation are ready. They must live for this long.
    Baking(u32, Duration),
    /// The new generation serves after this time. The old one, if there is one, is retired.
    Committed(u32, Option<u32>, Duration),
    /// The new generation failed.
    Rejected(u32, Rejected),
    /// A retired generation is gone, after draining for this time.
    Drained(u32, Duration),
    /// A monitor died. Another one follows after this delay.
    MonitorDied(u32, Cause, Duration),
    /// Nobody can see whether workers of this generation accept, for this reason. READY=1 or being alive decides.
    Unseeable(u32, String),
    /// The worker of this generation in this slot is not seen accepting on what it was given. It listens on these
    /// addresses instead, if on any.
    Bypasses(u32, u32, Vec<String>),
    /// A monitor did not obey, and is killed.
    MonitorStuck(u32),
    /// An operator gives this generation no more time to drain.
    Hurried(u32),
    /// This generation drains for longest, and this number of others drain too. It goes on to the rest of its schedule.
    Hastened(u32, u32),
    /// One worker of the generation, or every one, has ended for good, and so panzer ends.
    Finished {
        /// The generation.
        generation: u32,
        /// The worker's slot, if one worker ends everything.
        slot: Option<u32>,
        /// Panzer's exit code.
        code: u8,
    },
    /// Everything is being stopped.
    Stopping(Urgency),
    /// Everything has ended. The program has run.
    Stopped,
    /// The program cannot be executed at all.
    Fatal(Cause),
    /// There were more respawns than allowed in this generation.
    GaveUp(u32),
}

/// The part that a generation plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It serves, or is the first one and will serve.
    Serving,
    /// It must prove itself.
    Starting,
    /// It is being stopped.
    Draining,
}

/// The state in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overview {
    /// The generation that serves, or is the first one and will serve.
    pub serving: Option<Progress>,
    /// The generation that must prove itself.
    pub starting: Option<Progress>,
    /// The generation that was begun last, whatever became of it.
    pub begun: u32,
    /// Whether all workers of the serving generation have been ready.
    pub serves: bool,
    /// Whether everything is being stopped.
    pub stopping: bool,
    /// Whether workers still serve before that stop begins.
    pub leaving: bool,
    /// When the first start, the reload or the stop that is under way ends at the latest, according to panzer's own
    /// limits.
    pub busy_until: Option<Instant>,
}
