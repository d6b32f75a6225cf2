//! What main is made of.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::ack_paths::AckPaths;
use super::children::Children;
use super::conflicts::Conflicts;
use super::counters::Counters;
use super::emptying::Emptyings;
use super::guard::Guard;
use super::held::AllHeld;
use super::inquiry::Inquiry;
use super::operators::Operators;
use super::pidfile::PidFile;
use super::preflight::NextBuild;
use super::restart::Restart;
use super::shares::Shares;
use super::starter::Starter;
use super::state::{Event, Generations, Standing};
use super::steering::Served;
use super::unix_guard::UnixGuard;
use super::upward::Upward;
use crate::config::Plan;
use crate::control::environment::Environment;
use crate::sockets::sharing::Key;
use crate::sys::output::TerminalRights;
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;
use crate::worker::program::Fingerprint;

pub(super) const SIGNALS: u64 = 0;
pub(super) const STDERR: u64 = 1;
/// Monitors' channels are watched under this and up.
pub(super) const FIRST_MONITOR: u64 = 16;

/// Listeners that are guarded are watched under this and up.
pub(super) const FIRST_GUARDED: u64 = 1 << 48;
pub(super) const FIRST_GUARDED_UNIX: u64 = 1 << 52;

/// What a generation's first monitor found, kept for its later ones.
pub(super) struct Found {
    pub(super) directory: OwnedFd,
    pub(super) program: OwnedFd,
    pub(super) findings: OwnedFd,
    pub(super) path: PathBuf,
    /// The user its workers run as, where it is another than ours.
    pub(super) other_user: Option<u32>,
    /// What its release was on disk when it was found.
    pub(super) fingerprint: Fingerprint,
}

pub(super) struct Main {
    /// What was asked for, as it was read last for all that run: not for a generation that failed.
    pub(super) plan: Plan,
    /// What each generation runs by that has a process or waits for one.
    pub(super) plans: BTreeMap<u32, Plan>,
    pub(super) environment: Environment,
    pub(super) had_terminal: bool,
    pub(super) terminal_rights: TerminalRights,
    /// Whether whoever started panzer had HUP ignored.
    pub(super) ignores_hang_up: bool,
    pub(super) signals: Signals,
    pub(super) poller: Poller,
    pub(super) held: AllHeld,
    /// The queues of so many slots get what is new, where slots have their own, and what the kernel was told of that last.
    pub(super) active: u32,
    pub(super) steered: Option<Served>,
    pub(super) emptyings: Emptyings,
    pub(super) shares_ports: bool,
    pub(super) shares: Shares<OwnedFd>,
    pub(super) conflicts: Conflicts,
    pub(super) guard: Guard,
    pub(super) unix_guard: UnixGuard,
    pub(super) too_many_told: bool,
    pub(super) pid_file: PidFile,
    pub(super) ack_paths: AckPaths,
    pub(super) children: Children,
    pub(super) found: BTreeMap<u32, Found>,
    pub(super) inquiry: Option<Inquiry>,
    pub(super) upward: Upward,
    pub(super) starter: Starter,
    /// Whether the table is to be printed, and who else asked for it.
    pub(super) told_on_stderr: bool,
    /// Whether it is to be written to a file.
    pub(super) dumps: bool,
    pub(super) askers: Vec<u64>,
    pub(super) operators: Operators,
    pub(super) counters: Counters,
    pub(super) restart: Restart,
    /// The build that has proved itself, and is to take over.
    pub(super) next_build: Option<NextBuild>,
    pub(super) next_token: u64,
    pub(super) state: Generations,
    pub(super) events: VecDeque<Event>,
    pub(super) exit: Option<u8>,
    /// Ctrl-C has asked for the end.
    pub(super) interrupted: bool,
}

/// What the guard knows by that a worker has bound itself.
pub(super) fn shared_name(key: &Key) -> String {
    format!("{} (shared)", key.address)
}

impl Main {
    /// The number of the generation that serves.
    pub(super) fn serving(&self) -> Option<u32> {
        let serving = |(standing, generation, _)| (standing == Standing::Serving).then_some(generation);
        self.state.standings().into_iter().find_map(serving)
    }
}
