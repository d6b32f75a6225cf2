//! What of a plan needs no new workers: a running generation is told, and goes by it from then on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{FinalExits, RespawnLimit, StartDelay};
use super::schedule::Schedule;
use crate::backoff::Pace;

/// How much panzer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// What changes.
    Normal,
    /// Each step.
    Verbose,
}

impl Verbosity {
    /// The level of messages that it lets through.
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
    /// How long a generation, or a respawned worker, may take to be ready.
    pub ready_timeout: Duration,
    /// How long a new generation must live, wholly ready, beside the old one.
    pub bake: Duration,
    /// How workers are stopped.
    pub stop: Schedule,
    /// How workers are stopped that a reload or a scale ends, where it is another way.
    #[serde(default)]
    pub retire: Option<Schedule>,
    /// The limits of the respawn backoff.
    #[serde(flatten)]
    pub pace: Pace,
    /// When to give up.
    pub respawn_limit: Option<RespawnLimit>,
    /// Which exits are final.
    #[serde(default)]
    pub final_exits: FinalExits,
    /// The pause between two starts of workers.
    #[serde(default)]
    pub start_delay: StartDelay,
    /// How much panzer says of itself.
    pub verbosity: Verbosity,
}

impl Tuning {
    /// How workers are stopped that a reload or a scale ends.
    pub fn retirement(&self) -> &Schedule {
        self.retire.as_ref().unwrap_or(&self.stop)
    }

    /// How long a generation of so many workers may take to be ready: its last one has as long as any other.
    pub fn longest_start(&self, workers: u32) -> Duration {
        self.ready_timeout + self.start_delay.longest(workers)
    }
}
