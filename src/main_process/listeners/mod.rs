//! The sockets that main holds from start to stop.
//!
//! | file | subject |
//! | --- | --- |
//! | `held` | the sockets themselves |
//! | `bind_at_start`, `follow_plan` | binding the first ones, and following each new plan |
//! | `claims` | ports that workers bind themselves |
//! | `guard` | undoing a worker's shutdown() or shorter queue, and a failed release's options |
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

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::conflicts::Conflicts;
use self::guard::flags::Flags;
use self::guard::tcp::Guard;
use self::guard::unix::UnixGuard;
use self::held::AllHeld;
use self::per_worker::PerWorker;
use crate::carry::descriptor::Descriptor;
use crate::main_process::decide::shared_ports::Shares;
use crate::sys::poller::Poller;

/// Guarded TCP listeners are watched under this token and higher ones.
pub(crate) const FIRST_GUARDED: u64 = 1 << 48;
/// Guarded unix listeners are watched under this token and higher ones.
pub(crate) const FIRST_GUARDED_UNIX: u64 = 1 << 52;

/// All listeners, with their state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listeners {
    pub(crate) held: AllHeld,
    /// Whether workers share the ports that they bind themselves.
    pub(crate) shares_ports: bool,
    pub(crate) shares: Shares<Descriptor>,
    /// Whether it was logged that workers bind too many ports.
    pub(crate) too_many_told: bool,
    #[serde(skip)]
    pub(crate) conflicts: Conflicts,
    pub(crate) guard: Guard,
    #[serde(default, skip_serializing_if = "Flags::is_unused")]
    pub(crate) flags: Flags,
    #[serde(flatten)]
    pub(crate) unix_guard: UnixGuard,
    #[serde(flatten)]
    pub(crate) per_worker: PerWorker,
}

impl Listeners {
    /// When something is due about a listener. `serving` is the serving generation.
    pub(crate) fn deadline(&self, serving: Option<u32>) -> Option<Instant> {
        let shares = self.shares.deadline(serving);
        let guards = [self.guard.deadline(), self.unix_guard.deadline()];
        guards.into_iter().chain([shares, self.per_worker.emptyings.deadline()]).flatten().min()
    }

    /// The flags, and all sockets with their names. A shared port is in the guard only.
    fn with_all_sockets(&mut self) -> (&mut Flags, impl Iterator<Item = (&str, BorrowedFd<'_>)>) {
        let held = self.held.iter().map(|held| (held.name.as_str(), held.listener.as_fd()));
        (&mut self.flags, held.chain(self.guard.sockets()))
    }

    /// Goes on after a restart in place.
    pub(crate) fn resume(&mut self, poller: &Poller) {
        self.guard.resume(FIRST_GUARDED, poller);
        self.unix_guard.begin(FIRST_GUARDED_UNIX, &self.held, poller);
        self.unix_guard.on_paths_changed(Instant::now(), &self.held);
    }
}
