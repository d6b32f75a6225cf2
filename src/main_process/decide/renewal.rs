//! Generations that lack a listener, because it was bound anew after they were started. Each is replaced as by a
//! reload, until a generation serves that has the listener. If that fails, or is needed again at once, the delays grow.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::backoff::{Backoff, Pace};

/// State of replacing the generations that lack a listener.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Renewal {
    /// The newest generation that lacks a listener.
    lacking: Option<u32>,
    /// When to start the next generation. None if no generation lacks a listener, or a starting one has them all.
    #[serde(with = "crate::carry::moment::option")]
    due: Option<Instant>,
    /// When the last such generation was started.
    #[serde(with = "crate::carry::moment::option")]
    begun: Option<Instant>,
    backoff: Backoff,
}

impl Renewal {
    /// All generations up to `newest` lack a listener. Returns the delay of the next generation, unless one is planned
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

    /// A generation begins. It gets every listener.
    pub(super) fn begins(&mut self, now: Instant) {
        if self.lacking.is_some() {
            self.due = None;
            self.begun = Some(now);
        }
    }

    /// A generation failed. Returns the delay of the next one, if one is needed.
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

    /// When to start the next generation.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}
