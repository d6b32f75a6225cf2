//! Stop schedules: the signals, and the wait after each.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::sys::signals::parse_signal;

/// Limit of the steps of a schedule.
const MAX_STEPS: usize = 16;

/// A worker that is aborted has at most this time before the schedule begins.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Signals and waits, as in `TERM/60s/INT/5s/KILL`. It has at least one step. The last one is KILL, unless it is a part
/// of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule {
    /// Wait before the first signal of a stop of everything. Workers go on serving meanwhile.
    lead: Duration,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    signal: Signal,
    /// Time until the next step. The last step has none.
    wait: Duration,
}

impl Schedule {
    /// Wait before the first signal. It is no part of [`Schedule::total`]: only main waits, before it tells a monitor.
    pub fn lead(&self) -> Duration {
        self.lead
    }

    /// The first signal.
    pub fn first_signal(&self) -> Signal {
        self.steps[0].signal
    }

    /// This schedule with another first wait, as `--timeout` sets it.
    #[must_use]
    pub fn with_first_wait(mut self, wait: Duration) -> Schedule {
        self.steps[0].wait = wait;
        self
    }

    /// The rest for a stop that must be quick: without the first step.
    #[must_use]
    pub fn quick(&self) -> Schedule {
        Schedule::of(self.steps[self.steps.len().min(2) - 1..].to_vec())
    }

    /// This schedule after an ABRT, which leaves a moment for a core dump.
    #[must_use]
    pub fn after_abort(mut self) -> Schedule {
        self.steps.insert(0, Step { signal: Signal::SIGABRT, wait: self.steps[0].wait.min(ABORT_TIMEOUT) });
        self
    }

    /// This schedule with no wait longer than this.
    #[must_use]
    pub fn with_waits_up_to(mut self, longest: Duration) -> Schedule {
        self.steps.iter_mut().for_each(|step| step.wait = step.wait.min(longest));
        self
    }

    /// The first signal only.
    #[must_use]
    pub fn patient(&self) -> Schedule {
        Schedule::of(vec![Step { signal: self.first_signal(), wait: Duration::ZERO }])
    }

    /// KILL at once.
    pub fn kill() -> Schedule {
        Schedule::of(vec![Step { signal: Signal::SIGKILL, wait: Duration::ZERO }])
    }

    /// Time from the first signal to KILL.
    pub fn total(&self) -> Duration {
        self.steps[..self.steps.len() - 1].iter().map(|step| step.wait).sum()
    }
}

impl Default for Schedule {
    fn default() -> Schedule {
        let step = |signal, seconds| Step { signal, wait: Duration::from_secs(seconds) };
        Schedule::of(vec![step(Signal::SIGTERM, 60), step(Signal::SIGINT, 5), step(Signal::SIGKILL, 0)])
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Schedule, String> {
        let schedule = Schedule::read(text)?;
        let steps = &schedule.steps;
        let ends_in_kill = steps.last().is_some_and(|step| step.signal == Signal::SIGKILL);
        let kills_once = steps.iter().filter(|step| step.signal == Signal::SIGKILL).count() == 1;
        if !ends_in_kill || !kills_once {
            return Err("a schedule ends in KILL, as in TERM/60s/INT/5s/KILL".to_owned());
        }
        Ok(schedule)
    }
}

impl Schedule {
    fn of(steps: Vec<Step>) -> Schedule {
        Schedule { lead: Duration::ZERO, steps }
    }

