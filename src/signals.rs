//! The one table of signals: the effect of each signal on main, under each preset. Help, man page and docs are made
//! from it.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::sys::signals::parse_signal_or_number;

/// The effect of a signal on main.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Replace the program with a new generation.
    Reload,
    /// Reload, and let the old generation take its time to end.
    Detach,
    /// Reload, and stop the old generation by the schedule without its first step.
    RestartWorkers,
    /// Reopen log files.
    Reopen,
    /// Read the settings that can change without replacing workers again, and reopen log files.
    Reread,
    /// Stop gracefully.
    Stop,
    /// Stop gracefully; the second time, stop now.
    StopThenNow,
    /// Stop by the schedule without its first step.
    StopNow,
    /// One more worker.
    ScaleUp,
    /// One worker fewer: the one of the last slot ends.
    ScaleDown,
    /// One worker fewer: the one that has run longest ends.
    ScaleDownOldest,
    /// End all workers and keep main.
    Quiet,
    /// Execute main again, in place.
    Restart,
    /// Print the state of main, monitors and workers.
    Status,
    /// Write the state to a file.
    Dump,
    /// Sent on to the workers of the serving generation.
    Pass,
    /// Ignored (the default action would kill main).
    Ignore,
}

/// The names of the actions, and their descriptions for help and manual.
const ACTIONS: [(Action, &str, &str); 17] = [
    (Action::Reload, "reload", "reload: start a new generation, retire the old one once it is ready"),
    (Action::Detach, "detach", "reload, and let the old generation take its time to end"),
    (Action::RestartWorkers, "restart-workers", "reload, and stop the old generation now"),
    (Action::Reopen, "reopen", "reopen log files"),
    (Action::Reread, "reread", "read the configuration again: count, delays, waits, limits; reopen"),
    (Action::Stop, "stop", "stop gracefully"),
    (Action::StopThenNow, "stop-then-now", "stop gracefully; a second one: stop now"),
    (Action::StopNow, "stop-now", "stop now: the stop schedule without its first step"),
    (Action::ScaleUp, "scale-up", "one worker more"),
    (Action::ScaleDown, "scale-down", "one worker fewer"),
    (Action::ScaleDownOldest, "scale-down-oldest", "one worker fewer: the oldest ends"),
    (Action::Quiet, "quiet", "end all workers, keep main"),
    (Action::Restart, "restart", "restart main in place: panzer itself is upgraded, the workers keep running"),
    (Action::Status, "status", "print the state of main, monitors and workers"),
    (Action::Dump, "dump", "write the state of main, monitors and workers to NAME.dump beside the pid file"),
    (Action::Pass, "pass", "pass the signal on to the workers"),
    (Action::Ignore, "ignore", "nothing"),
];

impl Action {
    fn entry(self) -> (Action, &'static str, &'static str) {
        ACTIONS[self as usize]
    }

    /// Whether it stops panzer.
    pub fn stops(self) -> bool {
        matches!(self, Action::Stop | Action::StopThenNow | Action::StopNow)
    }

    /// Its description for help and manual.
    pub fn describe(self) -> &'static str {
        self.entry().2
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry().1)
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Action, String> {
        let known = ACTIONS.iter().find(|(_, name, _)| *name == text).map(|(action, ..)| *action);
        known.ok_or_else(|| {
            let names: Vec<&str> = ACTIONS.iter().map(|(_, name, _)| *name).collect();
            format!("there is no action '{text}'; take one of {}", names.join(", "))
        })
    }
}

/// A convention: which signal does what. The columns of the table below, in its order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each is named after the supervisor whose convention it is")]
pub enum Preset {
    #[default]
    Panzer,
    Serverengine,
    Preforker,
    Kamisama,
    Unicorn,
    ServerStarter,
    Einhorn,
}

