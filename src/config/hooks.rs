//! Hooks: the user's commands that panzer runs when something has happened to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An event that a command can be run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum HookEvent {
    /// A new generation is about to be started. A failure rejects it.
    BeforeReload,
    /// A new generation serves.
    AfterReload,
    /// A new generation failed.
    Rejected,
    /// A worker, or the monitor of one, died unexpectedly.
    Died,
    /// Panzer ends because its program keeps failing, or cannot be executed.
    GaveUp,
    /// Everything has ended.
    Stopped,
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// One command for one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// When it runs.
    pub event: HookEvent,
    /// The shell command.
    pub command: String,
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Hook, String> {
        let (event, command) = text.split_once('=').ok_or("it must be EVENT=CMD, as in died=./alert")?;
        let names = HookEvent::value_variants().iter().map(HookEvent::to_string).collect::<Vec<_>>().join(", ");
        let event = HookEvent::from_str(event, false).map_err(|_| format!("the event must be one of {names}"))?;
        match command.trim() {
            "" => Err(format!("the command is empty; write it behind the =, as in {event}=./command")),
            command if command.contains('\0') => Err("a command cannot hold a NUL byte".to_owned()),
            command => Ok(Hook { event, command: command.to_owned() }),
        }
    }
}

/// All hooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// In the order in which they were given.
    pub hook: Vec<Hook>,
    /// Time that one command may take.
    pub hook_timeout: Duration,
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks { hook: Vec::new(), hook_timeout: Duration::from_secs(30) }
    }
}

impl Hooks {
    /// Whether there are none.
    pub fn is_usual(&self) -> bool {
        *self == Hooks::default()
    }

    /// The commands for this event.
    pub fn commands(&self, event: HookEvent) -> Vec<String> {
        self.hook.iter().filter(|hook| hook.event == event).map(|hook| hook.command.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_names_its_event() {
        let hook = "died=echo a=b".parse::<Hook>().unwrap();
        assert_eq!((hook.event, hook.command.as_str()), (HookEvent::Died, "echo a=b"));
        let wrong = |text: &str| text.parse::<Hook>().unwrap_err();
        assert!(wrong("fell=x").contains("before-reload, after-reload, rejected, died, gave-up, stopped"));
        assert!(wrong("died").contains("EVENT=CMD"));
        assert!(wrong("died= ").contains("empty"));
    }
}
