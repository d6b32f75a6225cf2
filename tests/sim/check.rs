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
            5 => {
                "respawns are bounded: at once after a healthy life, or the first death of a ready worker, else later and later"
            }
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

/// As the state has them: the shortest wait from the second failure on, and how many first waits a ready worker lives to
/// make up for a failure.
const SHORTEST: Time = Time::from_millis(10);
const RECOVERY: u32 = 10;

/// Follows the starts and ends of a slot, or of a generation's monitors, with a reckoning of its own.
#[derive(Debug, Default)]
pub(crate) struct PaceWatch {
    failures: u32,
    begun: Time,
    ended: Time,
    /// The next start is not to wait at all.
    at_once: bool,
    least: Time,
    last_told: Time,
    /// When the next start is overdue.
    latest: Time,
}

impl PaceWatch {
    pub(crate) fn begun(begun: Time) -> PaceWatch {
        PaceWatch { begun, ..PaceWatch::default() }
    }

    /// A life is over; `ready` if the worker had become ready.
    pub(crate) fn ended(&mut self, now: Time, ready: bool, pace: Pace) {
        let (lived, step) = (now - self.begun, pace.delay.max(SHORTEST));
        let healthy = lived >= pace.healthy_after.max(SHORTEST * RECOVERY);
        let made_up = if ready { lived.as_nanos() / (step * RECOVERY).as_nanos() } else { 0 };
        if healthy || made_up > 0 {
            self.failures = if healthy { 0 } else { self.failures.saturating_sub(made_up as u32) };
            self.last_told = Time::ZERO;
        }
        self.at_once = healthy || (ready && self.failures == 0);
        let first = if self.failures == 0 { pace.delay } else { step };
        let doubled = first.saturating_mul(1 << self.failures.saturating_sub(1).min(20));
        self.least = if self.at_once { Time::ZERO } else { doubled.min(pace.delay_max) * 8 / 10 };
        self.failures = match self.at_once {
            true => u32::from(!healthy),
            false => self.failures.max(1) + 1,
        };
        self.ended = now;
        self.latest = now + if self.at_once { Time::ZERO } else { pace.delay_max } + SLACK;
    }

    /// People are told of this delay.
    pub(crate) fn told(&mut self, delay: Time, pace: Pace) -> Checked {
        let last = std::mem::replace(&mut self.last_told, delay).min(pace.delay_max * 8 / 10);
        let bounded = (last.max(self.least)..=pace.delay_max).contains(&delay);
        hold(bounded, 5, || format!("a delay of {delay:?} after one of {last:?}"))?;
        hold(!self.at_once || delay.is_zero(), 5, || format!("a delay of {delay:?} where none is due"))
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
