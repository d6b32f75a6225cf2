//! Generations that lack a listener, because it was bound anew after they had been started: they are replaced, as by a
//! reload, until one serves that has it. Where that fails, or is needed again at once, the waits grow.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::backoff::{Backoff, Pace};

/// The replacing of generations that lack a listener.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Renewal {
    /// The newest generation that lacks one.
    lacking: Option<u32>,
    /// When the next may be started. None where nobody lacks any, or one that has them all is starting.
    #[serde(with = "crate::carry::moment::option")]
    due: Option<Instant>,
    /// When the last one was started.
    #[serde(with = "crate::carry::moment::option")]
    begun: Option<Instant>,
    backoff: Backoff,
}

impl Renewal {
    /// All generations up to `newest` lack a listener. Returns how long the next one is waited for, where it was not
    /// already.
    pub(super) fn needed(&mut self, newest: u32, now: Instant, pace: Pace, random: u64) -> Option<Duration> {
        self.lacking = Some(newest);
        if self.due.is_some() {
            return None;
        }
        let lived = self.begun.map(|begun| now.saturating_duration_since(begun));
        let wait = lived.map_or(Duration::ZERO, |lived| self.backoff.after(lived, false, pace, random));
        self.due = Some(now + wait);
        Some(wait)
    }

    /// A generation begins, for whatever reason: it gets every listener there is.
    pub(super) fn begins(&mut self, now: Instant) {
        if self.lacking.is_some() {
            self.due = None;
            self.begun = Some(now);
        }
    }

    /// A generation that was to serve failed. Returns how long the next one is waited for, where one is needed.
    pub(super) fn failed(&mut self, now: Instant, pace: Pace, random: u64) -> Option<Duration> {
        if self.lacking.is_none() || self.due.is_some() {
            return None;
        }
        let wait = self.backoff.after(Duration::ZERO, false, pace, random);
        self.due = Some(now + wait);
        Some(wait)
    }

    /// This generation serves.
    pub(super) fn serves(&mut self, generation: u32) {
        if self.lacking.is_some_and(|newest| newest < generation) {
            (self.lacking, self.due) = (None, None);
        }
    }

    /// When the next generation may be started.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}
