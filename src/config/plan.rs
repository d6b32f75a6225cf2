//! The plan: the validated configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::address::Listen;
use super::control::ControlAccess;
use super::handover::{Handover, ListenAs};
use super::hooks::Hooks;
use super::limits::{DEFAULT_DRAINING, Refork};
use super::logs::Logs;
use super::placeholders;
use super::resources::cgroup::Cgroup;
use super::run_as::RunAs;
use super::share_ports::SharePorts;
use super::text::Text;
use super::tuning::Tuning;
use crate::signals::Habits;
use crate::sys::descriptors::FIRST;

/// Limit of the number of workers. A larger number is a typing error.
pub const MAX_WORKERS: u32 = 4096;

/// The validated configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The program, as it was given.
    pub program: Text,
    /// Its arguments, with placeholders.
    pub args: Vec<Text>,
    /// The directory in which panzer was started, with the name that the user has for it.
    #[serde(with = "crate::config::text::path")]
    pub start_directory: PathBuf,
    /// Whether `PWD` gave that name. Only then a symlink in it can be followed.
    #[serde(default = "is_so")]
    pub named_by_pwd: bool,
    /// The workers' working directory, relative to `start_directory`.
    #[serde(default, with = "crate::config::text::path")]
    pub chdir: Option<PathBuf>,
    /// Variables that are added to the workers' environment. Their values may have placeholders.
    pub env: Vec<(Text, Text)>,
    /// Files with more variables. Each generation reads them; `env` wins over them.
    #[serde(default)]
    pub env_files: Vec<EnvFile>,
    /// User, group, umask and nice value of the workers.
    #[serde(default)]
    pub identity: RunAs,
    /// The limits of each generation's cgroup, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup>,
    /// Whether a mold loads the program once for each generation, and forks its workers.
    #[serde(default)]
    pub preload: bool,
    /// When a warm worker becomes the mold.
    #[serde(default)]
    pub refork: Refork,
    /// Number of workers.
    pub workers: u32,
    /// The listeners, in the order of their descriptors.
    pub listen: Vec<Listen>,
    /// The sockets that panzer inherited, as they came. Each of them is in `listen` too.
    #[serde(default)]
    pub inherited: Vec<Listen>,
    /// How workers get their listeners.
    #[serde(default)]
    pub handover: Handover,
    /// Whether workers share the ports that they bind themselves.
    #[serde(default)]
    pub share_ports: SharePorts,
    /// When a worker counts as ready.
    pub ready: Ready,
    /// The shell command of [`Ready::Exec`]. It exits with 0 once a worker is ready.
    #[serde(default)]
    pub probe: Option<String>,
    /// Within this time a ready worker says again that it lives.
    #[serde(default)]
    pub watchdog: Option<Duration>,
    /// The meaning of each signal to main.
    #[serde(default)]
    pub signals: Habits,
    /// Number of workers beyond `workers` that a reload may have at once.
    #[serde(default)]
    pub surge: Surge,
    /// Number of old generations that may drain at once. Beyond it, the one that has drained for longest is escalated.
    #[serde(default = "usual_draining")]
    pub max_draining: u32,
    /// Name of this instance.
    pub name: Option<String>,
    /// Path of the pid file, if it is not in the runtime directory.
    #[serde(default, with = "crate::config::text::path")]
    pub pid_file: Option<PathBuf>,
    /// Path of the control socket, if it is not beside the pid file.
    #[serde(default, with = "crate::config::text::path")]
    pub control: Option<PathBuf>,
    /// The access rights of the control socket.
    #[serde(default, skip_serializing_if = "ControlAccess::is_usual")]
    pub control_access: ControlAccess,
    /// Destinations of the workers' output.
    #[serde(default, skip_serializing_if = "Logs::is_default")]
    pub logs: Logs,
    /// Whether main runs in its own session, without a terminal.
    #[serde(default)]
    pub daemonize: bool,
    /// Commands that are run when something happens to panzer.
    #[serde(default, skip_serializing_if = "Hooks::is_usual")]
    pub hooks: Hooks,
    /// The settings that can change without replacing workers.
    #[serde(flatten)]
    pub tuning: Tuning,
}

impl Plan {
    /// Whether workers get anything to accept connections on.
    pub fn has_listener(&self) -> bool {
        self.listen.iter().any(|listen| listen.address.accepts())
    }

