//! The messages between main and a monitor, and what a monitor is assigned: JSON, one message a packet.
//!
//! Main may be another build than a running monitor, after a restart in place, and a newer or an older one. So fields are
//! only ever added, with a default, and what the other side need not understand may be added as well: it leaves out what
//! it does not know, and says so once. Where that does not do, [`VERSION`] goes up, and a main that does not speak the
//! version of a running monitor does not take over (`main_process::carried`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::channel::Message;
use crate::config::{Plan, Tuning};
use crate::sockets::sharing::Key;
use crate::worker::cause::Cause;
use crate::worker::program::Fingerprint;

/// The version of this protocol and of [`Assignment`].
pub const VERSION: u32 = 2;

/// The oldest version of this protocol that main still speaks with a monitor.
pub const OLDEST: u32 = 1;

/// The longest time that a worker gets by one word, which it may repeat.
pub const MAX_EXTENSION: Duration = Duration::from_secs(3600);

/// How a stop is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// By the first signal of the schedule, and then for as long as it takes.
    Patient,
    /// By the whole schedule for workers that a reload ends.
    Retiring,
    /// By the whole schedule.
    Graceful,
    /// By the schedule without its first step.
    Quick,
}

/// Which workers go where there are to be fewer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Those of the last slots.
    #[default]
    Last,
    /// Those of the first slots: another generation has workers in these.
    First,
    /// Those that have run for longest.
    Oldest,
}

/// What main orders a monitor to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The release has proved itself: it serves from now on.
    Commit,
    /// Stop all workers, then exit.
    Stop(Urgency),
    /// Report every worker.
    Status,
    /// The daemon's start is over: its terminal is told nothing any more.
    LeaveTerminal,
    /// Keep so many workers from now on.
    Scale {
        /// How many.
        workers: u32,
        /// Which go where there are to be fewer.
        #[serde(default)]
        which: Which,
    },
    /// A further queue of a single worker comes along as a descriptor.
    QueueAt {
        /// Its place among all sockets of the generation, as `sockets::queues` has them.
        place: usize,
    },
    /// Delays and waits are so from now on.
    Tune(Box<Tuning>),
    /// What was claimed is held: it comes along as a descriptor.
    Shared {
        /// The ticket of [`Report::Claim`] or [`Report::Listen`].
        ticket: u64,
    },
    /// What was claimed is free: main has bound the worker's own socket, if that came along. Nobody holds it yet.
    Bound {
        /// The ticket of [`Report::Claim`].
        ticket: u64,
    },
    /// What a claim has waited for is over: claim it again.
    Again {
        /// The ticket of [`Report::Claim`].
        ticket: u64,
    },
    /// Report where workers listen that panzer does not hold.
    Own,
    /// Report whether a socket that is bound may still listen: others wait for it.
    Look {
        /// The ticket of the [`Report::Claim`] by which it was bound.
        ticket: u64,
    },
    /// What was claimed cannot be held.
    NotShared {
        /// The ticket of [`Report::Claim`] or [`Report::Listen`].
        ticket: u64,
        /// The errno of its bind; without one, panzer leaves it to the kernel.
        errno: Option<i32>,
    },
    /// Send a signal to workers; answered with [`Report::Signalled`].
    Signal {
        /// What the answer refers to.
        ticket: u64,
        /// The signal's number.
        number: i32,
        /// The only slot that is meant.
        slot: Option<u32>,
    },
}

