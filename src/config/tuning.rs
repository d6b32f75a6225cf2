//! The settings that can change without replacing workers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{FinalExits, Recycling, RespawnLimit, StartDelay};
use super::schedule::Schedule;
use crate::backoff::Pace;

/// Which messages panzer logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// Changes too.
    Normal,
    /// Each step too.
    Verbose,
}

impl Verbosity {
    /// The lowest level that is logged.
    pub fn level(self) -> log::LevelFilter {
        match self {
            Verbosity::Quiet => log::LevelFilter::Warn,
            Verbosity::Normal => log::LevelFilter::Info,
            Verbosity::Verbose => log::LevelFilter::Debug,
        }
    }
}

/// Delays, waits and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Time within which a generation, or a respawned worker, must be ready.
    pub ready_timeout: Duration,
    /// Time that a new generation must live beside the old one, with all workers ready.
    pub bake: Duration,
    /// How workers are stopped.
    pub stop: Schedule,
    /// How workers are stopped that a reload or a scale ends, if that differs.
    #[serde(default)]
    pub retire: Option<Schedule>,
    /// The limits of the respawn backoff.
    #[serde(flatten)]
    pub pace: Pace,
    /// The limit of respawns after which panzer gives up.
    pub respawn_limit: Option<RespawnLimit>,
    /// The final exits.
    #[serde(default)]
    pub final_exits: FinalExits,
    /// The pause between two starts of workers.
    #[serde(default)]
    pub start_delay: StartDelay,
    /// When a worker is replaced although it works.
    #[serde(default)]
    pub recycling: Recycling,
    /// How much panzer says of itself.
    pub verbosity: Verbosity,
}

impl Tuning {
    /// How workers are stopped that a reload or a scale ends.
    pub fn retirement(&self) -> &Schedule {
        self.retire.as_ref().unwrap_or(&self.stop)
    }

    /// The time within which a generation of this number of workers must be ready. The last worker to be started has as
    /// much time as any other.
    pub fn longest_start(&self, workers: u32) -> Duration {
        self.ready_timeout + self.start_delay.longest(workers)
    }
}
