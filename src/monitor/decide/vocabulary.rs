//! A monitor's vocabulary: the events that reach it, the actions that it decides, and the notes that are logged.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::config::{Reason, Refork, RespawnLimit, Tuning};
use crate::control::monitor::messages::{Order, Report};
use crate::readiness::watch::{Bypass, Sight};
use crate::worker::cause::Cause;
use crate::worker::kin;

/// One life of a slot. Events of an earlier life never touch a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    /// The slot, from 0; or [`Worker::MOLD`].
    pub slot: u32,
    /// Which of its lives, from 1.
    pub life: u32,
}

impl Worker {
    /// The slot of the mold, which is no worker but lives like one.
    pub const MOLD: u32 = kin::MOLD;

    /// Whether this is the mold.
    pub fn is_mold(self) -> bool {
        self.slot == Worker::MOLD
    }
}

/// As people call it.
impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_mold() { write!(f, "the mold") } else { write!(f, "worker {}", self.slot) }
    }
}

/// The settings of a monitor.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Number of slots that are kept filled.
    pub workers: u32,
    /// Whether a worker is ready only when it has notified. It does not matter if the worker is, or must be, seen
    /// accepting.
    pub notify: bool,
    /// Whether workers are watched until they accept.
    pub watch: Watch,
    /// Whether a worker is ready only when its probe succeeds. A worker that is watched is probed once it accepts.
    pub probe: bool,
    /// Whether workers get a listener to accept on.
    pub has_listener: bool,
    /// Whether a mold loads the program, and forks the workers.
    pub preload: bool,
    /// When a warm worker becomes the mold.
    pub refork: Refork,
    /// Within this time a ready worker says again that it lives.
    pub watchdog: Option<Duration>,
    /// Delays, waits and limits. During a trial main has a deadline for the whole generation. If a worker need not show
    /// anything, it is ready for good after a bake from its exec on.
    pub tuning: Tuning,
    /// Slots whose worker ended for good under another monitor.
    pub ended: BTreeSet<u32>,
    /// Whether a new release is on trial beside a serving one. Then a death makes the release fail, and nothing is
    /// respawned before a commit.
    pub trial: bool,
    /// Seed of the jitter, so that a history can be repeated.
    pub seed: u64,
}

/// Whether workers are watched until they accept. If a worker is not seen accepting, READY=1, a probe or being alive
/// decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// No.
    No,
    /// A worker is ready when it is seen accepting. If it cannot be seen, the others decide.
    IfSeeable,
    /// Like IfSeeable, but only once the worker listens on a shared port (if it does so within the bake), or from the
    /// start if an earlier worker of this slot did.
    IfItListens,
    /// A worker is ready only when it is seen accepting.
    Always,
}

/// Something that happened to a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The monitor begins.
    Start,
    /// The program of this worker runs.
    Executed(Worker),
    /// The mold is loaded, and forks when it is asked to. True if its workers can become molds.
    MoldReady(bool),
    /// A worker that was asked to become the mold is one. True if its workers can, too.
    Willing(Worker, bool),
    /// It is not, and why.
    Unwilling(Worker, String),
    /// The mold cannot load, and why.
    MoldFailed(String),
    /// The mold has broken its protocol, and how.
    MoldBroke(String),
    /// The socket of the mold has ended.
    MoldClosed,
    /// A child that was not known says that it is the worker of this ticket.
    Born(u64),
    /// The mold reports that there is no worker for this ticket, and why.
    Unborn(u64, String),
    /// The worker has notified that it is ready.
    Notified(Worker),
    /// The worker asks for this much time from now on, to be ready or to stop.
    Extends(Worker, Duration),
    /// The worker said that it lives.
    Lives(Worker),
    /// The worker said that it ends by itself.
    Stops(Worker),
    /// The worker wants to be aborted.
    IsBroken(Worker),
    /// The worker says within this time that it lives, from now on; zero: never again.
    WatchedEvery(Worker, Duration),
    /// The worker has served this number of requests so far.
    Served(Worker, u64),
    /// The memory of workers, if it is known, and the processor time that it took to measure.
    Measured(Vec<(Worker, Option<u64>)>, Duration),
    /// The worker, or a descendant, listens on a shared port.
    Listens(Worker),
    /// The result of a look at the worker.
    Seen(Worker, Sight),
    /// The result of a look at whether the worker bypasses its listener. None if it does not, as far as can be seen.
    Examined(Worker, Option<Bypass>),
    /// A look of either kind is over, and took this much processor time. Its result comes before this.
    Looked(Duration),
    /// A probe of the worker has ended and been reaped, or could not be started. True if it succeeded.
    Probed(Worker, bool),
    /// The worker has ended and been reaped, or could not be started.
    Ended(Worker, Cause),
    /// A signal has stopped the worker. It does not run until it gets CONT.
    Suspended(Worker, Signal),
    /// The worker runs again.
    Continued(Worker),
    /// This worker has ended, or its end follows, and it has left something, or more than was known.
    LeftBehind(Worker),
    /// Everything that this worker has left has ended.
    GroupGone(Worker),
    /// An order of main.
    Ordered(Order),
    /// Main is gone.
    MainGone,
    /// A turn of the loop is over: signals, orders and messages have been read.
    Wake,
}

