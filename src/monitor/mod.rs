//! The monitor: keeps the slots of one generation filled with workers.
//!
//! [`decide`] decides. [`run`] has the loop, `perform` performs what was decided, `orders` takes main's orders,
//! `claims` reports ports to main, `mold` talks with the mold, and `processes` knows the pids. A monitor knows only its
//! own generation; main knows how generations relate.

pub mod decide;
pub mod run;

mod claims;
mod memory;
mod mold;
pub(crate) mod notes;
mod orders;
mod output;
mod perform;
mod processes;
mod reasons;
mod refork;
mod start;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use self::decide::{Event, Slots, Worker};
use self::processes::outputs::Outputs;
use self::processes::roster::Roster;
use crate::control::mold::MoldSocket;
use crate::control::monitor::channel::Channel;
use crate::control::monitor::messages::Assignment;
use crate::readiness::ack::AckSocket;
use crate::readiness::notify::NotifySocket;
use crate::readiness::watch::Listeners;
use crate::sockets::queues::Placed;
use crate::sockets::sharing::Sharing;
use crate::sys::oom::OomKills;
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;
use crate::worker::environment::Common;
use crate::worker::identity::Identity;
use crate::worker::program::Release;

pub(crate) const SIGNALS: u64 = 0;
pub(crate) const CHANNEL: u64 = 1;
pub(crate) const NOTIFY: u64 = 2;
pub(crate) const SHARING: u64 = 3;
pub(crate) const ACKS: u64 = 4;
pub(crate) const STDERR: u64 = 5;
pub(crate) const MOLD: u64 = 6;
pub(crate) const WARM: u64 = 7;
/// From here on, a token names a worker whose exec is watched.
pub(crate) const FIRST_EXEC: u64 = 1 << 60;
/// From here on, a token names a worker whose own notify socket is watched.
pub(crate) const FIRST_NOTIFY: u64 = 1 << 61;

/// The whole monitor.
pub(crate) struct Monitor {
    pub(crate) assignment: Assignment,
    pub(crate) program: Program,
    pub(crate) talk: Talk,
    pub(crate) sockets: Sockets,
    pub(crate) lines: Lines,
    pub(crate) signals: Signals,
    pub(crate) poller: Poller,
    pub(crate) roster: Roster,
    /// Counted from right after the first start on, as to find the counter takes as long as to start a worker.
    pub(crate) oom_kills: OomKills,
    /// Workers whose exec the poller does not watch, because memory or watches ran out. Each turn of the loop looks at them.
    pub(crate) unwatched: BTreeSet<Worker>,
    pub(crate) state: Slots,
    /// Events that the state has not seen yet.
    pub(crate) events: VecDeque<Event>,
    pub(crate) held_notes: notes::Held,
    pub(crate) done: bool,
}

/// The program of the workers.
pub(crate) struct Program {
    pub(crate) common: Common,
    pub(crate) release: Release,
    pub(crate) identity: Rc<Identity>,
    /// The entrance of their cgroup, if they have one.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Whether it was logged that the release has changed on disk.
    pub(crate) mixed_release_told: bool,
}

/// The channels to main and to the workers.
pub(crate) struct Talk {
    pub(crate) channel: Channel,
    /// Workers that were started a moment ago, and of which main does not know yet.
    pub(crate) unannounced: Vec<Worker>,
    /// The output of workers, which goes to main.
    pub(crate) outputs: Outputs,
    /// Why the channel to main has failed although main is there.
    pub(crate) cut_off: Option<String>,
    pub(crate) notify: NotifySocket,
    /// Number of workers that have a notify socket of their own. All others share one.
    pub(crate) own_sockets: usize,
    pub(crate) unattributed_told: bool,
    pub(crate) too_long_told: bool,
    pub(crate) unmeasured_told: bool,
    pub(crate) acks: Option<AckSocket>,
}

/// Our ends of the sockets of molds.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// To the mold, where there is one.
    pub(crate) mold: Option<MoldSocket>,
    /// To workers that may be told to become the mold.
    pub(crate) spares: BTreeMap<Worker, MoldSocket>,
    /// The worker that was told.
    pub(crate) candidate: Option<(Worker, MoldSocket)>,
}

/// The listeners of workers.
pub(crate) struct Sockets {
    pub(crate) placed: Placed<OwnedFd>,
    /// The listeners on which workers are seen accepting.
    pub(crate) accepted_on: Listeners,
    pub(crate) sharing: Option<Sharing>,
    pub(crate) own_path_told: bool,
}

/// The token of this worker, from `first` on.
pub(crate) fn token(first: u64, worker: Worker) -> u64 {
    first | u64::from(worker.life) << 16 | u64::from(worker.slot.min(MOLD_IN_TOKEN))
}

/// The worker of such a token.
pub(crate) fn worker_of(token: u64) -> Worker {
    let slot = token as u32 & MOLD_IN_TOKEN;
    Worker { slot: if slot == MOLD_IN_TOKEN { Worker::MOLD } else { slot }, life: (token >> 16) as u32 }
}

/// No other slot has this number.
const MOLD_IN_TOKEN: u32 = 0xFFFF;
const _: () = assert!(crate::config::MAX_WORKERS < MOLD_IN_TOKEN);
