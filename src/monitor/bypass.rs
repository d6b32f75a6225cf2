//! Which workers are looked at for whether they bypass the listener that they were given, and when: pure.
//!
//! A worker that is watched until it accepts has shown nothing in all those looks either. One that is ready by another
//! measure may just be busy: so each gets several looks, further and further apart, and then no more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::vocabulary::Worker;

/// So often a worker is looked at.
const LOOKS: u32 = 4;

/// The pause before the first look; each further one is twice as long, so that the last look comes after 15 s.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Where a worker must be ready earlier, the last look comes in half of that time.
const SHARE_OF_READY_TIMEOUT: u32 = 32;

/// Workers that have not been seen accepting on what they were given.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    suspects: BTreeMap<Worker, Suspect>,
    /// It is said once.
    told: bool,
}

#[derive(Debug)]
struct Suspect {
    /// Whether it is looked at all the time, and must accept.
    watched: bool,
    /// None once it has had its last look.
    next: Option<Instant>,
    pause: Duration,
    looks: u32,
}

impl Suspects {
    /// From now on this worker is to be seen accepting, `within` this time where it must be.
    pub(super) fn add(&mut self, worker: Worker, within: Option<Duration>, now: Instant) {
        if !self.told {
            let pause = within.map_or(FIRST_PAUSE, |within| FIRST_PAUSE.min(within / SHARE_OF_READY_TIMEOUT));
            let next = Some(now + pause);
            self.suspects.insert(worker, Suspect { watched: within.is_some(), next, pause: pause * 2, looks: 0 });
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
        suspect.next = (suspect.looks < LOOKS).then_some(now + suspect.pause);
        suspect.pause *= 2;
        Some(*worker)
    }

    /// A look at it showed that it does not accept, and whether it listens on something of its own. Returns whether that
    /// is to be told.
    pub(super) fn is_convicted(&mut self, worker: Worker, by_its_own: bool) -> bool {
        let Some(suspect) = self.suspects.get(&worker) else { return false };
        // Not at the first look: some open a port for their metrics, and then the one that they were given.
        let shown = suspect.watched && by_its_own && suspect.looks > 1;
        self.told = shown || suspect.next.is_none();
        if self.told {
            self.suspects.clear();
        }
        self.told
    }
}
