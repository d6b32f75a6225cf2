//! What can happen to a monitor, what it does, and what it tells people.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::config::{RespawnLimit, Tuning};
use crate::control::monitor::messages::{Order, Report};
use crate::readiness::watch::{Bypass, Sight};
use crate::worker::cause::Cause;
use crate::worker::kin;

/// One life of a slot. What is still under way about an earlier life never touches a later one.
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

/// What a monitor is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How many slots are kept filled.
    pub workers: u32,
    /// Whether a worker is ready only when it has said so; of no use where it is seen accepting or must be.
    pub notify: bool,
    /// Whether a worker is looked at until it accepts.
    pub watch: Watch,
    /// Whether a worker is ready only when a probe of it succeeds; one that is looked at is probed once it accepts.
    pub probe: bool,
    /// Whether workers are given a listener to accept on.
    pub has_listener: bool,
    /// Whether a mold loads the program, and forks the workers.
    pub preload: bool,
    /// Delays, waits and limits. On trial main times a generation as a whole. Its bake is what a worker lives at least,
    /// from its exec on, before no more is asked of it than that.
    pub tuning: Tuning,
    /// The slots whose worker ended for good under another monitor.
    pub ended: BTreeSet<u32>,
    /// A new release beside a serving one: a death is its failure, and nothing is respawned until it is committed.
    pub trial: bool,
    /// Makes the jitter repeatable.
    pub seed: u64,
}

/// Whether a worker is looked at until it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It is not: readiness is by another measure.
    No,
    /// It is ready when it is seen accepting; one that cannot be seen, by the other measure.
    IfSeeable,
    /// As before from the moment on when it listens on a shared port, where it does so within the bake; or from its start
    /// where its slot has done so before. Otherwise by the other measure.
    IfItListens,
    /// It is ready when it is seen accepting, and never otherwise.
    Always,
}

/// What can happen to a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It begins.
    Start,
    /// The program runs.
    Executed(Worker),
    /// The mold is loaded, and forks when it is asked to.
    MoldReady,
    /// The mold cannot load, and why.
    MoldFailed(String),
    /// The mold has broken its protocol, and how.
    MoldBroke(String),
    /// The socket of the mold has ended.
    MoldClosed,
    /// A child that was not known says that it is the worker of this ticket.
    Born(u64),
    /// The mold says that there is no worker for this ticket, and why.
    Unborn(u64, String),
    /// The worker said that it is ready.
    Notified(Worker),
    /// The worker asked for so much time, from now on, to be ready or to stop.
    Extends(Worker, Duration),
    /// The worker, or a descendant, listens on a shared port.
    Listens(Worker),
    /// What a look at the worker gave.
    Seen(Worker, Sight),
    /// What a look at the worker gave that asks whether it bypasses its listener: none where it does not, as far as can
    /// be seen.
    Examined(Worker, Option<Bypass>),
    /// A look, of either kind, is over and took this much processor time. It comes after what the look gave.
    Looked(Duration),
    /// A probe of the worker has ended and been reaped, or could not be started; true where it succeeded.
    Probed(Worker, bool),
    /// The worker has ended and been reaped, or could not be started.
    Ended(Worker, Cause),
    /// A signal has stopped the worker: it runs no more until it gets CONT.
    Suspended(Worker, Signal),
    /// It goes on.
    Continued(Worker),
    /// This worker has ended, or is about to be said to have, and there is something left of it, or more than was known.
    LeftBehind(Worker),
    /// All that this worker left behind has ended.
    GroupGone(Worker),
    /// Main orders something.
    Ordered(Order),
    /// Main is gone.
    MainGone,
    /// A turn of the loop is over: everything that was ready has been read.
    Wake,
}

/// What a monitor does.
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
    /// Look whether this worker accepts; the answers are [`Event::Seen`] and [`Event::Looked`]. One look at a time.
    Look(Worker),
    /// Look whether this worker bypasses its listener; the answers are [`Event::Examined`] and [`Event::Looked`].
    Examine(Worker),
    /// Start a probe of this worker; its end is [`Event::Probed`].
    Probe(Worker),
    /// End the probe of this worker.
    EndProbe(Worker),
    /// Send this to the worker; KILL to its whole group.
    Signal(Worker, Signal),
    /// Send this to what the worker left behind.
    SignalGroup(Worker, Signal),
    /// Wait no longer for this worker, and for what it left behind: nothing helps.
    GiveUp(Worker),
    /// Let go of the listeners: nothing is started any more.
    CloseListeners,
    /// Tell main.
    Report(Report),
    /// Tell people.
    Note(Note),
    /// Everything has ended.
    Exit,
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A worker ended by itself; it is respawned after this delay.
    Respawning(Worker, Cause, Duration),
    /// The mold ended, or is of no use; another is loaded after this delay.
    MoldFailed(Worker, Cause, Duration),
    /// A worker ended with this final exit code, and nobody follows it.
    EndedForGood(Worker, u8),
    /// A worker is ended because it was not ready in this time; the next one has that time.
    NotReady(Worker, Duration, Duration),
    /// A worker is ended because its exec hangs.
    HangsInExec(Worker),
    /// A worker had to be sent a later signal of the schedule.
    Escalated(Worker, Signal),
    /// A signal has stopped a worker.
    Suspended(Worker, Signal),
    /// Processes outlived their worker and are stopped.
    LeftBehind(Worker),
    /// More respawns than allowed.
    GaveUp(RespawnLimit),
    /// Main is gone, everything is stopped.
    MainGone,
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing, and nothing is planned.
    Empty,
    /// Nothing until the backoff is over, and it is its turn to be started.
    Waiting,
    /// A process that has not executed its program yet.
    Executing,
    /// A program that is not ready yet.
    Starting,
    /// A worker that is ready.
    Ready,
    /// A worker that is being stopped.
    Stopping,
    /// A worker that a signal has stopped, whatever it was before.
    Suspended,
    /// Nothing any more: the last worker ended for good.
    Ended,
}

impl Phase {
    /// As people are shown it.
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

/// What one slot looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// What it holds.
    pub phase: Phase,
    /// So many times a worker that had ended was replaced.
    pub respawns: u32,
    /// Since when it has been in this phase, or for a live worker since its start.
    pub since: Instant,
}
