//! The sockets that main holds from start to stop.
//!
//! | file | subject |
//! | --- | --- |
//! | `held` | the sockets themselves |
//! | `bind_at_start`, `follow_plan` | binding the first ones, and following each new plan |
//! | `claims` | ports that workers bind themselves |
//! | `guard` | undoing a worker's shutdown() or shorter queue |
//! | `per_worker` | a queue for each slot |
//! | `accept_queues`, `conflicts` | what is said about them |

pub(crate) mod accept_queues;
pub(crate) mod bind_at_start;
pub(crate) mod claims;
pub(crate) mod conflicts;
pub(crate) mod follow_plan;
pub(crate) mod guard;
pub(crate) mod held;
pub(crate) mod per_worker;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::conflicts::Conflicts;
use self::guard::tcp::Guard;
use self::guard::unix::UnixGuard;
use self::held::AllHeld;
use self::per_worker::PerWorker;
use crate::main_process::decide::queue_emptying::Emptyings;
use crate::main_process::decide::shared_ports::Shares;
use crate::sys::descriptors::{Kept, take_over};
use crate::sys::poller::Poller;

/// Guarded TCP listeners are watched under this token and higher ones.
pub(crate) const FIRST_GUARDED: u64 = 1 << 48;
/// Guarded unix listeners are watched under this token and higher ones.
pub(crate) const FIRST_GUARDED_UNIX: u64 = 1 << 52;

/// All listeners, and what is known about them.
pub(crate) struct Listeners {
    pub(crate) held: AllHeld,
    /// Whether workers share the ports that they bind themselves.
    pub(crate) shares_ports: bool,
    pub(crate) shares: Shares<OwnedFd>,
    /// Whether people were told that workers bind too many ports.
    pub(crate) too_many_told: bool,
    pub(crate) conflicts: Conflicts,
    pub(crate) guard: Guard,
    pub(crate) unix_guard: UnixGuard,
    pub(crate) per_worker: PerWorker,
}

/// The listeners as one main hands them on to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried {
    held: Vec<held::Carried>,
    /// Number of slots whose queues get new connections.
    active: u32,
    emptyings: Emptyings,
    shares_ports: bool,
    shares: Shares<RawFd>,
    too_many_told: bool,
    guard: Vec<guard::tcp::Carried>,
    /// Unix listeners that were shut down.
    dead: BTreeMap<u64, guard::unix::Dead>,
    unix_queues: BTreeMap<u64, u32>,
}

impl Carried {
    /// All descriptors in it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let held = self.held.iter().map(|held| held.listener.fd);
        let guarded = self.guard.iter().map(|guarded| guarded.fd);
        held.chain(self.shares.held().map(|(_, &fd)| fd)).chain(guarded)
    }
}

impl Listeners {
    /// When something is to be done about a listener. `serving` is the generation that serves.
    pub(crate) fn deadline(&self, serving: Option<u32>) -> Option<Instant> {
        let shares = self.shares.deadline(serving);
        let guards = [self.guard.deadline(), self.unix_guard.deadline()];
        guards.into_iter().chain([shares, self.per_worker.emptyings.deadline()]).flatten().min()
    }

    /// For the next main.
    pub(crate) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> io::Result<Carried> {
        let (dead, unix_queues) = self.unix_guard.carry();
        Ok(Carried {
            held: self.held.carry(kept),
            active: self.per_worker.active,
            emptyings: self.per_worker.emptyings.clone(),
            shares_ports: self.shares_ports,
            shares: self.shares.with_sockets(|socket| Ok::<_, io::Error>(kept.keep(socket)))?,
            too_many_told: self.too_many_told,
            guard: self.guard.carry(kept),
            dead,
            unix_queues,
        })
    }

    /// What the main before has handed on.
    pub(crate) fn take_over(carried: Carried, poller: &Poller) -> io::Result<Listeners> {
        let held = AllHeld::take_over(carried.held)?;
        let mut unix_guard = UnixGuard::new(FIRST_GUARDED_UNIX, poller);
        unix_guard.resume(carried.dead, carried.unix_queues);
        unix_guard.watch_all(&held, poller);
        unix_guard.on_paths_changed(Instant::now(), &held);
        Ok(Listeners {
            held,
            shares_ports: carried.shares_ports,
            shares: carried.shares.with_sockets(|&fd| take_over(fd))?,
            too_many_told: carried.too_many_told,
            conflicts: Conflicts::default(),
            guard: Guard::take_over(carried.guard, FIRST_GUARDED, poller)?,
            unix_guard,
            per_worker: PerWorker { active: carried.active, steered: None, emptyings: carried.emptyings },
        })
    }
}
