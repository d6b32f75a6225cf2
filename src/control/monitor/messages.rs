//! The messages between main and a monitor, and the assignment of a monitor: JSON, one message a packet.
//!
//! After a restart in place, main may be a newer or an older build than a running monitor. So a field is only ever added,
//! with a default. A message may be added if the other side can do without it: a process skips messages that it does not
//! know, and logs the first one. Every other change needs a higher [`VERSION`]; a main that does not speak the version of
//! a running monitor does not take over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::channel::Message;
use crate::config::{Plan, Stream, Tuning};
use crate::sockets::sharing::Key;
use crate::worker::cause::Cause;
use crate::worker::program::Fingerprint;

/// The version of this protocol and of [`Assignment`].
pub const VERSION: u32 = 2;

/// The oldest version of this protocol that main still speaks with a monitor.
pub const OLDEST: u32 = 1;

/// Limit of the time that a worker gets with one request for more time. It may repeat the request.
pub const MAX_EXTENSION: Duration = Duration::from_secs(3600);

/// Limit of a quoted line.
const MAX_QUOTED_CHARS: usize = 200;

/// How fast to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// Send the first signal of the schedule, and then wait without a limit.
    Patient,
    /// Follow the whole schedule for workers that a reload ends.
    Retiring,
    /// Follow the whole stop schedule.
    Graceful,
    /// Follow the stop schedule without its first step.
    Quick,
}

/// Which workers to end if the number of workers is reduced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The workers in the last slots.
    #[default]
    Last,
    /// The workers in the first slots, for which another generation has workers.
    First,
    /// The workers that have run for the longest time.
    Oldest,
}

/// An order of main to a monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The trial is over: the generation serves from now on.
    Commit,
    /// Stop all workers, then exit.
    Stop(Urgency),
    /// Report every worker.
    Status,
    /// The daemon has started: write nothing to its terminal any more.
    LeaveTerminal,
    /// Change the number of workers.
    Scale {
        /// The new number.
        workers: u32,
        /// Which workers to end if there are too many.
        #[serde(default)]
        which: Which,
    },
    /// Another queue for a single worker, which comes as a descriptor.
    QueueAt {
        /// Its index among all sockets of the generation (see `sockets::queues`).
        place: usize,
    },
    /// Whether no worker is to be replaced for having reached a limit: a reload is under way.
    HoldRecycling(bool),
    /// Use these delays, waits and limits from now on.
    Tune(Box<Tuning>),
    /// Main holds the claimed address; its socket comes as a descriptor.
    Shared {
        /// The ticket of [`Report::Claim`] or [`Report::Listen`].
        ticket: u64,
    },
    /// The claimed address is free, and main does not hold it yet. If the worker's socket came with the claim, main has
    /// bound it.
    Bound {
        /// The ticket of [`Report::Claim`].
        ticket: u64,
    },
    /// The claim had to wait; repeat it now.
    Again {
        /// The ticket of [`Report::Claim`].
        ticket: u64,
    },
    /// Report the addresses on which workers listen with sockets of their own.
    Own,
    /// Report whether a bound socket may still come to listen: other claims wait for it.
    Look {
        /// The ticket of the [`Report::Claim`] for which it was bound.
        ticket: u64,
    },
    /// Main cannot hold the claimed address.
    NotShared {
        /// The ticket of [`Report::Claim`] or [`Report::Listen`].
        ticket: u64,
        /// The errno for the worker. Without one, the system call is left to the kernel.
        errno: Option<i32>,
    },
    /// The last lines of a worker: the answer to [`Report::LastLinesOf`].
    LastLines {
        /// As in the question.
        serial: u64,
        /// The lines.
        lines: Vec<String>,
    },
    /// Send a signal to workers; answered with [`Report::Signalled`].
    Signal {
        /// Number that the answer repeats.
        ticket: u64,
        /// The signal's number.
        number: i32,
        /// Only the worker in this slot.
        slot: Option<u32>,
    },
}

