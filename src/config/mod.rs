//! What panzer is asked to do: command line, environment and file become one validated [`Plan`].
//!
//! Every role of a generation runs on exactly the plan that main validated; it travels as JSON in a memfd.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod address;
pub mod duration;
pub mod file;
pub mod handover;
pub mod identity;
pub mod placeholders;
pub mod schedule;
pub mod text;

pub use address::{Access, Address, Listen};
pub use handover::{Dialect, Handover, ListenAs, ListenPid};
pub use identity::Identity;
pub use schedule::{Escalation, Schedule};
pub use text::Text;

use crate::backoff::Pace;
use crate::signals::Habits;
use crate::sys::descriptors::FIRST;

/// More workers than any machine runs well; what is beyond is a slip of the keyboard.
pub const MOST_WORKERS: u32 = 4096;

/// More listeners than any service has.
pub const MOST_LISTENERS: usize = 256;

/// Everything that was asked for, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The program as it was named.
    pub program: Text,
    /// Its arguments, with placeholders.
    pub args: Vec<Text>,
    /// The directory panzer was started in, by the name the user has for it.
    pub start_directory: PathBuf,
    /// The workers' working directory, relative to `start_directory`.
    pub chdir: Option<PathBuf>,
    /// Added to the workers' environment; values with placeholders.
    pub env: Vec<(Text, Text)>,
    /// As whom, and how, workers run.
    #[serde(default)]
    pub identity: Identity,
    /// How many workers are kept.
    pub workers: u32,
    /// The listeners, in the order of their descriptors.
    pub listen: Vec<Listen>,
    /// How workers are handed these.
    #[serde(default)]
    pub handover: Handover,
    /// Whether workers share the ports that they bind themselves.
    #[serde(default)]
    pub share_ports: SharePorts,
    /// When a worker counts as ready.
    pub ready: Ready,
    /// The shell command that exits with 0 once a worker is ready, with [`Ready::Exec`].
    #[serde(default)]
    pub probe: Option<String>,
    /// How long a generation, or a respawned worker, may take to be ready.
    pub ready_timeout: Duration,
    /// How long a new generation must live, wholly ready, beside the old one.
    pub bake: Duration,
    /// What signals to main do.
    #[serde(default)]
    pub signals: Habits,
    /// How workers are stopped.
    pub stop: Schedule,
    /// How many workers beyond `workers` a reload may have at once.
    #[serde(default)]
    pub surge: Surge,
    /// The first delay of the respawn backoff.
    pub delay: Duration,
    /// Its longest.
    pub delay_max: Duration,
    /// A life this long resets it.
    pub healthy_after: Duration,
    /// When to give up.
    pub respawn_limit: Option<RespawnLimit>,
    /// What this instance is called.
    pub name: Option<String>,
    /// Where the pid is written, instead of the runtime directory.
    pub pid_file: Option<PathBuf>,
    /// Where the control socket is, instead of beside the pid file.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// How much panzer says of itself.
    pub verbosity: Verbosity,
}

impl Plan {
    /// The limits of the respawn backoff.
    pub fn pace(&self) -> Pace {
        Pace { delay: self.delay, delay_max: self.delay_max, healthy_after: self.healthy_after }
    }

    /// Whether a worker is given anything to accept connections on.
    pub fn has_listener(&self) -> bool {
        self.listen.iter().any(|listen| listen.address.accepts())
    }

    /// What placeholders stand for in this plan, for one worker.
    pub fn expand(&self, text: &Text, worker: u32, generation: u32) -> Result<Text, String> {
        let listeners: Vec<_> = self.listen.iter().map(|listen| listen.name.as_deref()).collect();
        let first_fd = if self.handover.listen_as == ListenAs::Stdin { 0 } else { FIRST };
        let values = placeholders::Values { listeners: &listeners, first_fd, worker, generation };
        placeholders::expand(&text.0, values).map(Text)
    }
}

/// Whether workers share the ports that they bind themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharePorts {
    /// Where no listener is given, and where it is possible.
    #[default]
    Auto,
    /// In any case; where that is not possible nothing is started.
    On,
    /// Never.
    Off,
}

/// When a worker counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// When it is seen accepting, where it has a listener and that can be seen; otherwise by what the serving generation
    /// has shown to be able to tell, else when it runs.
    Auto,
    /// When it has sent `READY=1`.
    Notify,
    /// When it is seen accepting on one of its listeners.
    Accept,
    /// When [`Plan::probe`] succeeds.
    Exec,
    /// When it runs.
    Alive,
}

/// More than `count` respawns within `window`: give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RespawnLimit {
    /// That many are still borne.
    pub count: u32,
    /// Of all slots together, in any time of this length.
    pub window: Duration,
}

impl std::str::FromStr for RespawnLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<RespawnLimit, String> {
        const FORM: &str = "a respawn limit is N/D, as in 10/60s, with N from 0 to 100000";
        let (count, window) = text.split_once('/').ok_or(FORM)?;
        let count = count.trim().parse().ok().filter(|&count| count <= 100_000).ok_or(FORM)?;
        Ok(RespawnLimit { count, window: duration::parse(window)? })
    }
}

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

/// How many workers beyond the wanted ones a reload may have at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Surge {
    /// As many as there are: the new generation is started as a whole.
    #[default]
    All,
    /// So many.
    Count(u32),
    /// So many of a hundred, and at least one.
    Percent(u32),
}

impl Surge {
    /// For so many workers, from 1 to as many.
    pub fn of(self, workers: u32) -> u32 {
        match self {
            Surge::All => workers,
            Surge::Count(count) => count.clamp(1, workers.max(1)),
            Surge::Percent(percent) => (workers.saturating_mul(percent) / 100).clamp(1, workers.max(1)),
        }
    }
}

impl std::str::FromStr for Surge {
    type Err = String;

    fn from_str(text: &str) -> Result<Surge, String> {
        let number = |digits: &str, most| digits.parse().ok().filter(|number| (1..=most).contains(number));
        let surge = match text.strip_suffix('%') {
            _ if text == "all" => Some(Surge::All),
            Some(digits) => number(digits, 100).map(Surge::Percent),
            None => number(text, MOST_WORKERS).map(Surge::Count),
        };
        surge.ok_or_else(|| format!("it must be from 1 to {MOST_WORKERS}, from 1% to 100%, or all"))
    }
}

/// The CPUs this process may use: its affinity and its cgroup's quota.
pub fn usable_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32).min(MOST_WORKERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surge_is_read_and_never_none() {
        let of = |text: &str, workers| text.parse::<Surge>().map(|surge| surge.of(workers));
        assert_eq!(
            [of("1", 8), of("3", 2), of("all", 8), of("25%", 8), of("1%", 8)],
            [Ok(1), Ok(2), Ok(8), Ok(2), Ok(1)]
        );
        for text in ["", "0", "0%", "101%", "-1", "1.5", "5000", "%"] {
            assert!(text.parse::<Surge>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_respawn_limit_is_read() {
        assert_eq!("5/1m".parse(), Ok(RespawnLimit { count: 5, window: Duration::from_secs(60) }));
        for text in ["", "5", "/1m", "-1/1m", "5/x", "1e9/1s", "4294967296/1s"] {
            assert!(text.parse::<RespawnLimit>().is_err(), "{text}");
        }
    }
}
