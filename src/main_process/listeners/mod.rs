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

use std::os::fd::OwnedFd;

use self::conflicts::Conflicts;
use self::guard::tcp::Guard;
use self::guard::unix::UnixGuard;
use self::held::AllHeld;
use self::per_worker::PerWorker;
use crate::main_process::decide::shared_ports::Shares;

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