/// A report of a monitor to main.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The release was found. Three descriptors come with it: its directory, its program, and a document with the other
    /// findings.
    Resolved {
        /// Path of the program.
        #[serde(with = "crate::config::text::path")]
        path: PathBuf,
        /// The user of the workers, if it is not panzer's.
        #[serde(default)]
        other_user: Option<u32>,
        /// The identity of the program file.
        #[serde(default)]
        fingerprint: Fingerprint,
    },
    /// No worker can be started at all.
    CannotBegin(Cause),
    /// A worker was forked. Main needs its pid if the monitor dies.
    Forked {
        /// Its slot.
        slot: u32,
        /// Its pid.
        pid: i32,
        /// Its start time in the kernel's ticks, since a pid may be used again.
        started: Option<u64>,
    },
    /// A worker is about to be started that writes to pipes. Main gets their other ends.
    Output(Output),
    /// Report what a worker wrote last, with [`Order::LastLines`].
    LastLinesOf {
        /// See [`Output::serial`].
        serial: u64,
    },
    /// A worker's last lines; its end is reported next.
    LastLines {
        /// Its slot.
        slot: u32,
        /// The lines, the last one last.
        lines: Vec<String>,
    },
    /// Processes that end by no signal, with their start times: nobody shall wait for them any more.
    GivenUp(Vec<(i32, Option<u64>)>),
    /// The program runs. Each monitor reports this once.
    Executed,
    /// A worker is ready. Reported again if a worker that counted as ready sends READY=1 later.
    Ready {
        /// Its slot.
        slot: u32,
        /// Whether it sent READY=1.
        notified: bool,
        /// Whether it was seen accepting.
        #[serde(default)]
        seen: bool,
    },
    /// A worker, or a descendant of it, listens on a shared port. Reported once in the life of a worker.
    Listens {
        /// Its slot.
        slot: u32,
        /// Whether it counted as ready only because it was alive, and no longer does: now it must be seen accepting.
        #[serde(default)]
        withdrawn: bool,
    },
    /// During a reload a signal stopped a worker, or let it go on.
    Suspended {
        /// Its slot.
        slot: u32,
        /// Whether it is stopped now.
        suspended: bool,
    },
    /// A worker asks for more time to become ready or to stop.
    Extends {
        /// Its slot.
        slot: u32,
        /// The time from now on, at most [`MAX_EXTENSION`].
        by: Duration,
    },
    /// A worker must be seen accepting, but cannot be seen. Reported once for each reason in the life of a worker.
    Unseeable {
        /// Its slot.
        slot: u32,
        /// The reason, completing "whether it accepts cannot be seen: …".
        why: String,
    },
    /// A worker is not seen accepting on its listener. Each monitor reports this at most once.
    Bypasses {
        /// Its slot.
        slot: u32,
        /// The TCP addresses that it listens on instead.
        own: Vec<String>,
    },
    /// A worker ended that should have kept running.
    Died {
        /// Its slot.
        slot: u32,
        /// Why.
        cause: Cause,
    },
    /// The mold ended, cannot load, or is of no use. The cause says that it is about the mold.
    MoldFailed(Cause),
    /// The mold, in answer to [`Order::Status`].
    Mold(WorkerStatus),
    /// A worker had reached a limit. Another one has taken its place, and it is being stopped.
    Recycled {
        /// Its slot.
        slot: u32,
        /// Which limit, in a word.
        reason: String,
    },
    /// This slot is removed. Its worker, if any, is being stopped.
    Retired {
        /// The slot.
        slot: u32,
        /// Whether it has no worker, or one whose end was to be reported before.
        #[serde(default)]
        empty: bool,
    },
    /// The worker of a removed slot has ended.
    Gone {
        /// The slot.
        slot: u32,
    },
    /// A worker ended with a final exit code. Neither this nor another monitor of the generation starts it again.
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
    /// All workers have been reported.
    StatusEnd,
    /// A worker cannot start because its queue has not come. Main shall send it again.
    QueueMissing {
        /// Its index, as in [`Order::QueueAt`].
        place: usize,
    },
    /// The signal of [`Order::Signal`] was sent.
    Signalled {
        /// The ticket of the order.
        ticket: u64,
        /// Number of workers that it was sent to.
        reached: u32,
    },
    /// A worker wants to bind. Its socket comes as a descriptor, if the monitor could get it.
    Claim {
        /// Number that the answer repeats.
        ticket: u64,
        /// The address.
        key: Key,
        /// Whether the socket comes with it. Monitors of older builds do not say this.
        #[serde(default)]
        socket: Option<bool>,
        /// The process that binds. Monitors of older builds do not say this; for them a port is shared once it is bound.
        #[serde(default)]
        process: Option<i32>,
        /// Whether the worker has served for a while. A port that it opens now is its own, unless it is shared already.
        #[serde(default)]
        late: bool,
        /// Whether the same worker has bound the address before, and may do so again (SO_REUSEPORT). It must not wait for
        /// itself.
        #[serde(default)]
        again: bool,
    },
    /// A worker wants to listen on its bound socket, which comes as a descriptor.
    Listen {
        /// Number that the answer repeats.
        ticket: u64,
        /// The address.
        key: Key,
        /// Limit of the connections that wait.
        backlog: i32,
    },
    /// The answer to [`Order::Own`].
    Owns {
        /// TCP addresses as people write them, at most a few.
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
            Report::Output(output) => descriptors == output.streams.len(),
            _ => descriptors == 0,
        }
    }
}