/// What a monitor tells main.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The release was found. The packet carries as descriptors, in this order: its directory, its program, and a
    /// document with what else was looked up.
    Resolved {
        /// Where the program is.
        #[serde(with = "crate::config::text::path")]
        path: PathBuf,
        /// The user that workers run as, where it is another than panzer's.
        #[serde(default)]
        other_user: Option<u32>,
        /// What it is on disk.
        #[serde(default)]
        fingerprint: Fingerprint,
    },
    /// No worker can be started at all.
    CannotBegin(Cause),
    /// A worker has been forked. Main needs its pid for the case that the monitor dies.
    Forked {
        /// Its slot.
        slot: u32,
        /// Its pid.
        pid: i32,
        /// When it began, in the kernel's ticks: pids come again.
        started: Option<u64>,
    },
    /// Pids of what does not end whatever it is sent, and when each began: nobody is to wait for it any more.
    GivenUp(Vec<(i32, Option<u64>)>),
    /// The program runs; told once by each monitor.
    Executed,
    /// A worker is ready; told again when one that was ready by another measure says so itself.
    Ready {
        /// Its slot.
        slot: u32,
        /// Whether it said so itself.
        notified: bool,
        /// Whether it was seen accepting.
        #[serde(default)]
        seen: bool,
    },
    /// A worker, or a descendant of it, listens on a shared port; told once in each life.
    Listens {
        /// Its slot.
        slot: u32,
        /// Whether it was ready for no more than being alive, and no longer is: it must be seen accepting.
        #[serde(default)]
        withdrawn: bool,
    },
    /// A worker asks for more time, from now on, to be ready or to stop.
    Extends {
        /// Its slot.
        slot: u32,
        /// How much; bounded.
        by: Duration,
    },
    /// It cannot be seen whether a worker accepts that is to be watched; told once for each reason in each life.
    Unseeable {
        /// Its slot.
        slot: u32,
        /// The reason, completing "whether it accepts cannot be seen: …".
        why: String,
    },
    /// A worker is not seen accepting on the listener that it was given; told at most once by each monitor.
    Bypasses {
        /// Its slot.
        slot: u32,
        /// The TCP addresses that it listens on instead.
        own: Vec<String>,
    },
    /// A worker ended that was not to.
    Died {
        /// Its slot.
        slot: u32,
        /// Why.
        cause: Cause,
    },
    /// Nothing is wanted of this slot any more, and its worker, if any, is being stopped.
    Retired {
        /// The slot.
        slot: u32,
        /// Whether it has no worker, or one whose end was to be told already.
        #[serde(default)]
        empty: bool,
    },
    /// The worker of a slot of which nothing was wanted any more has ended.
    Gone {
        /// The slot.
        slot: u32,
    },
    /// A worker ended with a final exit code, and is not respawned; nor does another monitor of the generation start it.
    EndedForGood {
        /// Its slot.
        slot: u32,
        /// Its exit code.
        code: u8,
    },
    /// There were more respawns than allowed.
    GaveUp,
    /// A worker, in answer to [`Order::Status`].
    Worker(WorkerStatus),
    /// That was the last one.
    StatusEnd,
    /// A worker cannot be started, as its queue has not come: it is to be sent again.
    QueueMissing {
        /// Its place, as of [`Order::QueueAt`].
        place: usize,
    },
    /// So many workers got the signal of [`Order::Signal`].
    Signalled {
        /// The ticket of the order.
        ticket: u64,
        /// How many.
        reached: u32,
    },
    /// A worker wants to bind; its socket comes along as a descriptor, if it could be had.
    Claim {
        /// What the answer refers to.
        ticket: u64,
        /// Where.
        key: Key,
        /// Whether its socket comes along. Builds that do not say so send it if they have it.
        #[serde(default)]
        socket: Option<bool>,
        /// The process that binds. A monitor of an older build does not say it, and takes a port to be shared from its
        /// bind on.
        #[serde(default)]
        process: Option<i32>,
        /// Whether the worker has served for long: a port that it opens now is its own, unless it is shared already.
        #[serde(default)]
        late: bool,
    },
    /// A worker wants to listen on what it has bound; its socket comes along as a descriptor.
    Listen {
        /// What the answer refers to.
        ticket: u64,
        /// Where.
        key: Key,
        /// How many connections may wait.
        backlog: i32,
    },
    /// The answer to [`Order::Own`]: TCP addresses, a few at most.
    Owns {
        /// As people read them.
        addresses: Vec<String>,
    },
    /// The answer to [`Order::Look`].
    Looked {
        /// Its ticket.
        ticket: u64,
        /// Whether the socket is still open and idle, and its worker may still be starting.
        may_listen: bool,
    },
}

impl Message for Order {
    fn carries(&self, descriptors: usize) -> bool {
        descriptors == usize::from(matches!(self, Order::QueueAt { .. } | Order::Shared { .. }))
    }
}

impl Message for Report {
    fn carries(&self, descriptors: usize) -> bool {
        match self {
            Report::Resolved { .. } => descriptors == 3,
            Report::Claim { socket: Some(socket), .. } => descriptors == usize::from(*socket),
            Report::Claim { socket: None, .. } => descriptors <= 1,
            Report::Listen { .. } => descriptors == 1,
            _ => descriptors == 0,
        }
    }
}

/// One worker, as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its slot.
    pub slot: u32,
    /// Its pid, where it has a process.
    pub pid: Option<i32>,
    /// The phase of its slot, in a word.
    pub phase: String,
    /// Since when.
    pub since: Duration,
    /// How often the slot was filled again.
    pub respawns: u32,
    /// Why the last one ended.
    pub last: Option<Cause>,
    /// How long ago the worker last said that it lives, where it does (einhorn's ping).
    #[serde(default)]
    pub sign_of_life: Option<Duration>,
}

/// What a monitor is to do, handed to it in a memfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Assignment {
    /// [`VERSION`] of the main that wrote it.
    pub version: u32,
    /// What was asked for.
    pub plan: Plan,
    /// The generation's number, from 1.
    pub generation: u32,
    /// The slots whose worker ended for good under another monitor, and its exit code.
    #[serde(default)]
    pub ended: BTreeMap<u32, u8>,
    /// How many starts there were, with this one.
    #[serde(default)]
    pub starts: u32,
    /// Whether it must first prove itself beside a serving one.
    pub trial: bool,
    /// Whether workers are ready only when they say so.
    pub notify: bool,
    /// Whether workers must be seen accepting, also those that have not listened on a shared port yet.
    #[serde(default)]
    pub accept: bool,
    /// Whether workers share the ports that they bind themselves.
    #[serde(default)]
    pub shares_ports: bool,
    /// Where workers acknowledge as einhorn's do; none where that is not spoken.
    #[serde(default, with = "crate::config::text::path")]
    pub ack_socket: Option<PathBuf>,
    /// Main's pid.
    pub main_pid: i32,
    /// Where the generation's program is, if another monitor has found it before.
    #[serde(default, with = "crate::config::text::path")]
    pub release_path: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_of_an_older_monitor_is_understood() {
        let old = r#"{"claim":{"ticket":7,"key":{"network":1,"device":"","v6_only":false,"address":"127.0.0.1:80"}}}"#;
        let claim: Report = serde_json::from_str(old).unwrap();
        assert!(matches!(claim, Report::Claim { ticket: 7, process: None, late: false, socket: None, .. }));
    }
}
