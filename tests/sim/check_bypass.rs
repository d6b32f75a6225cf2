//! The book of one worker that may bypass the listener that it was given: when it is looked at for that, how often, and
//! what is told.

use panzer::monitor::decide::{Settings, Watch};
use panzer::readiness::watch::Bypass as Shown;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

/// From which look on being idle convicts, how many there are at most, and the longest pause before the first, as the
/// state has them.
const PATIENT_LOOKS: u32 = 4;
const MAX_LOOKS: u32 = 8;
const FIRST_PAUSE: Time = Time::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Bypass {
    /// Since when it is to be seen, or when it was last looked at.
    since: Option<Time>,
    pause: Time,
    looks: u32,
    /// When it must be examined at last, because it must be ready.
    last: Option<Time>,
    /// When it was last seen, and for how long it had run by then.
    seen: Time,
    ran: Time,
    /// It accepts, or that cannot be seen.
    settled: bool,
    ready: bool,
    /// The last look's answer is to be told.
    convicted: bool,
}

impl Bypass {
    pub(crate) fn executed(&mut self, now: Time, ready_time: Time, wanted: &Settings) {
        if matches!(wanted.watch, Watch::IfSeeable | Watch::Always) && self.since.is_none() {
            self.begin(now, FIRST_PAUSE.min(ready_time / 32), wanted);
            self.last = Some(now + ready_time / 16 * 15);
        }
    }

    /// It is ready: seen accepting, or hidden from all looks, or by another measure.
    pub(crate) fn ready(&mut self, now: Time, proven: bool, wanted: &Settings) {
        if std::mem::replace(&mut self.ready, true) {
            return;
        }
        self.settled |= proven;
        self.begin(now, FIRST_PAUSE, wanted);
    }

    fn begin(&mut self, now: Time, pause: Time, wanted: &Settings) {
        self.since = wanted.has_listener.then_some(now);
        (self.pause, self.looks, self.last) = (pause, 0, None);
        (self.seen, self.ran) = (now, Time::ZERO);
    }

    /// When the next look is due.
    fn due(&self) -> Option<Time> {
        let due = self.since.map(|since| since + self.pause);
        due.map(|due| self.last.map_or(due, |last| due.min(last)))
    }

    pub(crate) fn looked_at(&mut self, now: Time) -> Checked {
        let early = self.due().is_none_or(|due| now < due);
        hold(self.is_pending() && !early, 13, || format!("somebody is examined who need not be: {self:?}"))?;
        self.looks += 1;
        self.since = Some(now);
        self.pause *= 2;
        Ok(())
    }

    /// What the look gave: where it listens instead, if anywhere, and for how long it has run; none where it accepts, or
    /// cannot be seen.
    pub(crate) fn examined(&mut self, now: Time, shown: Option<&Shown>) {
        self.settled |= shown.is_none();
        let Some(shown) = shown else { return };
        let is_idle = shown.ran.saturating_sub(self.ran) * 20 < now - self.seen;
        (self.seen, self.ran) = (now, shown.ran);
        let elsewhere = !shown.own.is_empty() && !self.ready && self.looks > 1;
        let convicted = elsewhere || (is_idle && self.looks >= PATIENT_LOOKS) || self.is_over();
        self.convicted = !self.settled && self.since.is_some() && convicted;
    }

    /// It has had its last look.
    fn is_over(&self) -> bool {
        match self.last {
            Some(last) => self.since.is_some_and(|since| since >= last),
            None => self.looks >= MAX_LOOKS,
        }
    }

    pub(crate) fn is_convicted(&self) -> bool {
        self.convicted
    }

    /// Whether it is to be looked at once more.
    pub(crate) fn is_pending(&self) -> bool {
        self.since.is_some() && !self.settled && !self.is_over()
    }

    pub(crate) fn is_late(&self, now: Time) -> bool {
        self.is_pending() && self.due().is_some_and(|due| now > due + SLACK)
    }
}