    /// Also reads a part of a schedule, which need not end with KILL.
    fn read(text: &str) -> Result<Schedule, String> {
        let mut parts: Vec<&str> = text.split('/').map(str::trim).collect();
        let mut lead = Duration::ZERO;
        if let [first, _, ..] = parts[..]
            && first.starts_with(|first: char| first.is_ascii_digit())
        {
            lead = duration::parse(first).map_err(|error| format!("{error} (before the first signal)"))?;
            parts.remove(0);
        }
        if parts.len() > 2 * MAX_STEPS {
            return Err(format!("more than {MAX_STEPS} steps"));
        }
        let mut steps = Vec::new();
        for pair in parts.chunks(2) {
            let signal = parse_signal(pair[0])?;
            let wait = match pair.get(1) {
                Some(wait) => duration::parse(wait).map_err(|error| format!("{error} (after {})", pair[0]))?,
                None => Duration::ZERO,
            };
            steps.push(Step { signal, wait });
        }
        Ok(Schedule { lead, steps })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.lead.is_zero() {
            write!(f, "{}/", humantime::format_duration(self.lead))?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            write!(f, "{}", step.signal.as_str().trim_start_matches("SIG"))?;
            if index + 1 < self.steps.len() {
                // Exact, unlike `duration::show`, because a plan is read back from this.
                write!(f, "/{}/", humantime::format_duration(step.wait))?;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Schedule {
    type Error = String;

    fn try_from(text: String) -> Result<Schedule, String> {
        Schedule::read(&text)
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> String {
        schedule.to_string()
    }
}

/// The state of a stop in its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escalation {
    schedule: Schedule,
    next: usize,
    #[serde(with = "crate::carry::moment")]
    due: Instant,
}

impl Escalation {
    /// A stop that begins now. Its first signal is due at once.
    pub fn begin(schedule: &Schedule, now: Instant) -> Escalation {
        Escalation { schedule: schedule.clone(), next: 0, due: now }
    }

    /// A stop that began at `since`. The signals up to now were sent.
    pub fn resume(schedule: &Schedule, since: Instant, now: Instant) -> Escalation {
        let mut escalation = Escalation::begin(schedule, since);
        while escalation.deadline().is_some_and(|due| due <= now) {
            escalation.advance();
        }
        escalation
    }

    /// Whether its schedule never comes to KILL.
    pub fn is_patient(&self) -> bool {
        self.schedule.steps.last().is_some_and(|step| step.signal != Signal::SIGKILL)
    }

    /// Continues with the quick rest of the schedule, unless the stop is that far already.
    pub fn escalate(&mut self, quick: &Schedule, now: Instant) {
        let begun = Escalation::begin(quick, now);
        let end = |escalation: &Escalation| -> Instant {
            let rest = &escalation.schedule.steps[escalation.next.min(escalation.schedule.steps.len() - 1)..];
            escalation.due + rest[..rest.len() - 1].iter().map(|step| step.wait).sum::<Duration>()
        };
        if self.deadline().is_some() && end(&begun) < end(self) {
            *self = begun;
        }
    }

    /// When KILL was sent.
    pub fn killed(&self) -> Option<Instant> {
        (self.deadline().is_none() && !self.is_patient()).then_some(self.due)
    }

    /// Others get KILL as well, at `now`. If the last one was sent longer than `patience` ago, we have slept meanwhile, and
    /// the patience begins anew.
    pub fn kill_more(&mut self, patience: Duration, now: Instant) {
        if self.killed().is_some_and(|killed| killed + patience <= now) {
            self.due = now;
        }
    }

    /// Puts the next signal off until `until`, if one was sent and KILL was not.
    pub fn extend(&mut self, until: Instant) {
        if self.has_begun() && self.deadline().is_some() {
            self.due = self.due.max(until);
        }
    }

    /// Whether a signal has been sent.
    pub fn has_begun(&self) -> bool {
        self.next > 0
    }

    /// When the next signal is due. None once KILL was sent.
    pub fn deadline(&self) -> Option<Instant> {
        (self.next < self.schedule.steps.len()).then_some(self.due)
    }

    /// The next signal, if it is due. Only one at a time: after a long sleep each later step still gets its wait.
    #[must_use]
    pub fn signal_due(&mut self, now: Instant) -> Option<Signal> {
        let due = self.deadline()? <= now;
        due.then(|| {
            self.due = now;
            self.advance()
        })
    }

    fn advance(&mut self) -> Signal {
        let step = self.schedule.steps[self.next];
        self.next += 1;
        self.due += step.wait;
        step.signal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_a_late_kill_has_as_long_to_end_and_nobody_longer() {
        let (patience, begun) = (Duration::from_secs(5), Instant::now());
        let mut stop = Escalation::begin(&Schedule::kill(), begun);
        assert_eq!(stop.signal_due(begun), Some(Signal::SIGKILL));
        stop.kill_more(patience, begun + patience / 2);
        assert_eq!(stop.killed(), Some(begun));
        stop.kill_more(patience, begun + 3 * patience);
        assert_eq!(stop.killed(), Some(begun + 3 * patience));
    }

    #[test]
    fn a_schedule_is_read_and_shown() {
        let schedule: Schedule = "term/60s/SIGINT/5/KILL".parse().unwrap();
        assert_eq!(schedule.to_string(), "TERM/1m/INT/5s/KILL");
        assert_eq!(schedule, Schedule::default());
        assert_eq!(schedule.total(), Duration::from_secs(65));
        assert_eq!(schedule.quick().to_string(), "INT/5s/KILL");
        assert_eq!("TERM/1s/KILL".parse::<Schedule>().unwrap().quick().quick().to_string(), "KILL");
        let late: Schedule = "5s/TERM/60s/KILL".parse().unwrap();
        assert_eq!((late.lead(), late.first_signal()), (Duration::from_secs(5), Signal::SIGTERM));
        assert_eq!((late.total(), late.quick().lead()), (Duration::from_secs(60), Duration::ZERO));
        assert_eq!(late.to_string().parse(), Ok(late));
        let fine: Schedule = "QUIT/1234ms/KILL".parse().unwrap();
        assert_eq!(fine.to_string().parse(), Ok(fine));
    }

    #[test]
    fn a_schedule_without_an_end_is_refused() {
        for text in [
            "",
            "5s",
            "5s/",
            "5s/6s/KILL",
            "5x/TERM/KILL",
            "TERM",
            "TERM/60s",
            "TERM/60s/INT",
            "FOO/1s/KILL",
            "TERM/x/KILL",
            "KILL/1s/KILL",
            "KILL/1s/TERM",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_escalation_gives_each_step_its_wait() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut escalation = Escalation::begin(&Schedule::default(), start);
        assert_eq!(escalation.signal_due(start), Some(Signal::SIGTERM));
        assert_eq!(escalation.signal_due(after(59)), None);
        assert_eq!(escalation.signal_due(after(70)), Some(Signal::SIGINT));
        assert_eq!(escalation.signal_due(after(74)), None);
        assert_eq!(escalation.signal_due(after(75)), Some(Signal::SIGKILL));
        assert_eq!(escalation.deadline(), None);
    }

    #[test]
    fn a_stop_that_is_under_way_goes_on_where_it_was() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let resumed = |seconds| Escalation::resume(&Schedule::default(), start, after(seconds)).deadline();
        assert_eq!(resumed(3), Some(after(60)));
        assert_eq!(resumed(61), Some(after(65)));
        assert_eq!(resumed(66), None);
    }

    #[test]
    fn escalating_never_puts_off_the_end() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let (full, quick) = (Schedule::default(), Schedule::default().quick());
        let mut early = Escalation::begin(&full, start);
        assert_eq!(early.signal_due(start), Some(Signal::SIGTERM));
        early.escalate(&quick, after(1));
        assert_eq!(early.signal_due(after(1)), Some(Signal::SIGINT));
        early.escalate(&quick, after(3));
        assert_eq!(early.deadline(), Some(after(6)));
    }
}