    /// Why a reload may miss a new release, with a remedy: the plan looks something up in the start directory, and only
    /// the kernel's name of that is known, in which every symlink is resolved.
    pub fn missing_pwd(&self) -> Option<String> {
        let program = Path::new(&self.program.0);
        let by_start = self.chdir.as_ref().is_none_or(|chdir| chdir.is_relative())
            || (program.is_relative() && program.components().count() > 1);
        let start = &self.start_directory;
        (by_start && !self.named_by_pwd && start.parent().is_some()).then(|| {
            format!(
                "PWD does not name {}, where panzer was started: a reload cannot follow a symlink that led there; give \
                 --chdir DIR with the symlink in it, and PROGRAM by such a path",
                start.display()
            )
        })
    }

    /// Whether arguments or variables name a worker by its slot and not by its generation. Then two generations have
    /// the same names.
    pub fn names_slots_only(&self) -> bool {
        self.names_slots() && !self.names_generations()
    }

    /// Whether arguments or variables name the worker's slot.
    pub fn names_slots(&self) -> bool {
        self.names_differ(1, 1)
    }

    /// Whether arguments or variables name the generation.
    pub fn names_generations(&self) -> bool {
        self.names_differ(0, 2)
    }

    /// Whether arguments or variables differ between this worker and slot 0 of generation 1.
    fn names_differ(&self, worker: u32, generation: u32) -> bool {
        let differs = |text: &Text| {
            let expanded = self.expand(text, worker, generation);
            expanded.is_ok_and(|expanded| self.expand(text, 0, 1).is_ok_and(|first| first != expanded))
        };
        self.args.iter().chain(self.env.iter().map(|(_, value)| value)).any(differs)
    }

    /// Replaces the placeholders of this plan, for one worker.
    pub fn expand(&self, text: &Text, worker: u32, generation: u32) -> Result<Text, String> {
        let listeners: Vec<_> = self.listen.iter().map(|listen| listen.name.as_deref()).collect();
        let first_fd = if self.handover.listen_as == ListenAs::Stdin { 0 } else { FIRST };
        let ports: Vec<_> = self.listen.iter().map(|listen| listen.address.port()).collect();
        let values = placeholders::Values { listeners: &listeners, ports: &ports, first_fd, worker, generation };
        placeholders::expand(&text.0, values).map(Text)
    }
}

fn is_so() -> bool {
    true
}

fn usual_draining() -> u32 {
    DEFAULT_DRAINING
}

/// A file of variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvFile {
    /// Its path, relative to [`Plan::start_directory`].
    #[serde(with = "crate::config::text::path")]
    pub path: PathBuf,
    /// Whether the file may be missing.
    pub optional: bool,
}

impl std::str::FromStr for EnvFile {
    type Err = String;

    fn from_str(text: &str) -> Result<EnvFile, String> {
        let path = text.strip_prefix('-').unwrap_or(text);
        if path.is_empty() {
            return Err("it must be the path of a file".to_owned());
        }
        Ok(EnvFile { path: path.into(), optional: path.len() < text.len() })
    }
}

/// When a worker counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// as accept if it has a listener and that can be seen; else as notify if the serving generation sent READY=1, else
    /// as alive
    Auto,
    /// once it is seen accepting on one of its listeners
    Accept,
    /// once it has sent READY=1
    Notify,
    /// once it runs
    Alive,
    /// once it accepts, if it has a listener, and this shell command exits with 0
    #[value(name = "exec:CMD")]
    Exec,
}

impl Ready {
    /// Whether a worker is watched for accepting only if it has a listener and can be seen.
    pub fn looks_where_it_can(self) -> bool {
        matches!(self, Ready::Auto | Ready::Exec)
    }
}

/// Number of workers beyond the wanted ones that a reload may have at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Surge {
    /// As many as are wanted: the new generation starts as a whole.
    #[default]
    All,
    /// This number.
    Count(u32),
    /// This percentage, and at least one.
    Percent(u32),
}

impl Surge {
    /// For this number of workers: between 1 and that number.
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
            None => number(text, MAX_WORKERS).map(Surge::Count),
        };
        surge.ok_or_else(|| format!("it must be from 1 to {MAX_WORKERS}, from 1% to 100%, or all"))
    }
}

/// The number of CPUs that this process may use, according to its affinity and the quota of its cgroup.
pub fn usable_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32).min(MAX_WORKERS)
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
}
