//! The mold as data: its slot, and the tickets by which it was asked for workers.

use std::collections::BTreeMap;
use std::time::Instant;

use super::slot::{Slot, State};
use super::vocabulary::Worker;

/// Limit of tickets that are open at once: a mold forks one worker after the other.
const MAX_TICKETS: usize = 16;

/// The mold, and what it has been asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mold {
    pub(super) slot: Slot,
    pub(super) last_ticket: u64,
    pub(super) tickets: BTreeMap<u64, Worker>,
    /// Time by which it must have answered one of the tickets.
    pub(super) answer_by: Option<Instant>,
    /// When it was loaded, or asked for another number of workers: since then main waits for them during a trial.
    pub(super) awaited_since: Instant,
    /// When it has been without its socket for too long.
    pub(super) closed_until: Option<Instant>,
    /// The life whose end came while tickets were open, so that a worker may be half born.
    pub(super) ended_forking: Option<u32>,
    /// Whether this life of it has said anything.
    pub(super) spoke: bool,
    pub(super) warmth: Warmth,
}

/// How far it has to do with reforking.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Warmth {
    /// It was a worker.
    pub(super) is_warm: bool,
    /// A worker that it forks may take its place.
    pub(super) may_refork: bool,
    /// How often that has happened since a mold was loaded.
    pub(super) times: u32,
    /// The worker that is to take its place.
    pub(super) candidate: Option<Worker>,
}

impl Mold {
    pub(super) fn new(now: Instant) -> Mold {
        Mold {
            slot: Slot::new(now),
            last_ticket: 0,
            tickets: BTreeMap::new(),
            answer_by: None,
            awaited_since: now,
            closed_until: None,
            ended_forking: None,
            spoke: false,
            warmth: Warmth::default(),
        }
    }

    pub(super) fn worker(&self) -> Worker {
        Worker { slot: Worker::MOLD, life: self.slot.life }
    }

    pub(super) fn is_willing(&self) -> bool {
        let is_loaded = matches!(self.slot.state, State::Ready { .. });
        is_loaded && self.closed_until.is_none() && self.tickets.len() < MAX_TICKETS
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let own = match &self.slot.state {
            State::Waiting { until } => Some(*until),
            State::Executing { deadline } => Some(*deadline),
            State::Starting { deadline, .. } => *deadline,
            State::Ready { .. } => self.answer_by,
            State::Stopping(_) | State::Empty | State::Forking | State::EndedForGood { .. } => None,
        };
        own.into_iter().chain(self.closed_until).min()
    }
}