impl Preset {
    /// The name of the preset, as people write it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

const NONE: Action = Action::Ignore;

/// The signals that main reads, one a row, with a column for each preset. The columns of start_server (Server::Starter)
/// and einhorn follow their sources. Einhorn's USR2 and INT send USR2 to the workers, which is `--stop USR2/…` here.
#[rustfmt::skip]
const TABLE: [(Signal, [Action; 7]); 13] = {
    use Action::*;
    [
    //                  panzer       serverengine    preforker  kamisama         unicorn    server-starter einhorn
    (Signal::SIGUSR1,  [Reload,      Reload,         Reopen,    NONE,            Reopen,    NONE,          NONE]),
    (Signal::SIGUSR2,  [Restart,     Reread,         NONE,      NONE,            Reload,    NONE,          Stop]),
    (Signal::SIGTERM,  [Stop,        Stop,           StopNow,   Stop,            StopNow,   Stop,          Stop]),
    (Signal::SIGINT,   [StopThenNow, Detach,         StopNow,   Stop,            StopNow,   Stop,          Stop]),
    (Signal::SIGQUIT,  [StopNow,     StopNow,        Stop,      NONE,            Stop,      NONE,          StopNow]),
    (Signal::SIGHUP,   [Reread,      RestartWorkers, NONE,      NONE,            Reload,    Reload,        Reload]),
    (Signal::SIGTTIN,  [Status,      NONE,           ScaleUp,   ScaleUp,         ScaleUp,   NONE,          NONE]),
    (Signal::SIGTTOU,  [NONE,        NONE,           ScaleDown, ScaleDownOldest, ScaleDown, NONE,          NONE]),
    (Signal::SIGWINCH, [NONE,        NONE,           Quiet,     NONE,            Quiet,     NONE,          NONE]),
    (Signal::SIGCONT,  [NONE,        Dump,           NONE,      NONE,            NONE,      NONE,          NONE]),
    (Signal::SIGALRM,  [NONE,        NONE,           NONE,      NONE,            NONE,      NONE,          Reload]),
    (Signal::SIGPIPE,  [NONE; 7]),
    (Signal::SIGIO,    [NONE; 7]),
    ]
};

/// The effect of `signal` under `preset`.
pub fn action(preset: Preset, signal: Signal) -> Action {
    TABLE.iter().find(|row| row.0 == signal).map_or(Action::Ignore, |row| row.1[preset as usize])
}

/// The rows that have an effect under any of `presets`: the name of the signal, and its effect in each.
pub fn described(presets: &[Preset]) -> impl Iterator<Item = (&'static str, Vec<Action>)> {
    let row = |(signal, actions): &(Signal, [Action; 7])| {
        (short(*signal), presets.iter().map(|preset| actions[*preset as usize]).collect::<Vec<_>>())
    };
    TABLE.iter().map(row).filter(|(_, actions)| actions.iter().any(|action| *action != Action::Ignore))
}

fn short(signal: Signal) -> &'static str {
    signal.as_str().trim_start_matches("SIG")
}

/// Signals that cannot get an action: the kernel or main itself needs them, or they report a fault.
const TAKEN: [(Signal, &str); 11] = [
    (Signal::SIGKILL, "nobody can catch it"),
    (Signal::SIGSTOP, "nobody can catch it"),
    (Signal::SIGCHLD, "panzer needs it itself"),
    (Signal::SIGTSTP, "it is Ctrl-Z"),
    (Signal::SIGSEGV, "it tells of a fault"),
    (Signal::SIGBUS, "it tells of a fault"),
    (Signal::SIGFPE, "it tells of a fault"),
    (Signal::SIGILL, "it tells of a fault"),
    (Signal::SIGTRAP, "it tells of a fault"),
    (Signal::SIGSYS, "it tells of a fault"),
    (Signal::SIGABRT, "it tells of a fault"),
];

/// One change of the table by the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct On {
    /// The signal.
    pub signal: Signal,
    /// Its effect.
    pub action: Action,
}

impl FromStr for On {
    type Err = String;

    fn from_str(text: &str) -> Result<On, String> {
        let (name, action) = text.split_once('=').ok_or("it must be SIGNAL=ACTION, as in TTIN=scale-up")?;
        let signal = parse_signal_or_number(name.trim())?;
        if let Some((_, why)) = TAKEN.iter().find(|(taken, _)| *taken == signal) {
            return Err(format!("{} can be given no action: {why}", short(signal)));
        }
        Ok(On { signal, action: action.trim().parse()? })
    }
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", short(self.signal), self.action)
    }
}

impl TryFrom<String> for On {
    type Error = String;

    fn try_from(text: String) -> Result<On, String> {
        text.parse()
    }
}

impl From<On> for String {
    fn from(on: On) -> String {
        on.to_string()
    }
}

/// The effect of each signal on this main.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Habits {
    /// The column of the table.
    pub preset: Preset,
    /// The changes of the user. The last one of each signal counts.
    pub on: Vec<On>,
}

impl Habits {
    /// The effect of `signal`.
    pub fn action(&self, signal: Signal) -> Action {
        let own = self.on.iter().rev().find(|on| on.signal == signal).map(|on| on.action);
        own.unwrap_or_else(|| action(self.preset, signal))
    }

    /// Every signal that main reads, once.
    pub fn read_by_main(&self) -> Vec<Signal> {
        let mut all: Vec<Signal> = TABLE.iter().map(|row| row.0).chain(self.on.iter().map(|on| on.signal)).collect();
        all.sort();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_is_found_by_its_name() {
        for (at, (action, name, _)) in ACTIONS.iter().enumerate() {
            assert_eq!((*action as usize, name.parse()), (at, Ok(*action)));
        }
        assert!("fly".parse::<Action>().unwrap_err().contains("reload, detach"));
    }

    #[test]
    fn a_line_of_ones_own_goes_before_the_preset() {
        let on = |text: &str| text.parse::<On>();
        let habits =
            Habits { preset: Preset::Unicorn, on: vec![on("TTIN=status").unwrap(), on("sigttin=dump").unwrap()] };
        assert_eq!(habits.action(Signal::SIGTTIN), Action::Dump);
        assert_eq!(habits.action(Signal::SIGHUP), Action::Reload);
        for (bad, why) in [
            ("TTIN", "SIGNAL=ACTION"),
            ("FLY=reload", "no signal 'FLY'"),
            ("USR1=fly", "no action 'fly'"),
            ("KILL=reload", "nobody can catch it"),
            ("CHLD=reload", "panzer needs it itself"),
        ] {
            assert!(on(bad).unwrap_err().contains(why), "{bad}");
        }
    }
}
