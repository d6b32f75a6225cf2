//! What a worker's program does, from its fork to its end.

use std::time::Duration;

use panzer::worker::cause::Cause;

use crate::choices::Choices;
use crate::kernel::Time;

/// How a program takes a signal other than KILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaction {
    EndsAfter(Time),
    Ignores,
}

/// What becomes of an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exec {
    Runs(Time),
    Refused(Time, Cause),
    Hangs,
}

/// What a program does when all is well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits {
    /// It says that it is ready.
    pub(crate) notifies: bool,
    /// It listens on a port of its own.
    pub(crate) listens: bool,
    /// It cannot be seen whether it accepts.
    pub(crate) hidden: bool,
}

/// The life of one program.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) fork_fails: bool,
    pub(crate) exec: Exec,
    /// When it says that it is ready, after its exec.
    pub(crate) notifies: Option<Time>,
    /// How much more time it asks for, early in its life and each time it is told to stop.
    pub(crate) extends: Option<Time>,
    /// When it listens on a port of its own, and when it accepts on whatever it has, after its exec.
    pub(crate) listens: Option<Time>,
    pub(crate) accepts: Option<Time>,
    /// It listens on something that panzer knows nothing of.
    pub(crate) elsewhere: bool,
    /// From when on it cannot be seen.
    pub(crate) hidden: Option<Time>,
    /// From when on it can, again.
    pub(crate) shown_again: Option<Time>,
    /// A process that it has started cannot be seen.
    pub(crate) helper_hidden: bool,
    /// When probes of it begin to succeed, after its exec.
    pub(crate) answers: Option<Time>,
    /// How long they take; none: they hang.
    pub(crate) probe_takes: Option<Time>,
    /// When it ends by itself, after its exec.
    pub(crate) dies: Option<(Time, Cause)>,
    /// How it takes the first signals of a schedule.
    pub(crate) gentle: Reaction,
    /// How it takes INT.
    pub(crate) quick: Reaction,
    /// A helper that outlives it, and how that takes signals.
    pub(crate) leaves_behind: Option<Reaction>,
    /// The helper leads a group of its own, as a daemon does.
    pub(crate) daemonizes: bool,
    /// When it is stopped by a signal, after its exec, and for how long.
    pub(crate) halts: Option<(Time, Time)>,
    /// The helper has cleared its environment.
    pub(crate) unmarked: bool,
    /// The helper may not be signalled.
    pub(crate) refuses: bool,
    /// It changed its user: the kernel does not tell it of its monitor's death.
    pub(crate) other_user: bool,
}

impl Script {
    /// A worker as it should be.
    pub(crate) fn tame() -> Script {
        Script {
            fork_fails: false,
            exec: Exec::Runs(Duration::ZERO),
            notifies: Some(Duration::ZERO),
            extends: None,
            listens: None,
            accepts: Some(Duration::ZERO),
            elsewhere: false,
            hidden: None,
            shown_again: None,
            helper_hidden: false,
            answers: Some(Duration::ZERO),
            probe_takes: Some(Duration::ZERO),
            dies: None,
            gentle: Reaction::EndsAfter(Duration::ZERO),
            quick: Reaction::EndsAfter(Duration::ZERO),
            leaves_behind: None,
            daemonizes: false,
            halts: None,
            unmarked: false,
            refuses: false,
            other_user: false,
        }
    }

    /// A worker that behaves, in a time of its own.
    pub(crate) fn behaved(choices: &mut Choices, traits: Traits) -> Script {
        Script {
            exec: Exec::Runs(choices.millis(&[0, 1, 30])),
            notifies: traits.notifies.then(|| choices.millis(&[0, 50, 400])),
            listens: traits.listens.then(|| choices.millis(&[0, 50, 300])),
            accepts: Some(choices.millis(&[0, 20, 300])),
            hidden: traits.hidden.then_some(Duration::ZERO),
            answers: Some(choices.millis(&[0, 50, 200])),
            probe_takes: Some(choices.millis(&[0, 5])),
            gentle: Reaction::EndsAfter(choices.millis(&[0, 10, 700, 1500])),
            ..Script::tame()
        }
    }

    /// A worker with some troubles.
    pub(crate) fn troubled(choices: &mut Choices, traits: Traits) -> Script {
        let mut script = Script::behaved(choices, traits);
        for _ in 0..=choices.below(3) {
            script.add_trouble(choices);
        }
        script
    }

    fn add_trouble(&mut self, choices: &mut Choices) {
        match choices.below(22) {
            0..=2 => self.dies = Some((choices.millis(&[0, 10, 300, 2_000, 6_000]), draw_end(choices))),
            3 => self.notifies = None,
            4 => {
                self.notifies = self.notifies.map(|_| choices.millis(&[900, 3_000, 8_000]));
                self.extends = choices.among(&[None, Some(Time::from_secs(1)), Some(Time::from_secs(4))]);
            }
            5 => self.gentle = Reaction::Ignores,
            6 => (self.gentle, self.quick) = (Reaction::Ignores, Reaction::Ignores),
            7 => self.gentle = Reaction::EndsAfter(choices.millis(&[3_000, 9_000])),
            8 => {
                self.leaves_behind = Some(choices.among(&[Reaction::EndsAfter(Time::ZERO), Reaction::Ignores]));
                self.daemonizes = choices.one_in(3);
            }
            9 => self.exec = draw_bad_exec(choices),
            10 => self.fork_fails = true,
            11 => self.other_user = true,
            12 => self.accepts = None,
            13 => (self.accepts, self.elsewhere) = (Some(choices.millis(&[900, 3_000, 8_000])), true),
            19 => self.halts = Some((choices.millis(&[0, 20, 400, 3_000]), choices.millis(&[10, 1_000, 20_000]))),
            14 => self.listens = None,
            15 => self.listens = self.listens.map(|_| choices.millis(&[900, 3_000, 8_000])),
            16 => {
                self.hidden = Some(choices.millis(&[0, 300]));
                self.shown_again = choices.among(&[None, Some(Time::from_millis(700)), Some(Time::from_secs(3))]);
                self.helper_hidden = choices.below(2) == 1;
            }
            17 => {
                self.answers = choices.among(&[None, Some(Time::from_secs(3))]);
                self.probe_takes = choices.among(&[None, Some(Time::from_secs(1)), Some(Time::from_secs(12))]);
            }
            18 => self.exec = Exec::Runs(choices.millis(&[400, 2_500, 11_000])),
            _ => {
                self.leaves_behind = Some(choices.among(&[Reaction::EndsAfter(Time::ZERO), Reaction::Ignores]));
                self.daemonizes = choices.below(2) == 1;
                self.unmarked = choices.below(2) == 1;
                self.refuses = choices.below(2) == 1;
            }
        }
    }
}

fn draw_end(choices: &mut Choices) -> Cause {
    choices.among(&[Cause::Exited(1), Cause::Exited(0), Cause::Killed(9, false), Cause::Killed(11, true)])
}

fn draw_bad_exec(choices: &mut Choices) -> Exec {
    let after = choices.millis(&[0, 5]);
    match choices.below(4) {
        0 => Exec::Refused(after, Cause::NotFound("no such program".to_owned())),
        1 => Exec::Refused(after, Cause::CannotExecute("no permission".to_owned())),
        2 => Exec::Refused(after, Cause::CannotStart("no memory".to_owned())),
        _ => Exec::Hangs,
    }
}