/// The pipes of a worker, of which main gets the ends to read from, in the order of `streams`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Number that no other worker of this monitor has.
    pub serial: u64,
    /// The worker's slot; None for a mold.
    pub slot: Option<u32>,
    /// The streams that are read.
    pub streams: Vec<Stream>,
}

/// The state of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its slot.
    pub slot: u32,
    /// Its pid, if it has a process.
    pub pid: Option<i32>,
    /// The phase of its slot, in a word.
    pub phase: String,
    /// Time since the process began; without a process, since the slot came into this phase.
    pub since: Duration,
    /// How often the slot was filled again.
    pub respawns: u32,
    /// Why the last one ended.
    pub last: Option<Cause>,
    /// Time since the worker last said that it lives (einhorn's ping).
    #[serde(default)]
    pub sign_of_life: Option<Duration>,
    /// Number of requests that the worker has served, if it reports them.
    #[serde(default)]
    pub requests: Option<u64>,
    /// Number of workers of this slot that were replaced because they had reached a limit.
    #[serde(default)]
    pub recycled: u32,
    /// Why the worker is being replaced, or else why the last one was.
    #[serde(default)]
    pub recycling: Option<String>,
}

/// Lines that a worker wrote, as they are shown below a message about it.
pub fn quoted(lines: &[String]) -> String {
    let shown = |line: &String| format!("\n  | {}", line.chars().take(MAX_QUOTED_CHARS).collect::<String>());
    lines.iter().map(shown).collect()
}

/// The assignment of a monitor, which gets it in a memfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Assignment {
    /// [`VERSION`] of the main that wrote it.
    pub version: u32,
    /// The plan of the generation.
    pub plan: Plan,
    /// The generation's number, from 1.
    pub generation: u32,
    /// Slots whose worker ended for good under an earlier monitor, with its exit code.
    #[serde(default)]
    pub ended: BTreeMap<u32, u8>,
    /// Number of starts, this one included.
    #[serde(default)]
    pub starts: u32,
    /// Whether the generation is on trial beside a serving one.
    pub trial: bool,
    /// Whether workers are ready only when they send READY=1.
    pub notify: bool,
    /// Whether workers must be seen accepting even if they do not listen on a shared port yet.
    #[serde(default)]
    pub accept: bool,
    /// Whether workers share the ports that they bind.
    #[serde(default)]
    pub shares_ports: bool,
    /// Path of the socket on which workers acknowledge their start as with einhorn; None if that dialect is off.
    #[serde(default, with = "crate::config::text::path")]
    pub ack_socket: Option<PathBuf>,
    /// Main's pid.
    pub main_pid: i32,
    /// Path of the generation's program, if an earlier monitor has found it.
    #[serde(default, with = "crate::config::text::path")]
    pub release_path: Option<PathBuf>,
    /// Folder of the workers' cgroup, if they have one.
    #[serde(default, with = "crate::config::text::path")]
    pub cgroup: Option<PathBuf>,
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
