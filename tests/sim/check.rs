//! What all checks share: a violation, the times of a stop, the pace of restarts.

use std::fmt;

use panzer::backoff::Pace;
use panzer::config::Schedule;

use crate::kernel::Time;

/// What a loop may take to notice something, all in all.
pub(crate) const SLACK: Time = Time::from_millis(500);

/// An invariant that does not hold, by its number in FAULTS.md.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) invariant: u32,
    pub(crate) what: String,
}

pub(crate) type Checked = Result<(), Violation>;

impl Violation {
    pub(crate) fn new(invariant: u32, what: impl Into<String>) -> Violation {
        Violation { invariant, what: what.into() }
    }

    fn invariant_in_words(&self) -> &'static str {
        match self.invariant {
            1 => {
                "no worker of the serving generation is stopped for a reload until the new one is wholly ready and baked"
            }
            2 => "at most one generation is starting, and of those that drain no more than allowed take their time",
            3 => "each child is reaped once, and none is signalled after",
            4 => "at most one live process per slot",
            5 => "respawns are bounded, and their delays grow until a healthy life",
            6 => "after a stop nothing is started, KILL comes at its deadline only, and the end within the schedule",
            7 => "every accepted reload gives a generation started after it, or a stated failure",
            8 => "a failed reload leaves everything as before",
            9 => "listeners are closed once, for a stop only, and each generation is released once, when it is gone",
            11 => "events of unknown or retired ones change nothing",
            12 => "no pair of state and event panics",
            13 => "once faults cease, one generation serves with all its workers, and panzer sleeps",
            _ => "a worker is ready when it has shown it, and that is told",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  invariant {}: {}", self.what, self.invariant, self.invariant_in_words())
    }
}

/// Fails with `what` unless `holds`.
pub(crate) fn hold(holds: bool, invariant: u32, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Violation::new(invariant, what())) }
}

/// When something was told to stop, and by when that is to be over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StopTimes {
    pub(crate) graceful: Option<Time>,
    pub(crate) quick: Option<Time>,
    kill_due: Option<Time>,
}

impl StopTimes {
    pub(crate) fn has_begun(self) -> bool {
        self.graceful.is_some() || self.quick.is_some()
    }

    /// It goes by this schedule, whatever is configured later.
    pub(crate) fn begin(&mut self, quick: bool, now: Time, schedule: &Schedule) {
        let (begun, length) = match quick {
            true => (&mut self.quick, schedule.quick().total()),
            false => (&mut self.graceful, schedule.total()),
        };
        begun.get_or_insert(now);
        let due = now + length;
        // A schedule that is shorter by now comes to its end sooner.
        self.kill_due = Some(self.kill_due.map_or(due, |known| known.min(due)));
    }

    /// When KILL is due. There is no KILL before it.
    pub(crate) fn kill_due(self) -> Option<Time> {
        self.kill_due
    }
}

/// Follows the starts and ends of a slot, or of a generation's monitors, with a reckoning of its own.
#[derive(Debug, Default)]
pub(crate) struct PaceWatch {
    unhealthy: u32,
    begun: Time,
    ended: Time,
    least: Time,
    last_told: Time,
    /// When the next start is overdue.
    latest: Time,
}

impl PaceWatch {
    pub(crate) fn begun(begun: Time) -> PaceWatch {
        PaceWatch { begun, ..PaceWatch::default() }
    }

    pub(crate) fn ended(&mut self, now: Time, pace: Pace) {
        self.ended = now;
        self.latest = now + pace.delay_max + SLACK;
        if now - self.begun >= pace.healthy_after {
            self.unhealthy = 0;
            self.least = Time::ZERO;
            self.last_told = Time::ZERO;
        } else {
            let doubled = pace.delay.saturating_mul(1 << self.unhealthy.min(20));
            self.least = doubled.min(pace.delay_max) * 8 / 10;
            self.unhealthy += 1;
        }
    }

    /// People are told of this delay.
    pub(crate) fn told(&mut self, delay: Time, pace: Pace) -> Checked {
        let last = std::mem::replace(&mut self.last_told, delay).min(pace.delay_max);
        let bounded = (last.max(self.least)..=pace.delay_max).contains(&delay);
        hold(bounded, 5, || format!("a delay of {delay:?} after one of {last:?}"))
    }

    /// The next start need not wait: a commit fills slots at once.
    pub(crate) fn excuse(&mut self) {
        self.least = Time::ZERO;
    }

    pub(crate) fn started(&mut self, now: Time) -> Checked {
        let waited = now - self.ended;
        self.begun = now;
        hold(waited >= self.least, 5, || format!("started again after {waited:?}, and {:?} is the least", self.least))
    }

    /// The next start is overdue.
    pub(crate) fn is_late(&self, now: Time) -> bool {
        now > self.latest
    }
}
