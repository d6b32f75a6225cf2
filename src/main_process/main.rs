//! Struct [`Main`]: five subjects, and what drives them.

use std::collections::VecDeque;

use serde::Serialize;

use super::configuration::Configuration;
use super::decide::{Event, Generations};
use super::listeners::Listeners;
use super::operators::Operators;
use super::outside::Outside;
use super::processes::children::Children;
use super::processes::logger::Logger;
use super::restart::Restarting;
use crate::control::environment::Environment;
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;

pub(crate) const SIGNALS: u64 = 0;
pub(crate) const STDERR: u64 = 1;
pub(crate) const LOGGER: u64 = 2;
/// Channels of monitors are watched under this token and higher ones.
pub(crate) const FIRST_MONITOR: u64 = 16;

/// Goes on as a monitor with this environment, and returns the exit code. (Main does not know the other processes.)
pub(crate) type RunMonitor = fn(&Environment) -> u8;

/// The process that owns the listeners and starts the monitors. It is written as it is for the main that takes its place
/// in a restart.
#[derive(Serialize)]
pub(crate) struct Main {
    #[serde(skip)]
    pub(crate) environment: Environment,
    /// Runs as a monitor, and returns the exit code.
    #[serde(skip)]
    pub(crate) run_monitor: RunMonitor,
    #[serde(skip)]
    pub(crate) signals: Signals,
    #[serde(skip)]
    pub(crate) poller: Poller,
    /// The state that decides. All other fields perform.
    pub(crate) state: Generations,
    /// Events that the state has not seen yet.
    #[serde(skip)]
    pub(crate) events: VecDeque<Event>,
    /// The exit code, once everything has ended.
    #[serde(skip)]
    pub(crate) exit: Option<u8>,
    pub(crate) children: Children,
    #[serde(skip_serializing_if = "Logger::is_unused")]
    pub(crate) logger: Logger,
    pub(crate) listeners: Listeners,
    pub(crate) configuration: Configuration,
    pub(crate) operators: Operators,
    #[serde(skip)]
    pub(crate) restarting: Restarting,
    pub(crate) outside: Outside,
}

impl Main {
    /// The number of the serving generation.
    pub(crate) fn serving(&self) -> Option<u32> {
        self.state.serving()
    }
}