/// Something that a monitor is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start this worker, or the mold.
    Spawn(Worker),
    /// Ask the mold for this worker, by this ticket.
    Fork(Worker, u64),
    /// The child that has said [`Event::Born`] is this worker.
    Adopt(Worker),
    /// Tell the mold to end, and hear it no more.
    Dismiss,
    /// Tell this worker to become the mold; the answer is [`Event::Willing`] or [`Event::Unwilling`], or its end.
    WantAsMold(Worker),
    /// This worker is not to become the mold after all: tell it to end.
    Decline(Worker),
    /// This worker is the mold from now on, by that name. Tell the one before it to end.
    Promote(Worker, Worker),
    /// Look whether this worker accepts; the answers are [`Event::Seen`] and [`Event::Looked`]. One look at a time.
    Look(Worker),
    /// Look whether this worker bypasses its listener; the answers are [`Event::Examined`] and [`Event::Looked`].
    Examine(Worker),
    /// Start a probe of this worker; its end is [`Event::Probed`].
    Probe(Worker),
    /// End the probe of this worker.
    EndProbe(Worker),
    /// Measure the memory of these workers; the answer is [`Event::Measured`]. One measurement at a time.
    Measure(Vec<Worker>),
    /// End the measurement. Its answer comes all the same.
    EndMeasurement,
    /// Send this signal to the worker. KILL goes to its whole group.
    Signal(Worker, Signal),
    /// Send this signal to what the worker has left.
    SignalGroup(Worker, Signal),
    /// Wait no longer for this worker, and for what it has left: they do not end.
    GiveUp(Worker),
    /// Close the listeners, because nothing is started any more.
    CloseListeners,
    /// Report this to main.
    Report(Report),
    /// Log this.
    Note(Note),
    /// Everything has ended.
    Exit,
}

/// A message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A worker ended by itself; it is respawned after this delay.
    Respawning(Worker, Cause, Duration),
    /// The mold ended, or is of no use; another is loaded.
    MoldFailed {
        /// The mold.
        worker: Worker,
        /// Why, as people are told.
        why: Cause,
        /// How its process ended.
        end: Cause,
        /// The time until another is loaded.
        delay: Duration,
        /// Whether there are workers, which serve on.
        serves: bool,
    },
    /// The mold was this worker until now.
    Reforked(Worker, Worker),
    /// This worker was to become the mold, and did not: why.
    NotReforked(Worker, String),
    /// The program's client does not know how a worker becomes the mold.
    CannotRefork,
    /// A worker ended with this final exit code, and no worker follows it.
    EndedForGood(Worker, u8),
    /// A worker is ended because it was not ready within this time. The next one has the second time.
    NotReady(Worker, Duration, Duration),
    /// A worker is ended because its exec hangs.
    HangsInExec(Worker),
    /// A worker did not end, and got this later signal of the schedule.
    Escalated(Worker, Signal),
    /// A worker did not say within this time that it lives, or asked for its end. It is aborted.
    Aborted(Worker, Option<Duration>),
    /// A worker is being replaced for this reason.
    Recycling(Worker, Reason),
    /// The first worker has taken the place of the second.
    Recycled(Worker, Worker),
    /// The worker that was to replace another has ended before it was ready. The other one serves on, and the next
    /// attempt is made after this delay.
    NotRecycled(Worker, Cause, Duration),
    /// A signal has stopped a worker.
    Suspended(Worker, Signal),
    /// Processes outlived their worker, and are stopped.
    LeftBehind(Worker),
    /// There were more respawns than allowed.
    GaveUp(RespawnLimit),
    /// Main is gone, so everything is stopped.
    MainGone,
}

/// The content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing, and nothing is planned.
    Empty,
    /// No process until the delay is over, and it is the slot's turn.
    Waiting,
    /// A process that has not executed its program yet.
    Executing,
    /// A program that is not ready yet.
    Starting,
    /// A worker that is ready.
    Ready,
    /// A worker that is being stopped.
    Stopping,
    /// A worker that a signal has stopped.
    Suspended,
    /// No process any more: the last worker ended for good.
    Ended,
}

impl Phase {
    /// The word that people see.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Empty => "empty",
            Phase::Waiting => "waiting",
            Phase::Executing | Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Stopping => "stopping",
            Phase::Suspended => "stopped",
            Phase::Ended => "ended",
        }
    }
}

/// One slot as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Its content.
    pub phase: Phase,
    /// Number of times that a worker which had ended was replaced.
    pub respawns: u32,
    /// Since when it has been in this phase. For a live worker, since its start.
    pub since: Instant,
    /// How far it is worn.
    pub wear: Worn,
}

/// How far a worker is worn, and how often that was the end of its slot's workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worn {
    /// Number of requests that the worker has served, if it reports them.
    pub requests: Option<u64>,
    /// Number of workers of this slot that were replaced because they had reached a limit.
    pub recycled: u32,
    /// Why the worker is being replaced, or else why the last one was.
    pub reason: Option<Reason>,
}
