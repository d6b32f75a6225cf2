//! The one table of signals: what each does to main, from which help, man page and README are made.

use nix::sys::signal::Signal;

/// What a signal asks of main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Replace the program with a new generation.
    Reload,
    /// Stop gracefully.
    Stop,
    /// Stop gracefully; asked again, stop now.
    StopThenNow,
    /// Stop by the schedule without its first step.
    StopNow,
    /// Execute main anew, in place.
    Restart,
    /// Print the state of main, monitors and workers.
    PrintStatus,
    /// Stop gracefully if the terminal has gone; else nothing.
    HangUp,
    /// Nothing, and above all not the default, which would end main.
    Nothing,
}

impl Action {
    /// For help and manual.
    pub fn describe(self) -> &'static str {
        match self {
            Action::Reload => "reload: start a new generation, retire the old one once it is ready",
            Action::Stop => "stop gracefully",
            Action::StopThenNow => "stop gracefully; a second one: stop now",
            Action::StopNow => "stop now: the stop schedule without its first step",
            Action::Restart => "restart main in place: panzer itself is upgraded, workers go on untouched",
            Action::PrintStatus => "print the state of main, monitors and workers",
            Action::HangUp => "stop gracefully if the terminal was closed, else nothing",
            Action::Nothing => "nothing",
        }
    }
}

/// A set of habits: which signal does what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Panzer's own.
    Panzer,
}

/// The signals main reads, a row each, with a column for each preset.
const TABLE: [(Signal, [Action; 1]); 11] = [
    (Signal::SIGUSR1, [Action::Reload]),
    (Signal::SIGUSR2, [Action::Restart]),
    (Signal::SIGTERM, [Action::Stop]),
    (Signal::SIGINT, [Action::StopThenNow]),
    (Signal::SIGQUIT, [Action::StopNow]),
    (Signal::SIGHUP, [Action::HangUp]),
    (Signal::SIGTTIN, [Action::PrintStatus]),
    (Signal::SIGTTOU, [Action::Nothing]),
    (Signal::SIGWINCH, [Action::Nothing]),
    (Signal::SIGALRM, [Action::Nothing]),
    (Signal::SIGPIPE, [Action::Nothing]),
];

/// Every signal that main reads.
pub fn read_by_main() -> impl Iterator<Item = Signal> {
    TABLE.iter().map(|row| row.0)
}

/// What `signal` does under `preset`.
pub fn action(preset: Preset, signal: Signal) -> Action {
    TABLE.iter().find(|row| row.0 == signal).map_or(Action::Nothing, |row| row.1[preset as usize])
}

/// The rows that do something under `preset`, each with its name as people write it.
pub fn described(preset: Preset) -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE
        .iter()
        .map(move |row| (row.0, row.1[preset as usize]))
        .filter(|row| row.1 != Action::Nothing)
        .map(|(signal, action)| (signal.as_str().trim_start_matches("SIG"), action.describe()))
}
