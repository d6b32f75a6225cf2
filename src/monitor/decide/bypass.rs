//! Which workers are looked at for whether they bypass the listener that they were given, and when: pure.
//!
//! A worker that is not seen accepting may be busy, or still starting. So it gets a few looks, and the warning is logged
//! once, as soon as a look is sure:
//!
//! | look | if it must be ready in time | if it is ready by another measure | the look is sure if the worker |
//! | --- | --- | --- | --- |
//! | 1 | after 3 units | none | listens elsewhere, and must be ready in time |
//! | 2 | after 7 units | after 7 s | the same |
//! | 3 | after 15 units | five times from 15 s on | the same, or has been idle since look 2 |
//! | 4 | just before the time is over | five times from 255 s on | is still not accepting |
//!
//! A unit is a second, or a part of the ready timeout if that is shorter. Five looks within a second, at uneven distances, also
//! find a worker that accepts with a timeout and sleeps in between, whatever its rhythm. One that must be ready is looked at
//! for that as well, again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::vocabulary::Worker;
use crate::readiness::watch::Bypass;

const UNIT: Duration = Duration::from_secs(1);

/// Number of units in the ready timeout, at least.
const UNITS_IN_READY_TIMEOUT: u32 = 32;

/// When the looks of a row come after its first one, in hundredths of a second, the last one first.
const ROW: [u32; 5] = [90, 57, 31, 13, 0];

/// A worker that has used less than this share of a processor was idle.
const SHARE_WHEN_BUSY: u32 = 20;

/// Workers that have not been seen accepting on what they were given.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Suspects {
    suspects: BTreeMap<Worker, Suspect>,
    /// Whether the warning was logged.
    told: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Suspect {
    must_be_ready: bool,
    /// When it is looked at, the latest time first.
    looks: Vec<Instant>,
    /// When it was looked at last before this row, and the processor time that it had used by then.
    seen: Instant,
    ran: Duration,
}

impl Suspects {
    /// From now on this worker is to be seen accepting, `within` this time if it must be.
    pub(super) fn add(&mut self, worker: Worker, within: Option<Duration>, now: Instant) {
        if self.told {
            return;
        }
        let unit = within.map_or(UNIT, |within| UNIT.min(within / UNITS_IN_READY_TIMEOUT));
        let last = within.map_or(unit * 255, |within| within / 16 * 15);
        let row = row_of(within.is_some());
        let rows =
            [last, unit * 15].into_iter().flat_map(|first| row.iter().map(move |later| first + UNIT * *later / 100));
        let looks = rows.chain([unit * 7]).chain(within.map(|_| unit * 3)).map(|after| now + after).collect();
        let suspect = Suspect { must_be_ready: within.is_some(), looks, seen: now, ran: Duration::ZERO };
        self.suspects.insert(worker, suspect);
    }

    /// The worker accepts, or nobody can see whether it does.
    pub(super) fn remove(&mut self, worker: Worker) {
        self.suspects.remove(&worker);
    }

    /// Forgets the others.
    pub(super) fn keep(&mut self, is_meant: impl Fn(Worker) -> bool) {
        self.suspects.retain(|worker, _| is_meant(*worker));
    }

    /// When to look at a worker.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.suspects.values().filter_map(|suspect| suspect.looks.last().copied()).min()
    }

    /// The worker to look at now. One at a time, because a look takes its time.
    pub(super) fn due(&mut self, now: Instant) -> Option<Worker> {
        let mut all = self.suspects.iter_mut();
        all.find_map(|(worker, suspect)| suspect.looks.pop_if(|look| *look <= now).map(|_| *worker))
    }

    /// A look showed that the worker does not accept, and what it does instead. Returns whether to report this now.
    pub(super) fn note_bypass(&mut self, worker: Worker, shown: &Bypass, now: Instant) -> bool {
        let Some(suspect) = self.suspects.get_mut(&worker) else { return false };
        let (time, ran) = (now.saturating_duration_since(suspect.seen), shown.ran.saturating_sub(suspect.ran));
        let is_idle = ran.saturating_mul(SHARE_WHEN_BUSY) < time;
        let elsewhere = suspect.must_be_ready && !shown.own.is_empty();
        let (left, row) = (suspect.looks.len(), row_of(suspect.must_be_ready).len());
        self.told = elsewhere || left == 0 || (left == row && is_idle);
        if left >= 2 * row || left == row {
            (suspect.seen, suspect.ran) = (now, shown.ran);
        }
        if self.told {
            self.suspects.clear();
        }
        self.told
    }
}

fn row_of(must_be_ready: bool) -> &'static [u32] {
    if must_be_ready { &[0] } else { &ROW }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks as long as there is a suspect. It is asleep in the last fifth of each period, and waits for a connection
    /// otherwise. Returns whether it was told of.
    fn is_told(period: Duration, phase: Duration) -> bool {
        let (worker, start) = (Worker { slot: 0, life: 1 }, Instant::now());
        let mut suspects = Suspects::default();
        suspects.add(worker, None, start);
        while let Some(now) = suspects.deadline() {
            assert_eq!(suspects.due(now), Some(worker));
            let within = ((now - start + phase).as_nanos() % period.as_nanos()) * 5;
            if within < period.as_nanos() * 4 {
                suspects.remove(worker);
            } else if suspects.note_bypass(worker, &Bypass::default(), now) {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_worker_that_sleeps_between_its_waits_for_connections_is_seen_whatever_its_rhythm() {
        for period in (20..4000).step_by(10).map(Duration::from_millis) {
            let told = (0..50).filter(|part| is_told(period, period * *part / 50)).count();
            assert_eq!(told, 0, "period {period:?}");
        }
    }
}
