//! What main is made of.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::decide::Generations;
use super::decide::queue_emptying::Emptyings;
use super::decide::restart::Restart;
use super::decide::shared_ports::Shares;
use super::decide::{Event, Standing};
use super::listeners::conflicts::Conflicts;
use super::listeners::guard::tcp::Guard;
use super::listeners::guard::unix::UnixGuard;
use super::listeners::held::AllHeld;
use super::listeners::per_worker::steer::Served;
use super::operators::counters::Counters;
use super::operators::inquiry::Inquiry;
use super::operators::waiting::Operators;
use super::outside::ack_paths::AckPaths;
use super::outside::pid_file::PidFile;
use super::outside::service_manager::Upward;
use super::outside::starter::Starter;
use super::processes::children::Children;
use super::restart::preflight::NextBuild;
use crate::config::Plan;
use crate::control::environment::Environment;
use crate::sockets::sharing::Key;
use crate::sys::output::TerminalRights;
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;
use crate::worker::program::Fingerprint;

pub(crate) const SIGNALS: u64 = 0;
pub(crate) const STDERR: u64 = 1;
/// Monitors' channels are watched under this and up.
pub(crate) const FIRST_MONITOR: u64 = 16;

/// Listeners that are guarded are watched under this and up.
pub(crate) const FIRST_GUARDED: u64 = 1 << 48;
pub(crate) const FIRST_GUARDED_UNIX: u64 = 1 << 52;

/// What a generation's first monitor found, kept for its later ones.
pub(crate) struct Found {
    pub(crate) directory: OwnedFd,
    pub(crate) program: OwnedFd,
    pub(crate) findings: OwnedFd,
    pub(crate) path: PathBuf,
    /// The user its workers run as, where it is another than ours.
    pub(crate) other_user: Option<u32>,
    /// What its release was on disk when it was found.
    pub(crate) fingerprint: Fingerprint,
}

pub(crate) struct Main {
    /// What was asked for, as it was read last for all that run: not for a generation that failed.
    pub(crate) plan: Plan,
    /// What each generation runs by that has a process or waits for one.
    pub(crate) plans: BTreeMap<u32, Plan>,
    pub(crate) environment: Environment,
    pub(crate) had_terminal: bool,
    pub(crate) terminal_rights: TerminalRights,
    /// Whether whoever started panzer had HUP ignored.
    pub(crate) ignores_hang_up: bool,
    pub(crate) signals: Signals,
    pub(crate) poller: Poller,
    pub(crate) held: AllHeld,
    /// The queues of so many slots get what is new, where slots have their own, and what the kernel was told of that last.
    pub(crate) active: u32,
    pub(crate) steered: Option<Served>,
    pub(crate) emptyings: Emptyings,
    pub(crate) shares_ports: bool,
    pub(crate) shares: Shares<OwnedFd>,
    pub(crate) conflicts: Conflicts,
    pub(crate) guard: Guard,
    pub(crate) unix_guard: UnixGuard,
    pub(crate) too_many_told: bool,
    pub(crate) pid_file: PidFile,
    pub(crate) ack_paths: AckPaths,
    pub(crate) children: Children,
    pub(crate) found: BTreeMap<u32, Found>,
    pub(crate) inquiry: Option<Inquiry>,
    pub(crate) upward: Upward,
    pub(crate) starter: Starter,
    /// Whether the table is to be printed, and who else asked for it.
    pub(crate) told_on_stderr: bool,
    /// Whether it is to be written to a file.
    pub(crate) dumps: bool,
    pub(crate) askers: Vec<u64>,
    pub(crate) operators: Operators,
    pub(crate) counters: Counters,
    pub(crate) restart: Restart,
    /// The build that has proved itself, and is to take over.
    pub(crate) next_build: Option<NextBuild>,
    pub(crate) next_token: u64,
    pub(crate) state: Generations,
    pub(crate) events: VecDeque<Event>,
    pub(crate) exit: Option<u8>,
    /// Ctrl-C has asked for the end.
    pub(crate) interrupted: bool,
}

/// What the guard knows by that a worker has bound itself.
pub(crate) fn shared_name(key: &Key) -> String {
    format!("{} (shared)", key.address)
}

impl Main {
    /// The number of the generation that serves.
    pub(crate) fn serving(&self) -> Option<u32> {
        let serving = |(standing, generation, _)| (standing == Standing::Serving).then_some(generation);
        self.state.standings().into_iter().find_map(serving)
    }
}
