//! A restart of main in place: when a new build is tried, and what follows. Pure, like the state.
//!
//! First the new build shows in a child, the pre-flight, that it can read what main knows. Only then main becomes the
//! new build, by an exec.

use std::time::{Duration, Instant};

/// A new build that has not answered within this time hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// State of the restart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Restart {
    /// No restart is wanted.
    #[default]
    Idle,
    /// The pre-flight is under way.
    Trying { until: Instant },
    /// The pre-flight was given up and has not ended yet. If a restart is wanted, another pre-flight follows.
    GivenUp { wanted: bool },
    /// The new build can take over. It does so once no inquiry and no planner is under way.
    Proven,
}

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A restart is wanted. If one is under way, the request joins it.
    Asked,
    /// Everything is being stopped.
    Stopping,
    /// The pre-flight could not be started.
    NotBegun(String),
    /// The pre-flight has ended. If the new build cannot take over, with the cause.
    Ended(Result<(), String>),
    /// The new build could not be executed.
    NotExecuted(String),
    /// A deadline has come.
    Wake,
}

/// Something that main is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the pre-flight.
    Begin,
    /// Kill the pre-flight.
    Kill,
    /// Answer the requests: this main goes on, for this reason.
    Refuse(String),
    /// Answer the requests: everything is being stopped.
    GiveUp,
}

impl Restart {
    /// The only method that changes the state.
    #[must_use]
    pub(crate) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let (next, actions) = match (std::mem::take(self), event) {
            (Restart::Idle, Event::Asked) => (Restart::Trying { until: now + PATIENCE }, vec![Action::Begin]),
            (Restart::GivenUp { .. }, Event::Asked) => (Restart::GivenUp { wanted: true }, vec![]),
            (Restart::GivenUp { wanted: true }, Event::Ended(_)) => {
                (Restart::Trying { until: now + PATIENCE }, vec![Action::Begin])
            }
            (Restart::GivenUp { wanted: true }, Event::Stopping) => {
                (Restart::GivenUp { wanted: false }, vec![Action::GiveUp])
            }
            (Restart::Trying { .. }, Event::Stopping) => {
                (Restart::GivenUp { wanted: false }, vec![Action::Kill, Action::GiveUp])
            }
            (Restart::Proven, Event::Stopping) => (Restart::Idle, vec![Action::GiveUp]),
            (Restart::Trying { until }, Event::Wake) if until <= now => {
                let why = format!("it hangs: not a word within {}s, and it was killed", PATIENCE.as_secs());
                (Restart::GivenUp { wanted: false }, vec![Action::Kill, Action::Refuse(why)])
            }
            (Restart::Trying { .. }, Event::Ended(Ok(()))) => (Restart::Proven, vec![]),
            (Restart::Trying { .. }, Event::Ended(Err(why)) | Event::NotBegun(why))
            | (Restart::Proven, Event::NotExecuted(why)) => (Restart::Idle, vec![Action::Refuse(why)]),
            (Restart::GivenUp { .. }, Event::Ended(_)) => (Restart::Idle, vec![]),
            (unchanged, _) => (unchanged, vec![]),
        };
        *self = next;
        actions
    }

    /// When the pre-flight is given up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Restart::Trying { until } => Some(*until),
            Restart::Idle | Restart::GivenUp { .. } | Restart::Proven => None,
        }
    }

    /// Whether the new build is to take over.
    pub(crate) fn is_proven(&self) -> bool {
        *self == Restart::Proven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trying(now: Instant) -> Restart {
        let mut restart = Restart::default();
        assert_eq!(restart.on(now, Event::Asked), [Action::Begin]);
        restart
    }

    fn is_refused(actions: &[Action]) -> bool {
        matches!(actions, [Action::Refuse(_)] | [Action::Kill, Action::Refuse(_)])
    }

    #[test]
    fn a_build_that_proves_itself_takes_over_and_who_asks_meanwhile_joins() {
        let now = Instant::now();
        let mut restart = trying(now);
        assert_eq!(restart.on(now, Event::Asked), []);
        assert_eq!(restart.on(now, Event::Ended(Ok(()))), []);
        assert!(restart.is_proven());
        assert_eq!(restart.on(now, Event::Asked), []);
        assert_eq!(restart.on(now + 2 * PATIENCE, Event::Wake), []);
        assert!(restart.is_proven());
    }

    #[test]
    fn whatever_goes_wrong_leaves_this_main() {
        let now = Instant::now();
        for event in [Event::Ended(Err("why".to_owned())), Event::NotBegun("why".to_owned())] {
            let mut restart = trying(now);
            assert_eq!(restart.on(now, event), [Action::Refuse("why".to_owned())]);
            assert_eq!(restart, Restart::Idle);
        }
        let mut restart = Restart::Proven;
        assert!(is_refused(&restart.on(now, Event::NotExecuted("why".to_owned()))));
        assert_eq!(restart, Restart::Idle);
    }

    #[test]
    fn a_build_that_hangs_is_killed_once_and_another_is_not_tried_beside_it() {
        let now = Instant::now();
        let mut restart = trying(now);
        assert_eq!(restart.on(now, Event::Wake), []);
        assert_eq!(restart.deadline(), Some(now + PATIENCE));
        assert!(is_refused(&restart.on(now + PATIENCE, Event::Wake)));
        assert_eq!((restart.deadline(), restart.on(now + PATIENCE, Event::Wake)), (None, vec![]));
        assert_eq!(restart.on(now, Event::Asked), []);
        // Even if it has shown at last that it can take over.
        assert_eq!(restart.on(now, Event::Ended(Ok(()))), [Action::Begin]);
        assert_eq!(restart.deadline(), Some(now + PATIENCE));
    }

    #[test]
    fn a_stop_comes_first() {
        let now = Instant::now();
        let mut restart = trying(now);
        assert_eq!(restart.on(now, Event::Stopping), [Action::Kill, Action::GiveUp]);
        assert_eq!(restart, Restart::GivenUp { wanted: false });
        restart = Restart::Proven;
        assert_eq!(restart.on(now, Event::Stopping), [Action::GiveUp]);
        assert!(!restart.is_proven());
        assert_eq!(restart.on(now, Event::Stopping), []);
    }
}
