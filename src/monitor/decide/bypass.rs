//! Which workers are looked at for whether they bypass the listener that they were given, and when: pure.
//!
//! A worker that is watched until it accepts has shown nothing in all those looks either. One that is ready by another
//! measure may just be busy, and one that is not ready yet may still be starting: so each gets several looks, further and
//! further apart, and is convicted by one that finds it idle since the last. One that is never idle is convicted by the
//! last look of all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::vocabulary::Worker;
use crate::readiness::watch::Bypass;

/// From this look on, 15 s after the start of most, being idle convicts.
const PATIENT_LOOKS: u32 = 4;

/// So often a worker is looked at that is ready by another measure.
const MAX_LOOKS: u32 = 8;

/// The pause before the first look; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Where a worker must be ready earlier than most, the fourth look comes in half of that time.
const SHARE_OF_READY_TIMEOUT: u32 = 32;

/// One that has used less than this share of a processor was idle.
const SHARE_WHEN_BUSY: u32 = 20;

/// Workers that have not been seen accepting on what they were given.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Suspects {
    suspects: BTreeMap<Worker, Suspect>,
    /// It is said once.
    told: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Suspect {
    /// Where it is looked at all the time, and must accept: when it is examined at last, just before it must be ready.
    last: Option<Instant>,
    /// None once it has had its last look.
    next: Option<Instant>,
    pause: Duration,
    looks: u32,
    /// When a look found that it had run for so long.
    seen: Instant,
    ran: Duration,
}

impl Suspects {
    /// From now on this worker is to be seen accepting, `within` this time where it must be.
    pub(super) fn add(&mut self, worker: Worker, within: Option<Duration>, now: Instant) {
        if !self.told {
            let pause = within.map_or(FIRST_PAUSE, |within| FIRST_PAUSE.min(within / SHARE_OF_READY_TIMEOUT));
            let last = within.map(|within| now + within / 16 * 15);
            let (next, pause, looks) = (Some(now + pause), pause * 2, 0);
            self.suspects.insert(worker, Suspect { last, next, pause, looks, seen: now, ran: Duration::ZERO });
        }
    }

    /// It accepts, or that cannot be seen.
    pub(super) fn remove(&mut self, worker: Worker) {
        self.suspects.remove(&worker);
    }

    /// Forgets the others.
    pub(super) fn keep(&mut self, is_meant: impl Fn(Worker) -> bool) {
        self.suspects.retain(|worker, _| is_meant(*worker));
    }

    /// When somebody is to be looked at.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.suspects.values().filter_map(|suspect| suspect.next).min()
    }

    /// Who is to be looked at now: one at a time, as a look takes its time.
    pub(super) fn due(&mut self, now: Instant) -> Option<Worker> {
        let is_due = |suspect: &Suspect| suspect.next.is_some_and(|next| next <= now);
        let (worker, suspect) = self.suspects.iter_mut().find(|(_, suspect)| is_due(suspect))?;
        suspect.looks += 1;
        let next = now + suspect.pause;
        suspect.next = match suspect.last {
            Some(last) => (now < last).then_some(next.min(last)),
            None => (suspect.looks < MAX_LOOKS).then_some(next),
        };
        suspect.pause *= 2;
        Some(*worker)
    }

    /// A look at it showed that it does not accept, and what it does instead. Returns whether that is to be told.
    pub(super) fn is_convicted(&mut self, worker: Worker, shown: &Bypass, now: Instant) -> bool {
        let Some(suspect) = self.suspects.get_mut(&worker) else { return false };
        let (time, ran) = (now.saturating_duration_since(suspect.seen), shown.ran.saturating_sub(suspect.ran));
        (suspect.seen, suspect.ran) = (now, shown.ran);
        let is_idle = ran.saturating_mul(SHARE_WHEN_BUSY) < time;
        // Not at the first look: some open a port for their metrics, and then the one that they were given.
        let elsewhere = suspect.last.is_some() && !shown.own.is_empty() && suspect.looks > 1;
        self.told = elsewhere || (is_idle && suspect.looks >= PATIENT_LOOKS) || suspect.next.is_none();
        if self.told {
            self.suspects.clear();
        }
        self.told
    }
}
